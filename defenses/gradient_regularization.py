"""Training at the worst perturbation of the linearised loss in a p-norm (Lyu et al. 2015)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.models.stages import Stages
from harness.threat import steepest
from harness.training.defense import Loss, require
from harness.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class GradientRegularization(Trainer):
    """Minimise L(x + epsilon), epsilon the maximiser of the linearised loss over the p-norm ball of radius sigma.

    epsilon is a constant for the update, and x + epsilon is not clipped to [0, 1]. The clean images have no part in the
    objective, and the accuracy in a history is that at x + epsilon. A step takes two forward and two backward passes,
    the first of which computes no gradient of a weight. Where the architecture drops units at random, either pass drops
    its own.

    Attributes:
        p: Norm of the perturbation, in [1, inf]: 2 is the paper's standard gradient regularization, inf the fast
            gradient sign method. At p = 1, components tied for the largest share sigma evenly.
        sigma: Length of the perturbation in that norm, in pixel units. The paper has 1 on MNIST and 2 on CIFAR-10 with
            p = 2, and 0.1 with p = inf.
        form: ``"perturbed"`` is eq. 3, what the paper trains with. ``"penalty"`` is eq. 4, which it approximates:
            L(x) + sigma ||grad L||_q with 1/p + 1/q = 1, a mean over the batch, by double backpropagation.
    """

    name = "gradient-regularization"
    summary = "training at the worst perturbation of the linearised loss in a p-norm"
    source = "Lyu et al. 2015, eqs. 3-4"
    by_batch = True

    p: float = field(default=2.0, metadata={"infinite": True})
    sigma: float = 1.0
    form: Literal["perturbed", "penalty"] = "perturbed"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "p", self.p >= 1, "in [1, inf]")  # NaN is not
        require(self, "sigma", self.sigma >= 0, "at least 0")
        # compiled passes cannot be differentiated by the image and then by the weights
        require(self, "compiled", not (self.compiled and self.form == "penalty"), "False for the penalty")

    def loss(self, model: Stages, x: Tensor, y: Tensor) -> Loss:
        """The objective of either form."""
        if self.form == "perturbed":
            logits = model(x + self.perturbation(model, x, y))
            return Loss(F.cross_entropy(logits, y), logits)
        x = x.detach().requires_grad_(True)
        logits = model(x)
        each = F.cross_entropy(logits, y, reduction="none")
        (grad,) = torch.autograd.grad(each.sum(), x, create_graph=True)
        return Loss(each.mean() + self.sigma * dual_norm(grad, self.p).mean(), logits)

    def perturbation(self, model: Stages, x: Tensor, y: Tensor) -> Tensor:
        """Epsilon of eq. 3 for each image, like ``x``, detached; zero where the gradient is."""
        x = x.detach().requires_grad_(True)
        # of the sum, so that the batch does not matter; asked for the images alone, autograd computes no weight's
        (grad,) = torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)
        return self.sigma * steepest(grad, self.p)


def dual_norm(grad: Tensor, p: float) -> Tensor:
    """||grad||_q of each sample with 1/p + 1/q = 1, (N,); its gradient is finite also where ``grad`` is zero.

    Args:
        grad: (N, ...).
        p: In [1, inf].

    Raises:
        ValueError: p below 1.
    """
    # <grad, r> with r the maximiser held fixed: its value is the dual norm, and by the envelope theorem so is its slope
    return (grad * steepest(grad.detach(), p)).flatten(1).sum(1)
