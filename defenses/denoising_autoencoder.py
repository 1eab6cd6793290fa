"""An autoencoder that removes Gaussian noise (Gu & Rigazio 2014, section 3.3, table 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.training.defense import require
from harness.training.reconstruction import Reconstruction


@dataclass(frozen=True, kw_only=True)
class DenoisingAutoencoder(Reconstruction):
    """Learn to remove noise, knowing nothing of adversarial images; the base takes no part in training.

    Noise is drawn anew for each pixel of each batch and, as in the paper, not clipped to [0, 1].

    Attributes:
        sigma: Standard deviation in pixel units of [0, 1]; the paper has 0.1 and 0.5.
    """

    name = "denoising-autoencoder"
    summary = "autoencoder before a trained model, trained to remove Gaussian noise"
    source = "Gu & Rigazio 2014, section 3.3"

    sigma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "sigma", self.sigma >= 0, "at least 0")

    def corrupt(self, x: Tensor) -> Tensor:
        """The images with fresh noise."""
        return x + self.sigma * torch.randn_like(x)
