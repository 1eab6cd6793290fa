"""Transfer attacks: images crafted on another model than the one that is judged."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..threat import Threat
from ..victims.victim import Victim
from .base import Access, Attack, Family, Wrapped


@dataclass(frozen=True, kw_only=True)
class Transfer(Wrapped):
    """Adversarials of a source model, shown to the victim as they are.

    A suite declares what is crafted and on which defense; the plan turns that into a model of the victim's data
    set, architecture and seed, and the runner hands *that* model to the attack. The images are crafted on all
    samples (also those that the source gets wrong), once, and serve every victim.

    Attributes:
        defense: The :class:`harness.training.trainer.Trainer` of the source model.
        architecture: Of the source; ``None``: the victim's.
        seed_offset: Added to the victim's seed, so that a victim can meet its own twin.
    """

    name = "transfer"
    access: ClassVar[Access] = "none"
    family: ClassVar[Family] = "transfer"

    defense: Any
    architecture: str | None = None
    seed_offset: int = 0

    @property
    def label(self) -> str:
        """The crafting attack's label, marked as transferred, the source's defense if it has one, and its network."""
        defense = getattr(self.defense, "name", "standard")
        named = [f":{defense}"] if defense != "standard" else []
        return "".join(
            [f"transfer:{self.attack.label}", *named, *([f":{self.architecture}"] if self.architecture else [])]
        )

    @property
    def prepares(self) -> bool:
        """As the crafting attack."""
        return self.attack.prepares

    @property
    def preparation_samples(self) -> int:
        """As the crafting attack."""
        return self.attack.preparation_samples

    def prepare(self, victim: Victim, x: Tensor, y: Tensor) -> Attack:
        """Prepare the crafting attack on the source model."""
        return dataclasses.replace(self, attack=self.attack.prepare(victim, x, y))

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Craft on ``victim``, which is the source model here."""
        return self.attack.run(victim, x, y, threat)


def inner(attack: Attack) -> Attack:
    """The attack that is really run: what a transfer crafts with, or the attack itself."""
    return attack.attack if isinstance(attack, Transfer) else attack
