"""Training on interval bounds of the worst case (Gowal et al. 2018, "IBP"): robustness that can be proved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.models.stages import Stages
from harness.training.defense import Loss, require
from harness.training.interval import Box, check, worst_margins
from harness.training.optim import descend
from harness.training.resuming import Part
from harness.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class IntervalBound(Trainer):
    """Minimise kappa J(z) + (1 - kappa) J(worst z), where the worst logits are interval bounds (eq. 12).

    In the first steps of training the loss is that on clean images. Then eps grows linearly from 0 to its value and
    kappa falls from 1 to its value (section 4), and both stay for the rest: at full eps from the start the bounds are
    so wide that training stays at chance. The worst logits are those of the last layer's differences to the true class
    (:func:`harness.training.interval.worst_margins`), in the L-infinity ball cut with [0, 1].

    The history's accuracy is that on clean images; ``bounded`` is the share of images that the bounds at the eps of the
    moment prove.

    Attributes:
        eps: L-infinity radius in pixel units that is grown to; ``None``: the data set's.
        kappa: Weight of the clean loss in the end, in [0, 1].
        warmup: Share of all steps before eps grows, in [0, 1]: 2,000 of the paper's 60,000 on MNIST.
        ramp: Share of all steps in which it grows, in [0, 1]: 10,000 of 60,000.
    """

    name = "interval-bound"
    summary = "training on interval bounds of the worst case, so that robustness can be proved"
    source = "Gowal et al. 2018"
    norm: ClassVar[str] = "linf"

    eps: float | None = None
    kappa: float = 0.5
    warmup: float = 1 / 30
    ramp: float = 1 / 6

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("kappa", "warmup", "ramp"):
            require(self, name, 0 <= getattr(self, name) <= 1, "in [0, 1]")

    def suits(self, architecture: str) -> None:
        """Raise a UserError for a network that there are no interval bounds for, with those that there are."""
        check(architecture, self.name)

    def scheduled(self, optimizer: torch.optim.Optimizer, steps: int) -> Callable[[], None]:
        """The learning rate, and how far training has come, which an optimizer carries to :meth:`step`."""
        advance = super().scheduled(optimizer, steps)
        done = 0

        def both() -> None:
            nonlocal done
            advance()
            optimizer.param_groups[0]["progress"] = done / steps
            done += 1

        return both

    def parts(self) -> Mapping[str, Part]:
        """Nothing: its optimizer carries how far training has come."""
        return {}

    def step(self, model: Stages, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Loss:
        """One update, with eps and kappa as far as training has come (all the way where nobody says)."""
        loss = self.objective(model, x, y, optimizer.param_groups[0].get("progress", 1.0))
        descend(optimizer, loss.value)
        return Loss(loss.value.detach(), loss.logits.detach(), loss.logged)

    def loss(self, model: Stages, x: Tensor, y: Tensor) -> Loss:
        """The objective at the end of training."""
        return self.objective(model, x, y, 1.0)

    def objective(self, model: Stages, x: Tensor, y: Tensor, progress: float) -> Loss:
        """The objective after a share of all steps, in [0, 1]."""
        assert self.eps is not None
        logits = model(x)
        clean = F.cross_entropy(logits, y)
        since = progress - self.warmup
        grown = 0.0 if since < 0 else min(since / self.ramp, 1.0) if self.ramp else 1.0
        if not grown:
            return Loss(clean, logits)
        eps, kappa = grown * self.eps, 1 - grown * (1 - self.kappa)
        worst = worst_margins(model, Box((x - eps).clamp(0, 1), (x + eps).clamp(0, 1)), y)
        bounded = (worst.argmax(1) == y).float().mean().detach()
        return Loss(kappa * clean + (1 - kappa) * F.cross_entropy(worst, y), logits, {"bounded": bounded})
