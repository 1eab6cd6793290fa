"""Steepest steps on part of the values: what watches for a change elsewhere never sees one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import UserError
from ..threat import EXPONENT, Norm, Threat, steepest
from ..victims.victim import Victim, input_gradient
from .base import Attack, Targeting
from .losses import objective


@dataclass(frozen=True, kw_only=True)
class PartialPGD(Attack):
    """Steepest steps along the margin's gradient, on the values where it is largest at the image itself.

    Steps of other attacks in these norms move all values, be the gradient there as small as it may. A model that
    answers as a sturdier one as soon as values are lit that no image of its data lights, on a frame say, meets them all
    with that one. On an honest model it is weaker than they are. ``steps`` forward and backward passes an image.

    Attributes:
        part: Share of the values that are changed, in (0, 1]; first those that the box lets move as the gradient says.
        steps: Their number; each is 2.5 eps / steps long.

    Raises:
        UserError: An option out of range.
    """

    name: ClassVar[str] = "partial-pgd"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    targeting: ClassVar[Targeting] = "rows"
    averages_losses: ClassVar[bool] = True

    part: float = 0.5
    steps: int = 50

    def __post_init__(self) -> None:
        if not 0 < self.part <= 1:
            raise UserError(f"part must be in (0, 1], got {self.part}")
        if self.steps < 1:
            raise UserError(f"steps must be >= 1, got {self.steps}")

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Propose where the last step leads."""
        return climb(victim, x, y, threat, self.steps, lambda slope: _largest(slope, self.part))


def climb(
    victim: Victim, x: Tensor, y: Tensor, threat: Threat, steps: int, choose: Callable[[Tensor], Tensor]
) -> Tensor:
    """Steepest steps along the margin on some values, each 2.5 eps / steps long; images (N, ...) and labels (N,).

    Args:
        victim: The model.
        x: Images.
        y: Their labels.
        threat: The ball, in L-infinity or L2.
        steps: Number of steps.
        choose: Makes of the gradients at the images, without what leads out of the box, a mask of the values to change.

    Returns:
        Where the last step leads, like ``x``.
    """
    assert threat.eps is not None
    x_adv, chosen = x, torch.ones_like(x, dtype=torch.bool)
    for number in range(steps if len(x) else 0):
        slope = input_gradient(victim, x_adv, lambda logits: objective("margin", logits, y))[1].nan_to_num()
        slope = torch.where(((slope > 0) & (x_adv < 1)) | ((slope < 0) & (x_adv > 0)), slope, 0)
        if number == 0:
            chosen = choose(slope)
        way = steepest(torch.where(chosen, slope, 0), EXPONENT[threat.norm])
        x_adv = threat.project(x, x_adv + 2.5 * threat.eps / steps * way)
    return x_adv


def _largest(slope: Tensor, part: float) -> Tensor:
    """A share of the values of each gradient (N, ...), the largest, as a mask of the same shape."""
    flat = slope.abs().flatten(1)
    rows = flat.topk(max(1, round(part * flat.shape[1])), 1).indices
    return torch.zeros_like(flat, dtype=torch.bool).scatter(1, rows, True).view_as(slope)
