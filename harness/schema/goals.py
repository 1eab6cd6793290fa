"""How a goal is written, everywhere the same; see :class:`harness.goal.Goal`."""

from __future__ import annotations

from typing import Final

UNTARGETED: Final = "untargeted"
"""What records and tables say where any wrong label will do."""


def measured(goal: str, what: str = "robust accuracy") -> str:
    """What a share of images that no attack broke is called: with targets it is no robust accuracy."""
    return what if goal == UNTARGETED else f"share not taken for the target ({goal.removeprefix('targeted: ')})"
