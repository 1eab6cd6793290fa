"""The board of many bundles: one page, a Markdown table, and CSV."""
