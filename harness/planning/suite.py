"""Suites: attacks, budgets and sample sizes of a battery, as declarations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..attacks.base import Attack
from ..datasets.registry import DatasetInfo
from ..errors import UserError
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

    def grid(self, info: DatasetInfo) -> dict[Norm, tuple[float, ...]]:
        """Eps values per norm of this suite, on that data set."""
        budgets = self.budgets if self.budgets is not None else info.budgets
        missing = [norm for norm in self.attacks if norm not in budgets]
        if missing:
            raise UserError(f"suite {self.name}: no {missing[0]} budget for {info.name}")
        return {norm: tuple(budgets[norm]) for norm in self.attacks}
