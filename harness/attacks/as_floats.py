"""Attacks on the floats of a model whose remedy shows attacks files instead."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..threat import Threat
from ..victims.victim import Victim
from .base import Access, Attack, Wrapped


@dataclass(frozen=True, kw_only=True)
class AsFloats(Wrapped):
    """Another attack, on images as they are where the victim's remedy rounds them.

    A model that answers files otherwise than the floats beside them is two models, and either may be the weaker one.
    """

    name: ClassVar[str] = "as-floats"

    @property
    def label(self) -> str:
        """The other attack's label, marked."""
        return f"floats:{self.attack.label}"

    @property
    def access(self) -> Access:
        """As the other."""
        return self.attack.access

    @property
    def everywhere(self) -> bool:
        """As the other."""
        return self.attack.everywhere

    @property
    def seeks_the_nearest(self) -> bool:
        """As the other."""
        return self.attack.seeks_the_nearest

    @property
    def needs_a_boundary(self) -> bool:
        """As the other."""
        return self.attack.needs_a_boundary

    @property
    def prepares(self) -> bool:
        """As the other."""
        return self.attack.prepares

    @property
    def preparation_samples(self) -> int:
        """As the other."""
        return self.attack.preparation_samples

    def prepare(self, victim: Victim, x: Tensor, y: Tensor) -> Attack:
        """Prepare the other attack on floats."""
        with victim.as_floats():
            return dataclasses.replace(self, attack=self.attack.prepare(victim, x, y))

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Propose what the other attack does on floats."""
        with victim.as_floats():
            return self.attack.run(victim, x, y, threat)
