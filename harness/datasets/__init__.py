"""Data sets: the registry with canonical budgets, readers, and how images are sampled."""
