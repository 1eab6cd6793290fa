"""Base of attacks: a declaration that proposes images and never judges them."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..threat import NORMS, Norm, Threat
from ..victims.victim import Victim

Kind = Literal["budget", "minimal"]
Access = Literal["gradients", "scores", "decisions", "none"]
Family = Literal["noise", "transformation", "transfer", "one-step", "iterated", "minimum-norm", "score", "decision"]
"""Sorts of attacks whose strengths can be held against one another: what health checks compare."""
Targeting = Literal["itself", "rows", "groups", "no"]
"""How an attack is led to targets; see :attr:`Attack.targeting`."""


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Base of every attack: a frozen declaration whose fields are its hyperparameters.

    It holds no model, no eps and no state. A subclass sets the class attributes, adds fields and writes
    :meth:`run`. All randomness comes from the global generators, which the caller seeds.

    A *budget* attack stays within ``threat.eps``. A *minimal* attack looks for the nearest adversarial and
    may land anywhere: it is called with ``threat.eps = None`` and one run serves every eps.
    """

    name: ClassVar[str]
    """Short public name, part of the identity."""
    version: ClassVar[int] = 1
    """Bumped by hand whenever the attack returns other images for the same declaration."""
    toolkit: ClassVar[str] = "gauntlet"
    norms: ClassVar[tuple[Norm, ...]] = NORMS
    """Norms it can be asked for."""
    averages_losses: ClassVar[bool] = False
    """Whether all its gradients are of :func:`harness.victims.victim.input_gradient`, which averages the losses of an
    ensemble's members."""
    ends_early: ClassVar[bool] = False
    """Whether it keeps to a budget and ends with an image as soon as that is fooled, but on a victim that draws."""

    @property
    def kind(self) -> Kind:
        """Whether it keeps a budget or minimises the distance."""
        return "budget"

    @property
    def access(self) -> Access:
        """What it needs of the victim."""
        return "gradients"

    @property
    def boxed(self) -> bool:
        """Whether it has to return images in [0, 1]. One that need not is judged, but never counts as a success."""
        return True

    @property
    def everywhere(self) -> bool:
        """Whether it is shown every image, also one that the model gets wrong as it is and might get right after."""
        return False

    @property
    def seeks_the_nearest(self) -> bool:
        """Whether a nearer adversarial that it met on its way is a better answer than the one that it returned.

        By default of every minimal attack. Not of one whose answer is defined otherwise, so that its distance is a
        measurement of its own; what it returns no adversarial for counts as met in either case.
        """
        return self.kind == "minimal"

    @property
    def family(self) -> Family:
        """Its sort: by default after what it needs of the victim, and how it treats the budget."""
        if self.access == "none":
            return "noise"
        if self.access != "gradients":
            return "score" if self.access == "scores" else "decision"
        return "iterated" if self.kind == "budget" else "minimum-norm"

    @property
    def loads(self) -> tuple[Callable[[], None], ...]:
        """Functions of ours, importable by name, that import what :meth:`run` needs and the declaration does not."""
        return ()

    @property
    def needs_a_boundary(self) -> bool:
        """Whether it walks along the decision boundary, which a model that draws does not have: suites leave it out."""
        return False

    @property
    def targeting(self) -> Targeting:
        """How it is led to a target for each image; see :func:`.targeted.propose`.

        * ``"itself"``: it looks at :attr:`~harness.victims.victim.Victim.target` where that is not None.
        * ``"rows"``: it knows nothing of targets, and asks about part of its images, or in parts, through
          ``victim.of(rows)`` alone.
        * ``"groups"``: it knows nothing of either, and is called for each target by itself.
        * ``"no"``: it has no targeted form; a targeted battery leaves it out, and names it.

        By default ``"groups"``, which is right for every attack; ``"no"`` for one that learns from training images.
        """
        return "no" if self.prepares else "groups"

    def for_classes(self, count: int) -> Attack | None:
        """What takes this attack's place in a suite where there are ``count`` classes, at least 2.

        By default the attack itself. Another declaration where this one needs more classes (a loss of three logits), or
        where its cost grows with their number; None where it cannot do without them: it is then left out.
        """
        return self

    def in_cascade(self) -> Attack:
        """What takes this attack's place in a cascade, by default itself.

        It may spare what is hopeless there, and go on where it breaks what all before it left.
        """
        return self

    @property
    def draws_as(self) -> Attack:
        """The attack that :meth:`in_cascade` takes the place of: random numbers and name of a pair are that one's."""
        return self

    @property
    def supported_norms(self) -> tuple[Norm, ...]:
        """Norms this very declaration can be asked for."""
        return self.norms

    @property
    def label(self) -> str:
        """Name for people: the attack's name and every field that is not at its default."""
        changed = ", ".join(f"{name}={_short(value)}" for name, value in self.changed().items())
        return f"{self.name}({changed})" if changed else self.name

    def changed(self) -> dict[str, Any]:
        """Fields that differ from their defaults."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default and field.metadata.get("identity", True)
        }

    @property
    def prepares(self) -> bool:
        """Whether :meth:`prepare` has something to do: by default whether there is one."""
        return type(self).prepare is not Attack.prepare

    @property
    def preparation_samples(self) -> int:
        """Most training images that :meth:`prepare` is shown."""
        return 1000

    @property
    def preparation(self) -> Attack:
        """Declaration of what :meth:`prepare` depends on: attacks for which it is the same share what they learn."""
        return self

    def prepare(self, victim: Victim, x: Tensor, y: Tensor) -> Attack:
        """Return a resolved copy after looking at training data; by default the attack itself.

        Called once for a model and threat, before any shard, with training images (N, C, H, W) in [0, 1] and labels
        (N,). Whatever is learned here must be held by the fields of the copy: a constant, or weights as a mapping of
        names to tensors, in a field that is left out of the identity.
        """
        return self

    def warm_up(self) -> None:
        """Import what :meth:`run` needs: before the clock starts, for it is no cost of the attack."""
        for load in self.loads:
            load()

    @abstractmethod
    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Propose adversarial images; see :meth:`__call__`."""

    def check(self, threat: Threat) -> None:
        """Raise ValueError if this attack cannot be asked for that threat."""
        if threat.norm not in self.supported_norms:
            raise ValueError(f"{self.label} has no {threat.norm} form; choose from {', '.join(self.supported_norms)}")
        if self.kind == "budget" and threat.eps is None:
            raise ValueError(f"{self.label} needs an eps")

    def __call__(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Propose one image for each given.

        Args:
            victim: The model under attack.
            x: Clean images, float32 (N, C, H, W) in [0, 1].
            y: True labels, int64 (N,).
            threat: Norm and, for a budget attack, eps.

        Returns:
            Proposals, shape and dtype of ``x``. Failures may be anything, also what is no tensor at all: the
            referee decides.

        Raises:
            ValueError: The attack has no such norm, or a budget attack got no eps.
        """
        self.check(threat)
        proposal = self.run(victim, x, y, threat)
        return proposal.detach() if isinstance(proposal, Tensor) else proposal


@dataclass(frozen=True, kw_only=True)
class Wrapped(Attack):
    """Base of attacks that use another: what is not said otherwise is as with that one.

    Attributes:
        attack: The other.
    """

    attack: Attack

    @property
    def kind(self) -> Kind:
        """As the other."""
        return self.attack.kind

    @property
    def boxed(self) -> bool:
        """As the other."""
        return self.attack.boxed

    @property
    def family(self) -> Family:
        """As the other."""
        return self.attack.family

    @property
    def loads(self) -> tuple[Callable[[], None], ...]:
        """As the other."""
        return self.attack.loads

    @property
    def targeting(self) -> Targeting:
        """As the other."""
        return self.attack.targeting

    @property
    def supported_norms(self) -> tuple[Norm, ...]:
        """As the other."""
        return self.attack.supported_norms

    def for_classes(self, count: int) -> Attack | None:
        """The same with what takes the other's place, None if nothing does."""
        fitted = self.attack.for_classes(count)
        if fitted is None or fitted is self.attack:
            return fitted and self
        return dataclasses.replace(self, attack=fitted)


def fits(label: str, patterns: Iterable[str]) -> bool:
    """Whether a label, with or without its settings, is one of some patterns or matches one (``*`` and ``?``)."""
    names = (label, label.partition("(")[0])  # it may hold brackets, which mean something in a pattern
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
