"""Comparison of two models on the same images: paired tests, and the page of two models."""
