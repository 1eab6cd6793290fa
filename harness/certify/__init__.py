"""Sound lower bounds of the margin of a model within a threat's ball."""

from .bounds import Certificate, Network, certify, prepare

__all__ = ["Certificate", "Network", "certify", "prepare"]
