"""How a number of things is written, everywhere the same."""

from __future__ import annotations


def plural(count: int, word: str, many: str = "") -> str:
    """``1 seed``, ``2 seeds``, ``1,000 seeds``; ``many`` where an s does not make it."""
    return f"{int(count):,} {word if count == 1 else many or f'{word}s'}"
