"""An autoencoder that maps adversarial images back to clean ones (Gu & Rigazio 2014, section 3.2, table 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from harness.attacks.lbfgs import LBFGS
from harness.datasets.registry import Dataset
from harness.threat import Threat
from harness.training.defense import require
from harness.training.reconstruction import Examples, Reconstruction
from harness.victims.victim import Victim

Target = Literal["random", "second", "least"]

CHUNK = 500
"""Images attacked at once."""


@dataclass(frozen=True, kw_only=True)
class AdversarialAutoencoder(Reconstruction):
    """Learn from adversarial images of the base to restore them, and from clean images to leave those alone.

    The images are attacked as in section 2.1, by box-constrained L-BFGS with one weight c for all, as those that the
    autoencoder is to clean are. Each epoch sees every training image clean and the attacked ones once
    more, as they were attacked. The paper does not say how many it attacks.

    Attributes:
        images: Training images that are attacked, drawn by the seed; at most all of them.
        target: The wrong class that an image is moved to, as of :class:`~harness.attacks.lbfgs.LBFGS`.
        error_rate: The share of 500 of them that the largest c has to mislead the base on, in (0, 1].
    """

    name = "adversarial-autoencoder"
    summary = "autoencoder before a trained model, trained on that model's adversarial images"
    source = "Gu & Rigazio 2014, section 3.2"

    images: int = 10_000
    target: Target = "random"
    error_rate: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "images", self.images >= 1, "at least 1")
        require(self, "error_rate", 0 < self.error_rate <= 1, "in (0, 1]")

    def examples(self, base: nn.Module, data: Dataset, device: torch.device | str) -> Examples:
        """Adversarial and clean training images, and the clean ones that both are to become."""
        clean = data.to_float(data.x_train.to(device))
        chosen = torch.randperm(len(clean))[: self.images].to(device)
        x, y = clean[chosen], data.y_train.to(device)[chosen]
        victim = Victim(base, classes=len(data.info.classes), device=device)
        attack = LBFGS(c="dataset", target=self.target, error_rate=self.error_rate).prepare(victim, x, y)
        parts = [
            attack.run(victim, *part, Threat("l2", None))
            for part in zip(torch.split(x, CHUNK), torch.split(y, CHUNK), strict=True)
        ]
        return Examples(torch.cat([*parts, clean]), torch.cat([x, clean]))
