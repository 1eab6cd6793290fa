"""How a number of things is written, everywhere the same."""

from __future__ import annotations


def plural(count: int, word: str) -> str:
    """``1 seed``, ``2 seeds``, ``1,000 seeds``."""
    return f"{int(count):,} {word}{'' if count == 1 else 's'}"
