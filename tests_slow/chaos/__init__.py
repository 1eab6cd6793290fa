"""Disturbances of every kind, counted: ``nox -s chaos``; docs/reliability.md is its table."""
