"""Values of a study, printed and measured: tables of them, how they are written, what verdicts mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from harness.studies.findings import Finding, Verdict

from ..drawing.text import MISSING, is_number, number

MARKS: Final[Mapping[Verdict, str]] = {
    "reproduced": "\u2713",
    "same direction": "\u2248",
    "not reproduced": "\u2717",
    "not run": MISSING,
    "": "",
}
"""What stands beside a number, for eyes; the verdict in words is its title."""

MEANINGS: Final[Mapping[str, str]] = {
    "reproduced": "the printed value is met within the stated tolerance, or twice that where the 95 % interval reaches "
    "as far; of a claim: it holds beyond the interval",
    "same direction": "the value differs, but the claims about it hold; of a claim: it holds on average, and the "
    "interval reaches the other side",
    "not reproduced": "neither",
    "not run": "nothing was measured in this profile",
}


@dataclass(frozen=True)
class ValueTable:
    """A table: findings by row and column, in the order of the paper."""

    rows: Sequence[str]
    columns: Sequence[str]
    cells: Mapping[tuple[str, str], Finding]


def amount(value: Any, unit: str, digits: int = 3) -> str:
    """A value as it is printed: one decimal (two below 10) for percent, significant digits otherwise."""
    if not is_number(value):
        return MISSING
    if unit == "%":
        return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
    return number(value, digits)


def span(finding: Finding) -> str:
    """The 95 % interval, "" where there is none."""
    found = finding.estimate
    if not (is_number(found.low) and is_number(found.high)):
        return ""
    return f"[{amount(found.low, finding.unit)}, {amount(found.high, finding.unit)}]"
