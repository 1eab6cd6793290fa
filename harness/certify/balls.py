"""The least value of linear functions over what the referee grants: a ball around an image, cut with the box [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ..errors import UserError
from ..schema.eps import limit
from ..threat import Norm, Threat

_NEWTON: Final = 64
"""Steps after which the search for a radius's scale ends, inexact; a handful do."""


@dataclass(frozen=True)
class Ball:
    """All images in [0, 1] within a radius of an image, one for each image of a batch.

    Attributes:
        x: Images as vectors in [0, 1], float64 (N, D).
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        radius: What the referee lets pass: eps with its tolerance, and the rounding of a distance in float64.
    """

    x: Tensor
    norm: Norm
    radius: float

    @classmethod
    def of(cls, threat: Threat, x: Tensor) -> Ball:
        """What the referee grants around images (N, ...).

        It clamps an image to the box first and measures then (:func:`harness.judging.referee.judge`), so its slack on
        the box adds nothing.

        Raises:
            UserError: A norm without bounds, or no eps.
        """
        if threat.norm == "l0":
            raise UserError("certificates are for linf, l2 and l1, got l0")
        if threat.eps is None:
            raise UserError("a certificate needs an eps")
        radius = limit(threat.eps) * (1 + 1e-10)
        return cls(x.detach().double().flatten(1), threat.norm, radius)

    @property
    def low(self) -> Tensor:
        """Least value of each pixel, (N, D)."""
        return (self.x - self.radius).clamp(0, 1)

    @property
    def high(self) -> Tensor:
        """Greatest value of each pixel, (N, D)."""
        return (self.x + self.radius).clamp(0, 1)

    def least(self, slopes: Tensor) -> Tensor:
        """The least value of ``slopes @ z`` over the ball and the box together, (N, K).

        Args:
            slopes: (N, K, D), or (1, K, D) for the same of all images.
        """
        if self.norm == "linf":
            return product(slopes, (self.low + self.high) / 2) - product(slopes.abs(), (self.high - self.low) / 2)
        x = self.x.unsqueeze(1)
        room = torch.where(slopes > 0, x, 1 - x)  # each pixel's way to the box, downhill
        size = slopes.abs().expand_as(room)
        gain = _gain_l1(size, room, self.radius) if self.norm == "l1" else _gain_l2(size, room, self.radius)
        return product(slopes, self.x) - gain


def product(slopes: Tensor, values: Tensor) -> Tensor:
    """``slopes @ values`` for each image, (N, K), of slopes (N or 1, K, D) and values (N, D)."""
    if len(slopes) == 1:
        return values @ slopes[0].T
    return torch.bmm(slopes, values.unsqueeze(2)).squeeze(2)


def _gain_l1(size: Tensor, room: Tensor, radius: float) -> Tensor:
    """The steepest pixels go all their way until the radius is spent, a fractional knapsack."""
    order = size.argsort(dim=2, descending=True)
    way = room.gather(2, order)
    before = way.cumsum(2) - way
    return (size.gather(2, order) * torch.minimum(way, (radius - before).clamp_min(0))).sum(2)


def _gain_l2(size: Tensor, room: Tensor, radius: float) -> Tensor:
    """By the dual: pixel i goes ``min(s * size_i, room_i)`` for the scale s at which the radius is spent.

    The squared length is concave and piecewise linear in s^2, so that Newton's steps from below reach the root after a
    few and never pass it. What is returned is the Lagrangian at that s. It bounds the gain for whatever s: an inexact
    one is sound.
    """
    squares, rooms = size.square(), room.square()
    below = radius**2 / squares.sum(2, keepdim=True).clamp_min(1e-300)
    for _ in range(_NEWTON):
        moving = below * squares < rooms
        left = radius**2 - (rooms * ~moving).sum(2, keepdim=True)
        root = torch.maximum(below, left / (squares * moving).sum(2, keepdim=True).clamp_min(1e-300))
        if bool((root <= below * (1 + 1e-12)).all()):
            break
        below = root
    scale = below.sqrt()
    step = torch.minimum(scale * size, room)
    gain = (size * step).sum(2) - (step.square().sum(2) - radius**2) / (2 * scale.squeeze(2))
    return torch.minimum(gain, (size * room).sum(2))  # the corner itself may lie within the radius
