"""Accuracies, intervals, worst cases and comparisons from per-image outcomes; needs no torch."""
