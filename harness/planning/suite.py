"""Suites: attacks, budgets and sample sizes of a battery, as declarations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..attacks.base import Attack
from ..datasets.registry import DatasetInfo
from ..errors import UserError
from ..schema.eps import eps_text
from ..threat import Norm


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A battery of attacks.

    Attributes:
        attacks: Per norm, the attacks asked for it.
        budgets: eps values per norm; ``None``: the data set's canonical ones.
        samples: Images, unless the user says otherwise.
        batch: Images a shard.
    """

    name: str
    summary: str
    attacks: Mapping[Norm, Sequence[Attack]]
    budgets: Mapping[Norm, tuple[float, ...]] | None = None
    samples: int = 1000
    batch: int = 250

    def __post_init__(self) -> None:
        for norm, attacks in self.attacks.items():
            for attack in attacks:
                if norm not in attack.supported_norms:
                    raise ValueError(f"suite {self.name}: {attack.label} has no {norm} form")

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
        return replace(self, name=f"{self.name} at {shown}", attacks=attacks, budgets=grid)

    def grid(self, info: DatasetInfo) -> dict[Norm, tuple[float, ...]]:
        """Eps values per norm of this suite, on that data set."""
        budgets = self.budgets if self.budgets is not None else info.budgets
        missing = [norm for norm in self.attacks if norm not in budgets]
        if missing:
            raise UserError(f"suite {self.name}: no {missing[0]} budget for {info.name}")
        return {norm: tuple(budgets[norm]) for norm in self.attacks}
