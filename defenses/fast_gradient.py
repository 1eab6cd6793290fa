"""Adversarial training with the fast gradient method (Goodfellow et al. 2015; Lee et al. 2017, eqs. 1-4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.models.stages import Stages
from harness.threat import EXPONENT, steepest
from harness.training.defense import Loss, require
from harness.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class FastGradient(Trainer):
    """Minimise alpha J(x) + (1 - alpha) J(x + eta), with eta one steepest step of size eps.

    eta = eps sign(grad J) in L-infinity (Lee et al. eqs. 1 and 2), eps grad J / ||grad J||_2 in L2 (eqs. 3 and
    4). eta is a constant for the update, and x + eta is not clipped to [0, 1], as in the papers.

    Attributes:
        alpha: Weight of the clean loss, in [0, 1].
        norm: ``"linf"`` or ``"l2"``.
        eps: Size of the step in pixel units; ``None``: the data set's.
    """

    name = "fast-gradient"
    summary = "adversarial training with one gradient step"
    source = "Goodfellow et al. 2015; Lee et al. 2017, eqs. 1-4"
    by_batch = True

    alpha: float = 0.5
    norm: Literal["linf", "l2"] = "linf"
    eps: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "alpha", 0 <= self.alpha <= 1, "in [0, 1]")

    def loss(self, model: Stages, x: Tensor, y: Tensor) -> Loss:
        """The mixed objective; one clean forward pass serves the objective and the step."""
        assert self.eps is not None
        x = x.requires_grad_(True)
        logits = model(x)
        clean = F.cross_entropy(logits, y)
        (grad,) = torch.autograd.grad(clean, x, retain_graph=True)
        eta = self.eps * steepest(grad, EXPONENT[self.norm])
        adversarial = F.cross_entropy(model(x.detach() + eta), y)
        return Loss(self.alpha * clean + (1 - self.alpha) * adversarial, logits)
