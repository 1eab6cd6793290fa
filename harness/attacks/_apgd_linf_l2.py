"""The schedule of Auto-PGD in L-infinity and L2 (Croce & Hein 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..threat import EXPONENT, Threat, magnitude, per_sample, steepest
from ._apgd_state import Front, Rows
from .per_image_rng import Draws


def checkpoints(steps: int) -> tuple[int, ...]:
    """Steps after which an image may be sent back (Croce & Hein 2020, section 3.3), the first of them 0."""
    percent, gap, found = 0, 22, []
    while percent * steps <= 100 * (steps - 1):
        found.append(-(-percent * steps // 100))  # rounded up
        percent, gap = percent + gap, max(gap - 3, 6)
    return tuple(found)


@dataclass
class Dense(Rows):
    """Step sizes and momentum in L-infinity and L2.

    Attributes:
        since: Number of steps at the last checkpoint.
        size: Length of a step, (N,).
        before: The points before the last step, like the images.
        last: Loss there, (N,).
        rises: Steps since the last checkpoint that raised the loss, (N,).
        halved: Images whose step was halved at the last checkpoint, bool (N,).
        mark: Their best loss then, (N,).
    """

    threat: Threat
    checks: tuple[int, ...]
    rho: float
    since: int
    size: Tensor
    before: Tensor
    last: Tensor
    rises: Tensor
    halved: Tensor
    mark: Tensor

    @classmethod
    def begin(cls, x: Tensor, threat: Threat, steps: int, rho: float) -> Self:
        """Steps of twice eps."""
        assert threat.eps is not None
        zero = x.new_zeros(len(x))
        return cls(
            threat,
            checkpoints(steps),
            rho,
            since=0,
            size=zero + 2 * threat.eps,
            before=x,
            last=zero + math.inf,
            rises=zero.clone(),
            halved=zero > 0,
            mark=zero + math.nan,  # nothing compares with it: no halving before the first step
        )

    @property
    def valid(self) -> Tensor:
        """Which images are within eps, bool (N,): all."""
        return torch.ones_like(self.halved)

    def start(self, x: Tensor, draws: Draws) -> Tensor:
        """A random point on the surface of the ball, clipped to the box."""
        assert self.threat.eps is not None
        shape = x.shape[1:]
        noise = 2 * draws.uniform(*shape) - 1 if self.threat.norm == "linf" else draws.normal(*shape)
        size = per_sample(magnitude(noise, self.threat.norm), x)
        return self.threat.project(x, x + self.threat.eps * noise / size.clamp_min(1e-12))

    def review(self, number: int, front: Front, hit: Tensor) -> None:
        """Count progress, and at a checkpoint halve steps and send images back; ``hit`` makes no difference here."""
        self.rises += front.loss > self.last
        if number in self.checks:
            slow = self.rises < self.rho * (number - self.since)
            stuck = ~self.halved & (front.best_loss <= self.mark)
            self.halved = slow | stuck
            self.size = torch.where(self.halved, self.size / 2, self.size)
            self.mark, self.since = front.best_loss.clone(), number
            self.rises = torch.zeros_like(self.rises)
            front.back(self.halved)

    def move(self, front: Front) -> Tensor:
        """The next points, like the images: a step, and a quarter of it given to the direction of the last one."""
        now = front.now
        step = per_sample(self.size, now) * steepest(front.grad, EXPONENT[self.threat.norm])
        ahead = self.threat.project(front.x, now + step)
        drifted = self.threat.project(front.x, now + 0.75 * (ahead - now) + 0.25 * (now - self.before))
        self.before, self.last = now, front.loss
        return torch.where(per_sample(front.placed, now), ahead, drifted)
