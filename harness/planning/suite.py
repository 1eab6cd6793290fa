"""Suites: attacks, budgets and sample sizes of a battery, as declarations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from .. import identity
from ..attacks.apgd import APGD
from ..attacks.base import Attack
from ..attacks.transfer import Ensemble, Transfer
from ..datasets.registry import DatasetInfo
from ..errors import UserError
from ..goal import Goal
from ..schema.eps import eps_text
from ..threat import Norm

STEPS: Final = 20
"""Of the APGD that images are crafted with where a suite transfers none, as in those that do."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A battery of attacks.

    Attributes:
        attacks: Per norm, the attacks asked for it.
        budgets: eps values per norm; ``None``: the data set's canonical ones.
        samples: Images, unless the user says otherwise.
        batch: Images a shard.
        goal: Targets that images have to be taken for; ``None``: any wrong label will do. The name ends with it, so
            that no table can hold targeted and untargeted results as those of one suite.
        sampled: Whether black-box attacks and second opinions of a cascade (:func:`harness.planning.cascade.links`) are
            asked about a tenth of what stands, and about the rest if that gives reason to
            (:attr:`harness.planning.specs.Cell.share`). The name says so likewise.
    """

    name: str
    summary: str
    attacks: Mapping[Norm, Sequence[Attack]]
    budgets: Mapping[Norm, tuple[float, ...]] | None = None
    samples: int = 1000
    batch: int = 250
    goal: Goal | None = None
    sampled: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.base + self._ending)
        for norm, attacks in self.attacks.items():
            for attack in attacks:
                if norm not in attack.supported_norms:
                    raise ValueError(f"suite {self.name}: {attack.label} has no {norm} form")

    @property
    def base(self) -> str:
        """Its name without goal and sampling."""
        return self.name.removesuffix(self._ending)

    @property
    def _ending(self) -> str:
        return f"{', sampled' if self.sampled else ''}{f', {self.goal}' if self.goal is not None else ''}"

    def at(self, budgets: Mapping[Norm, tuple[float, ...]]) -> Suite:
        """The battery in some norms at other budgets, ascending: another battery, under a name that says so.

        Raises:
            UserError: It has no attacks in one of the norms.
        """
        if missing := [norm for norm in budgets if norm not in self.attacks]:
            raise UserError(f"suite {self.name} attacks in {', '.join(self.attacks)}, not in {missing[0]}")
        kept = [norm for norm in self.attacks if norm in budgets]
        shown = ", ".join(f"{norm} {' '.join(map(eps_text, budgets[norm]))}" for norm in kept)
        attacks = {norm: self.attacks[norm] for norm in kept}
        grid = {norm: tuple(budgets[norm]) for norm in kept}
        return replace(self, name=f"{self.base} at {shown}", attacks=attacks, budgets=grid)

    def towards(self, goal: Goal) -> Suite:
        """The battery with targets: another one, under a name that says so.

        Raises:
            UserError: It has targets already.
        """
        if self.goal is not None:
            raise UserError(f"suite {self.name} has its targets already")
        return replace(self, name=self.base, goal=goal)

    def in_samples(self) -> Suite:
        """The battery with its black-box attacks asked about a sample first: another one, under a name that says so."""
        return replace(self, name=self.base, sampled=True)

    def crafted_on(self, ensemble: Ensemble) -> Suite:
        """The battery with its transfers crafted on other models: another one, under a name that says so.

        Where it has none in a norm that APGD attacks in, it gets APGD of :data:`STEPS` steps.
        """
        attacks: dict[Norm, tuple[Attack, ...]] = {}
        for norm, asked in self.attacks.items():
            crafting = [attack.attack for attack in asked if isinstance(attack, Transfer)]
            if not crafting and norm in APGD.norms:
                crafting = [APGD(steps=STEPS)]
            moved = {identity.key(one): Transfer(attack=one, defense=ensemble) for one in crafting}
            attacks[norm] = (*(attack for attack in asked if not isinstance(attack, Transfer)), *moved.values())
        return replace(self, name=f"{self.base} from {ensemble.label}", attacks=attacks)

    def grid(self, info: DatasetInfo) -> dict[Norm, tuple[float, ...]]:
        """Eps values per norm of this suite, on that data set."""
        budgets = self.budgets if self.budgets is not None else info.budgets
        missing = [norm for norm in self.attacks if norm not in budgets]
        if missing:
            raise UserError(f"suite {self.name}: no {missing[0]} budget for {info.name}")
        return {norm: tuple(budgets[norm]) for norm in self.attacks}
