"""Random perturbations: the control of every suite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..errors import UserError
from ..options import check_choices
from ..threat import Norm, Threat, magnitude, per_sample
from ..victims.victim import Victim
from .base import Access, Attack, Family, Kind, Targeting
from .line_search import CHUNK, log_odds


@dataclass(frozen=True, kw_only=True)
class Noise(Attack):
    """A random perturbation of length eps, clipped to the box (which shortens it at black and white pixels).

    Attributes:
        distribution: Of each component before scaling: standard ``"gaussian"`` (every direction alike in L2),
            ``"uniform"`` in [-1, 1], or ``"signs"`` (a corner of the L-infinity ball).
        draws: The best of so many draws is kept, by the victim's log-odds against y. One draw asks the victim nothing.
    """

    name: ClassVar[str] = "noise"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    family: ClassVar[Family] = "noise"
    targeting: ClassVar[Targeting] = "rows"

    distribution: Literal["gaussian", "uniform", "signs"] = "gaussian"
    draws: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        if self.draws < 1:
            raise UserError(f"draws must be >= 1, got {self.draws}")

    @property
    def access(self) -> Access:
        """Nothing for a single draw, scores to choose among several."""
        return "none" if self.draws == 1 else "scores"

    @torch.no_grad()
    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Propose one image for each."""
        best = self._draw(x, threat)
        if self.draws == 1 or not len(x):
            return best
        score = _scores(victim, best, y)
        for _ in range(self.draws - 1):
            again = self._draw(x, threat)
            new = _scores(victim, again, y)
            better = new > score
            best[better], score[better] = again[better], new[better]
        return best

    def _draw(self, x: Tensor, threat: Threat) -> Tensor:
        assert threat.eps is not None
        # drawn on the CPU: the same noise on every device
        if self.distribution == "gaussian":
            noise = torch.randn(x.shape)
        else:
            noise = 2 * torch.rand(x.shape) - 1
            noise = noise.sign() if self.distribution == "signs" else noise
        noise = noise.to(x)
        size = per_sample(magnitude(noise, threat.norm), x)
        return (x + noise * (threat.eps / size.clamp_min(1e-12))).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Gaussian(Attack):
    """Gaussian noise of a given standard deviation on every component, whatever length that has.

    For studies: papers give the spread, not the length, and do not clip (Lyu et al. 2015, tables IV, V and VII). It
    knows no eps and takes a threat without one. Unclipped images are none, so the referee notes how the victim labels
    them and counts no success (see :class:`~harness.attacks.unclipped.Unclipped`). An image that the victim gets wrong
    as it is may be right under noise, and so all images are judged.

    Attributes:
        std: Standard deviation in pixel units of [0, 1], positive.

    Raises:
        UserError: A standard deviation that is none.
    """

    name: ClassVar[str] = "gaussian"
    kind: ClassVar[Kind] = "minimal"
    access: ClassVar[Access] = "none"
    targeting: ClassVar[Targeting] = "rows"
    everywhere: ClassVar[bool] = True

    std: float
    clip: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.std) and self.std > 0):
            raise UserError(f"std must be positive and finite, got {self.std}")

    @property
    def boxed(self) -> bool:
        """It leaves [0, 1] unless it clips."""
        return self.clip

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """One noisy image for each."""
        noisy = x + self.std * torch.randn(x.shape).to(x)  # drawn on the CPU: the same noise on every device
        return noisy.clamp(0, 1) if self.clip else noisy


def _scores(victim: Victim, x: Tensor, y: Tensor) -> Tensor:
    parts = zip(victim.split(x, CHUNK), torch.split(x, CHUNK), torch.split(y, CHUNK), strict=True)
    return torch.cat([log_odds(view(images), labels) for view, images, labels in parts])
