"""Training with Gaussian noise (Gu & Rigazio 2014, table 6, "GN, L1" and "GN, L*")."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from harness.models.stages import Stages
from harness.training.defense import Loss, require
from harness.training.noise import Where, hidden_noise, noisy
from harness.training.pretraining import Decoder, autoencoder_loss
from harness.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Trainer):
    """Fresh noise on every image in every step; at inference there is none.

    The noisy image is not clipped to [0, 1], as in the paper. A stage that is trained without labels becomes the
    encoder of a denoising autoencoder: it reconstructs the clean input from the noisy one.

    Attributes:
        sigma: Standard deviation in pixel units of [0, 1].
        where: On the ``"input"`` ("L1" in table 6) or on ``"all"`` of input and hidden representations ("L*"), with
            the same sigma.
    """

    name = "gaussian-noise"
    summary = "Gaussian noise on the training images, or on every layer"
    source = "Gu & Rigazio 2014, section 4.3"
    by_batch = True

    sigma: float = 0.1
    where: Where = field(default="input", metadata={"identity": "set"})

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "sigma", self.sigma >= 0, "at least 0")

    def loss(self, model: Stages, x: Tensor, y: Tensor) -> Loss:
        """Cross-entropy on noisy images."""
        logits = model(noisy(x, self.sigma), tap=hidden_noise(model, self.sigma, self.where))
        return Loss(F.cross_entropy(logits, y), logits)

    def reconstruction(self, model: Stages, stage: str, decoder: Decoder, x: Tensor) -> Tensor:
        """Cross-entropy of the clean input reconstructed from the noisy one."""
        return autoencoder_loss(decoder, model.stages[stage](noisy(x, self.sigma)), x)
