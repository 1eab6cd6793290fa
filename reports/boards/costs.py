"""The cost of each attack: passes, seconds and success rate, means over models and seeds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..drawing.text import is_number
from .results import SuiteResults
from .rows import AttackCost, Column, Record


def costs(results: SuiteResults) -> list[AttackCost]:
    """A row per attack and norm, cheapest first within a norm."""
    groups: dict[tuple[Column, str], list[Record]] = {}
    for records in results.records.values():
        for record in records:
            groups.setdefault((record.column, record.pair.result.norm), []).append(record)
    rows = [
        AttackCost(
            column=attack,
            access=str(records[0].pair.result.access or ""),
            kind=str(records[0].pair.result.kind or ""),
            norm=norm,
            pairs=len(records),
            forwards=mean(record.pair.result.forwards for record in records),
            backwards=mean(record.pair.result.backwards for record in records),
            seconds=mean(record.pair.result.seconds for record in records),
            success_rate=mean(record.summary["success_rate"] for record in records if record.met is None),
        )
        for (attack, norm), records in groups.items()
    ]
    passes = {row: float(np.nan_to_num(row.forwards + row.backwards)) for row in rows}
    return sorted(rows, key=lambda row: (results.norms.index(row.norm), passes[row], row.column.name))


def mean(values: Iterable[Any]) -> float:
    """Mean of what is a number, NaN if nothing is."""
    known = [float(value) for value in values if is_number(value)]
    return float(np.mean(known)) if known else float("nan")
