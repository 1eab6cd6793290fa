"""Two models against each other on the same images: paired tests, and the page of two."""
