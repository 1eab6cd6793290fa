"""Training of defenses: the loop, its optimizers and precision, and what is built on trained models."""
