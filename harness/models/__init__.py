"""Architectures as sequences of named stages, and networks used beside them."""
