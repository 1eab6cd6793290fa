"""Sound lower bounds of the margin of a model within a threat's ball."""

from .bounds import Certificate, certify

__all__ = ["Certificate", "certify"]
