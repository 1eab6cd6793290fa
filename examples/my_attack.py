"""An attack of your own: signed gradient steps that carry on in the direction of the last (Dong et al. 2018).

    gauntlet run linf --defense standard --add-attack examples/my_attack.py:Momentum:steps=20

It proposes images and never judges them. Random numbers come from torch's generator, which is seeded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

import gauntlet


@dataclass(frozen=True, kw_only=True)
class Momentum(gauntlet.Attack):
    """Iterated fast gradient sign method with momentum."""

    name = "momentum"
    norms = ("linf",)

    steps: int = 10
    decay: float = 1.0

    def run(self, victim: gauntlet.Victim, x: torch.Tensor, y: torch.Tensor, threat: gauntlet.Threat) -> torch.Tensor:
        """One image for each of x (N, C, H, W) in [0, 1], at most ``threat.eps`` away."""
        x_adv, direction = x, torch.zeros_like(x)
        for _ in range(self.steps):
            _, grad, _ = gauntlet.input_gradient(victim, x_adv, lambda z: F.cross_entropy(z, y, reduction="none"))
            direction = self.decay * direction + grad / grad.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-20)
            x_adv = threat.project(x, x_adv + threat.eps / self.steps * 2 * direction.sign())
        return x_adv


APGD = gauntlet.Art("AutoProjectedGradientDescent", max_iter=20)
"""A declaration can be named as well: ``--add-attack examples/my_attack.py:APGD``."""
