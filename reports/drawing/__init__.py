"""How things are drawn and written, whatever they are: text, Markdown, charts, images, HTML pages. Knows no board."""
