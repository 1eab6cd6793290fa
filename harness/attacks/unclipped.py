"""One step of a paper's attack as the paper takes it: not clipped to [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..attack import Attack, Family
from ..errors import UserError
from ..threat import Norm, Threat
from ..victim import Victim
from .alpha import Alpha
from .gradient import Gradient


@dataclass(frozen=True, kw_only=True)
class Unclipped(Attack):
    """x + eps times the direction of a budget attack, wherever that is.

    For studies: the papers perturb raw images and never say that they clip. What lies outside [0, 1] is no image, so
    the referee notes how the victim labels it and counts none of it as a success: the pair has the status
    ``"unclipped"``, no robust accuracy and no part in a worst case.

    Attributes:
        attack: Where the direction is from; its ``mode`` has to be ``"budget"``.

    Raises:
        UserError: The attack is none of one budget step.
    """

    name: ClassVar[str] = "unclipped"

    attack: Alpha | Gradient

    def __post_init__(self) -> None:
        if not isinstance(self.attack, Alpha | Gradient) or self.attack.kind != "budget":
            label = getattr(self.attack, "label", self.attack)
            raise UserError(f"unclipped: attack must be an Alpha or Gradient with mode='budget', got {label}")

    @property
    def boxed(self) -> bool:
        """It may leave [0, 1]."""
        return False

    @property
    def family(self) -> Family:
        """As the attack that gives the direction."""
        return self.attack.family

    @property
    def supported_norms(self) -> tuple[Norm, ...]:
        """As the attack that gives the direction."""
        return self.attack.supported_norms

    @property
    def label(self) -> str:
        """That attack's label, marked."""
        return f"unclipped:{self.attack.label}"

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Propose one point for each image; where there is no direction, the image itself."""
        if not len(x):
            return x
        assert threat.eps is not None
        return x + threat.eps * self.attack.direction(victim, x, y, threat.norm)
