"""The page of one model: trust, attacks, images, classes, comparisons."""
