"""How an eps is written, and what counts as within it, everywhere the same."""

from __future__ import annotations

from typing import Final

TOLERANCE: Final = 1e-4
"""Relative slack on eps: float32 rounding in the toolkits overshoots by up to 3e-6."""

ROUNDING: Final = 2.0**-24
"""Least slack, the distance of neighbours among float32 just below 1: an image plus eps is rounded to one of them."""

ANYTHING: Final = "images lie in [0, 1]: an L-infinity eps of {0} allows anything; is it {0}/255?"
"""What is said of an eps above 1."""


def eps_text(eps: float, levels: int = 255) -> str:
    """A radius as the field writes it: ``8/255`` where it is a whole number of 8-bit steps and no short decimal.

    Args:
        eps: Radius in pixel units of [0, 1].
        levels: Images hold k/levels.
    """
    steps = eps * 255
    short = abs(eps - round(eps, 3)) < 1e-9
    if levels == 255 and not short and abs(steps - round(steps)) < 1e-6 * max(1.0, steps):
        return f"{round(steps)}/255"
    return f"{eps:.6g}"


def limit(eps: float) -> float:
    """Largest distance that counts as within eps."""
    return max(eps * (1 + TOLERANCE), eps + ROUNDING) + 1e-9
