"""A defense of your own: training on convex mixtures of two images (Zhang et al. 2018, mixup).

    gauntlet run quick --defense examples/my_defense.py:Mixup --defense examples/my_defense.py:Mixup:alpha=1

Fields are hyperparameters; they are set after the colon. Everything that plain training can be told (epochs, lr, ...)
can be said there too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

import gauntlet


@dataclass(frozen=True, kw_only=True)
class Mixup(gauntlet.Trainer):
    """Cross-entropy on mixtures of two images and of their labels."""

    name = "mixup"
    summary = "training on convex mixtures of images"

    alpha: float = 0.2

    def loss(self, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> gauntlet.Loss:
        """The objective on one batch: x (N, C, H, W) in [0, 1], y (N,)."""
        share = float(torch.distributions.Beta(self.alpha, self.alpha).sample())
        other = torch.randperm(len(x))
        logits = model(share * x + (1 - share) * x[other])
        value = share * F.cross_entropy(logits, y) + (1 - share) * F.cross_entropy(logits, y[other])
        return gauntlet.Loss(value, logits)
