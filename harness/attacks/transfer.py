"""Transfer attacks: images crafted on another model than the one that is judged."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from .. import identity
from ..errors import UserError
from ..models.ensemble import Average
from ..options import check_choices
from ..threat import Threat
from ..victims.victim import Victim
from .base import Access, Attack, Family, Wrapped


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model that images are crafted on: of the victim's data set and, unless said otherwise, of its architecture.

    Attributes:
        defense: Its :class:`harness.training.trainer.Trainer`.
        architecture: ``None``: the victim's.
        seed_offset: Added to the victim's seed, so that a victim can meet its own twin.
    """

    name: ClassVar[str] = "source"

    defense: Any
    architecture: str | None = None
    seed_offset: int = 0

    @property
    def label(self) -> str:
        """Architecture, defense and offset, as far as they are said."""
        words = [self.architecture or "", getattr(self.defense, "name", "standard")]
        return "/".join(filter(None, words)) + (f" seed +{self.seed_offset}" if self.seed_offset > 1 else "")


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Several models as one source of transfers.

    A victim that is one of them meets images of the others alone.

    Attributes:
        members: :class:`Source`, or a :class:`harness.planning.specs.ModelSpec` of a model that is there already.
        average: What is averaged. ``"logits"``: every attack meets the mean of the models' logits. ``"loss"``: an
            attack of ours that climbs a loss by gradients (:attr:`~.base.Attack.averages_losses`) climbs the mean of
            the models' losses, so that no model with large logits drowns the others.

    Raises:
        UserError: No member, or one twice; nothing that can be averaged.
    """

    name: ClassVar[str] = "ensemble"

    members: tuple[Any, ...]
    average: Average = "logits"

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.members:
            raise UserError("an ensemble has members: Ensemble(members=(Source(...), Source(...)))")
        if len({identity.key(member) for member in self.members}) < len(self.members):
            raise UserError("an ensemble has each of its members once")

    @property
    def label(self) -> str:
        """Its members, and what is averaged where that is the loss."""
        named = " + ".join(getattr(member, "label_alone", "") or member.label for member in self.members)
        return f"ensemble of {named}{', loss' if self.average == 'loss' else ''}" if len(self.members) > 1 else named


@dataclass(frozen=True, kw_only=True)
class Transfer(Wrapped):
    """Adversarials of a source model, shown to the victim as they are.

    A suite declares what is crafted and on which defense; the plan turns that into a model of the victim's data
    set, architecture and seed, and the runner hands *that* model to the attack. The images are crafted on all
    samples (also those that the source gets wrong), once, and serve every victim.

    Attributes:
        defense: The :class:`harness.training.trainer.Trainer` of the source model, or an :class:`Ensemble` of sources,
            which say the rest themselves.
        architecture: Of the source; ``None``: the victim's.
        seed_offset: Added to the victim's seed, so that a victim can meet its own twin.
        onward: Whether the attack, which would end where the source is fooled, goes on to its last step: between two
            networks of MNIST APGD broke 12 of 98 images so, not 11, at L-infinity 0.1, and 54 instead of 45 at 0.2.

    Raises:
        UserError: An attack that climbs no mean of losses on an ensemble that averages them.
    """

    name = "transfer"
    access: ClassVar[Access] = "none"
    family: ClassVar[Family] = "transfer"

    defense: Any
    architecture: str | None = None
    seed_offset: int = 0
    onward: bool = field(init=False, default=False, metadata={"identity": "set"})

    def __post_init__(self) -> None:
        object.__setattr__(self, "onward", self.attack.ends_early)
        if isinstance(self.defense, Ensemble) and self.defense.average == "loss" and not self.attack.averages_losses:
            raise UserError(
                f"{self.attack.label} climbs no loss of ours, so none can be averaged (apgd, fmn and gradient do): "
                "average logits"
            )

    @property
    def label(self) -> str:
        """The crafting attack's label, marked as transferred, the source's defense if it has one, and its network."""
        if isinstance(self.defense, Ensemble):
            return f"transfer:{self.attack.label}:{self.defense.label}"
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
