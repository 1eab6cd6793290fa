"""Whether a robust accuracy can be believed: what is measured on a model, checks, and the grade."""
