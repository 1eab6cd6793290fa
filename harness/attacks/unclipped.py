"""A single attack step without clipping to [0, 1], as some papers take it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..errors import UserError
from ..threat import Threat
from ..victims.victim import Victim
from .alpha import Alpha
from .base import Targeting, Wrapped
from .fast_gradient import Gradient
from .line_search import diameter, first_crossing


@dataclass(frozen=True, kw_only=True)
class Unclipped(Wrapped):
    """x + eps times the direction of a budget attack, wherever that is; or the first crossing along a gradient.

    For studies: the papers perturb raw images and never say that they clip. What lies outside [0, 1] is no image, so
    the referee notes how the victim labels it and counts none of it as a success: the pair has the status
    ``"unclipped"``, no robust accuracy and no part in a worst case.

    Attributes:
        attack: Where the direction is from: an :class:`Alpha` with ``mode="budget"``, or a :class:`Gradient` of either
            mode. With ``"minimal"`` the shortest step along the gradient that changes the prediction is looked for, at
            most as long as the diagonal of the box.

    Raises:
        UserError: The attack is none of these.
    """

    name: ClassVar[str] = "unclipped"
    boxed: ClassVar[bool] = False
    targeting: ClassVar[Targeting] = "no"

    attack: Alpha | Gradient

    def __post_init__(self) -> None:
        budget = isinstance(self.attack, Alpha) and self.attack.kind == "budget"
        if not (budget or isinstance(self.attack, Gradient)):
            label = getattr(self.attack, "label", self.attack)
            raise UserError(f"unclipped: attack must be a Gradient, or an Alpha with mode='budget', got {label}")

    @property
    def label(self) -> str:
        """That attack's label, marked."""
        return f"unclipped:{self.attack.label}"

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Propose one point for each image; where there is no direction, the image itself."""
        if not len(x):
            return x
        direction = self.attack.direction(victim, x, y, threat.norm)
        if self.kind == "minimal":
            return first_crossing(victim, x, y, direction, diameter(x, threat.norm), boxed=False)
        assert threat.eps is not None
        return x + threat.eps * direction
