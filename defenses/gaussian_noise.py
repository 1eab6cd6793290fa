"""Training on images with Gaussian noise (Gu & Rigazio 2014, table 6, "GN, L1")."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.models import Stages
from harness.training import Loss, Trainer, require


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Trainer):
    """Fresh noise on every image in every step; at inference there is none.

    The noisy image is not clipped to [0, 1], as in the paper.

    Attributes:
        sigma: Standard deviation in pixel units of [0, 1].
    """

    name = "gaussian-noise"
    summary = "Gaussian noise on the training images"
    source = "Gu & Rigazio 2014, section 4.3"

    sigma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "sigma", self.sigma >= 0, "at least 0")

    def loss(self, model: Stages, x: Tensor, y: Tensor) -> Loss:
        """Cross-entropy on noisy images."""
        logits = model(x + self.sigma * torch.randn_like(x))
        return Loss(F.cross_entropy(logits, y), logits)
