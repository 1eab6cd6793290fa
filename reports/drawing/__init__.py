"""Text, Markdown, line charts, PNG images and HTML pages, whatever they show."""
