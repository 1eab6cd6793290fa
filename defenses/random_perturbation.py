"""Training with random perturbations of a given length: the control of adversarial training (Lee et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.models.stages import Stages
from harness.threat import magnitude, per_sample
from harness.training.defense import Loss, require
from harness.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class RandomPerturbation(Trainer):
    """Minimise alpha J(x) + (1 - alpha) J(x + r), with r of length eps in L2 and of random direction.

    As :class:`~defenses.fast_gradient.FastGradient` in L2 with the direction drawn, so that at equal eps the power of
    the perturbation is equal. x + r is not clipped to [0, 1].

    Attributes:
        alpha: Weight of the clean loss, in [0, 1].
        eps: L2 length of r in pixel units; ``None``: the data set's.
    """

    name = "random-perturbation"
    summary = "training with random perturbations of a given length"
    source = "Lee et al. 2017, section 4.4"
    by_batch = True

    alpha: float = 0.5
    eps: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "alpha", 0 <= self.alpha <= 1, "in [0, 1]")

    def loss(self, model: Stages, x: Tensor, y: Tensor) -> Loss:
        """The mixed objective."""
        assert self.eps is not None
        noise = torch.randn_like(x)
        noise *= self.eps / per_sample(magnitude(noise, "l2"), x)
        logits = model(x)
        perturbed = F.cross_entropy(model(x + noise), y)
        return Loss(self.alpha * F.cross_entropy(logits, y) + (1 - self.alpha) * perturbed, logits)
