"""Every suite and data set at once: the first page, its gallery, and the Markdown file."""
