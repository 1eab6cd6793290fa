"""Random perturbations: the control of every suite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..attack import Access, Attack, Family
from ..errors import UserError, unknown
from ..threat import Norm, Threat, magnitude, per_sample
from ..victim import Victim
from .line import CHUNK, log_odds


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

    distribution: Literal["gaussian", "uniform", "signs"] = "gaussian"
    draws: int = 1

    def __post_init__(self) -> None:
        if self.distribution not in ("gaussian", "uniform", "signs"):
            raise unknown("distribution", self.distribution, ("gaussian", "uniform", "signs"))
        if self.draws < 1:
            raise UserError(f"draws must be >= 1, got {self.draws}")

    @property
    def access(self) -> Access:
        """Nothing for a single draw, scores to choose among several."""
        return "none" if self.draws == 1 else "scores"

    @property
    def family(self) -> Family:
        """Noise, however many draws."""
        return "noise"

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


def _scores(victim: Victim, x: Tensor, y: Tensor) -> Tensor:
    parts = zip(torch.split(x, CHUNK), torch.split(y, CHUNK), strict=True)
    return torch.cat([log_odds(victim(images), labels) for images, labels in parts])
