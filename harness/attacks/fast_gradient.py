"""One closed-form steepest step: the p-norm family of Lyu et al. (2015), of which FGSM is a member."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..options import check_choices
from ..threat import EXPONENT, Norm, Threat, magnitude, per_sample, steepest
from ..victims.victim import Victim, input_gradient
from .base import Attack, Family, Kind, Targeting
from .line_search import CHUNK, diameter, first_crossing, log_odds

Objective = Literal["loss", "probability", "log-odds"]


@dataclass(frozen=True, kw_only=True)
class Gradient(Attack):
    """x + eps times the direction of unit p-norm along which the linearised objective grows fastest.

    Source: Lyu et al. 2015, eq. 3; p = inf is the fast gradient sign method (Goodfellow et al. 2015). One forward and
    one backward pass.

    Attributes:
        p: Exponent of the steepest direction in [1, inf]; ``None`` takes the threat's own norm. With another exponent
            the direction is scaled so that the step has length eps in the threat's norm.
        objective: ``"loss"`` is the cross-entropy of y, ``"probability"`` minus the probability of y (Huang et al.
            2015, section 3.1.1). Either gradient is a positive multiple of that of the ``"log-odds"`` against y, so the
            direction is the same; but in float32 the first two vanish on a saturated victim, the log-odds do not.
        mode: ``"budget"`` steps by eps; ``"minimal"`` by the shortest step along the same direction that changes the
            prediction (Lyu et al. 2015, section V.A).
    """

    name: ClassVar[str] = "gradient"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    family: ClassVar[Family] = "one-step"
    targeting: ClassVar[Targeting] = "rows"
    averages_losses: ClassVar[bool] = True

    p: float | None = None
    objective: Objective = "loss"
    mode: Kind = "budget"

    def __post_init__(self) -> None:
        if self.p is not None and not self.p >= 1:
            raise UserError(f"p must be in [1, inf], got {self.p}")
        check_choices(self)

    @property
    def kind(self) -> Kind:
        """As :attr:`mode` says."""
        return self.mode

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Propose one image for each; where the gradient is zero, the image itself."""
        if not len(x):
            return x
        direction = self.direction(victim, x, y, threat.norm)
        if self.mode == "minimal":
            return first_crossing(victim, x, y, direction, diameter(x, threat.norm))
        assert threat.eps is not None
        return (x + threat.eps * direction).clamp(0, 1)

    def direction(self, victim: Victim, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
        """Steepest direction at each image, like ``x``, of length 1 in ``norm``, or zero where the gradient is."""
        parts = []
        for view, images, labels in zip(
            victim.split(x, CHUNK), torch.split(x, CHUNK), torch.split(y, CHUNK), strict=True
        ):

            def objective(logits: Tensor, labels: Tensor = labels) -> Tensor:
                if self.objective == "log-odds":
                    return log_odds(logits, labels)
                if self.objective == "loss":
                    return F.cross_entropy(logits, labels, reduction="none")
                return -logits.softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)

            parts.append(input_gradient(view, images, objective)[1])
        own = EXPONENT[norm]
        p = own if self.p is None else self.p
        step = steepest(torch.cat(parts), p)
        if p == own:
            return step
        size = per_sample(magnitude(step, norm), x)
        return step / torch.where(size > 0, size, 1)


def adv_loss() -> Gradient:
    """Adv_Loss of Huang et al. 2015, section 4.1: along the gradient itself (section 3.1.1, L2)."""
    return Gradient(p=2.0, objective="probability")
