"""The page and the Markdown file of a reproduced paper: claims, tables, figures, today's attacks, choices."""
