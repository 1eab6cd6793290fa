"""Adversarial training with projected gradient descent (Madry et al. 2018): today's yardstick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.models.stages import Stages
from harness.threat import EXPONENT, Threat, magnitude, per_sample, steepest
from harness.training.defense import Loss, require
from harness.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Pgd(Trainer):
    """Minimise the loss at the worst point that a few projected gradient steps find (eq. 2.1).

    Attributes:
        norm: ``"linf"`` or ``"l2"``.
        eps: Radius in pixel units; ``None``: the data set's.
        steps: Gradient steps per batch.
        rel_step_size: Step size as a multiple of eps / steps.
    """

    name = "pgd"
    summary = "adversarial training with projected gradient descent"
    source = "Madry et al. 2018"
    by_batch = True

    norm: Literal["linf", "l2"] = "linf"
    eps: float | None = None
    steps: int = 7
    rel_step_size: float = 2.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "steps", self.steps >= 1, "at least 1")
        require(self, "rel_step_size", self.rel_step_size > 0, "positive")

    def loss(self, model: Stages, x: Tensor, y: Tensor) -> Loss:
        """Cross-entropy at the perturbed images."""
        logits = model(self.perturb(model, x, y))
        return Loss(F.cross_entropy(logits, y), logits)

    def perturb(self, model: Stages, x: Tensor, y: Tensor) -> Tensor:
        """Images in the eps ball and in [0, 1] at which the loss is high, from a random start in the ball."""
        assert self.eps is not None
        threat = Threat(self.norm, self.eps)
        x_adv = threat.project(x, x + self._start(x))
        for _ in range(self.steps):
            x_adv.requires_grad_(True)
            # gradients of the images alone: none is computed for the weights
            (grad,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y), x_adv)
            step = self.rel_step_size * self.eps / self.steps * steepest(grad, EXPONENT[self.norm])
            x_adv = threat.project(x, x_adv.detach() + step)
        return x_adv

    def _start(self, x: Tensor) -> Tensor:
        assert self.eps is not None
        if self.norm == "linf":
            return self.eps * (2 * torch.rand_like(x) - 1)
        direction = torch.randn_like(x)
        # uniform in the ball: the radius of a d-dimensional ball grows with the d-th root
        radius = torch.rand(len(x), device=x.device) ** (1 / x[0].numel())
        return direction * per_sample(self.eps * radius / magnitude(direction, "l2"), x)
