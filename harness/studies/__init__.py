"""A paper's experiments as data: what is run and measured, and the verdicts on its claims."""
