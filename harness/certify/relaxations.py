"""Lines below and above a function of one variable on an interval.

Every function here takes float64 ends ``low <= high`` of any shape and returns :class:`Lines` of that shape. Zhang et
al. 2018 (CROWN), section 3.2 and table 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]

_NARROW: Final = 1e-9
"""Intervals narrower than this get constants: a slope of two nearly equal numbers is rounding."""

_BISECTIONS: Final = 24


class Lines(NamedTuple):
    """``below_slope * z + below <= f(z) <= above_slope * z + above`` for every z of the interval."""

    below_slope: Tensor
    below: Tensor
    above_slope: Tensor
    above: Tensor


def rectifier(low: Tensor, high: Tensor, leak: float = 0.0) -> Lines:
    """Of ``max(z, leak * z)``, 0 <= leak <= 1: the chord above; below, of the lines through 0 the one nearer."""
    width = (high - low).clamp_min(1e-300)
    chord = torch.where(low >= 0, 1.0, torch.where(high <= 0, leak, (high - leak * low) / width))
    above = torch.where((low < 0) & (high > 0), high * (1 - chord), 0.0)
    below_slope = torch.where(low >= 0, 1.0, torch.where(high <= 0, leak, torch.where(high >= -low, 1.0, leak)))
    return Lines(below_slope, torch.zeros_like(low), chord, above)


def logistic(low: Tensor, high: Tensor) -> Lines:
    """Of the sigmoid."""

    def slope(z: Tensor) -> Tensor:
        return z.sigmoid() * (-z).sigmoid()

    return _s_shaped(low, high, lambda z: z.sigmoid() - 0.5, slope, 0.5)


def hyperbolic(low: Tensor, high: Tensor) -> Lines:
    """Of the hyperbolic tangent."""
    return _s_shaped(low, high, torch.tanh, lambda z: 1 / torch.cosh(z.clamp(-300, 300)) ** 2, 0.0)


def _s_shaped(low: Tensor, high: Tensor, function: Function, slope: Function, shift: float) -> Lines:
    """Of ``shift + function``, which is odd, grows, and bends down where z is positive."""
    below_slope, below = _below(low, high, function, slope)
    above_slope, above = _below(-high, -low, function, slope)
    return Lines(below_slope, below + shift, above_slope, shift - above)


def _below(low: Tensor, high: Tensor, function: Function, slope: Function) -> tuple[Tensor, Tensor]:
    """Slope and intercept of a line below an odd S-shaped function.

    Left of 0 it is convex, and any tangent will do. From there to the right of 0 the tangent has to end below the
    function: the point that touches is found by bisection from the side where it does, so that it does at every step.
    A chord lies below where the function bends down throughout, and where it starts no steeper than the tangent there.
    """
    wide = high - low > _NARROW
    chord = torch.where(wide, (function(high) - function(low)) / torch.where(wide, high - low, 1.0), 0.0)
    by_chord = ~wide | (low >= 0) | ((high > 0) & (chord <= slope(low)))
    good, bad, end = low, low.new_zeros(()).expand_as(low), function(high)
    for _ in range(_BISECTIONS):
        middle = (good + bad) / 2
        under = function(middle) + slope(middle) * (high - middle) <= end
        good, bad = torch.where(under, middle, good), torch.where(under, bad, middle)
    touch = torch.where(high <= 0, (low + high) / 2, good)
    steep = torch.where(by_chord, chord, slope(touch))
    at = torch.where(by_chord, low, touch)
    return steep, function(at) - steep * at
