"""Values of a study, printed and measured: tables of them, how they are written, what verdicts mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from harness.studies.deciding import FEW, MOST_SEEDS
from harness.studies.findings import Finding, Verdict
from harness.studies.study import Quoted

from ..drawing.text import MISSING, is_number, number

MARKS: Final[Mapping[Verdict, str]] = {
    "reproduced": "\u2713",
    "close": "\u2248",
    "undecided": "?",
    "not reproduced": "\u2717",
    "held": "\u2713",
    "refuted": "\u2717",
    "not judged": MISSING,
    "not run": MISSING,
    "": "",
}
"""What stands beside a number, for eyes; the verdict in words is its title."""

VALUE_MEANINGS: Final[Mapping[Verdict, str]] = {
    "reproduced": "measured within the tolerance of the printed value",
    "close": "the interval excludes what would stand there without the effect, and the printed value is the nearer of "
    "the two; no reproduction",
    "undecided": "the interval is wider than the tolerance, or holds both the printed value and the one without the "
    "effect",
    "not reproduced": "none of these",
    "not run": "not measured in this profile",
}

CLAUSE_MEANINGS: Final[Mapping[Verdict, str]] = {
    "held": "the interval of the difference lies on the claim's side",
    "undecided": "it holds zero",
    "refuted": "it lies on the other side",
    "not run": "not measured in this profile",
}

MEANINGS: Final[Mapping[Verdict, str]] = {
    **CLAUSE_MEANINGS,
    **VALUE_MEANINGS,
    "undecided": "nothing is decided",
    "not judged": "measured on other data than the paper's",
}

INTERVALS: Final = (
    "95 %, over training seeds (Student's t) and images (Wilson's for shares) together; paired by seed and image where "
    "both sides saw the same images"
)

DECIDING: Final = (
    "The fewest seeds, and the images, with which the intervals would decide if means and spreads stay as they are. "
    f"Out of reach: not with {MOST_SEEDS} seeds and the whole test set. Not foreseen: it was not run, or the record "
    f"keeps no spread over its seeds; {FEW} seeds are asked for. Each run writes a page of its own."
)

BASES: Final[Mapping[str, str]] = {
    "construction": "true by construction",
    "repeat": "repeats of another cell",
    "fitted": "fitted to print",
}
"""Why meeting a printed value is no evidence."""


@dataclass(frozen=True)
class ValueTable:
    """A table: findings and quoted cells by row and column, in the order of the paper."""

    rows: Sequence[str]
    columns: Sequence[str]
    cells: Mapping[tuple[str, str], Finding]
    quoted: Mapping[tuple[str, str], Quoted]


def amount(value: Any, unit: str, digits: int = 3) -> str:
    """A value as it is printed: one decimal (two below 10) for percent, significant digits otherwise."""
    if not is_number(value):
        return MISSING
    if unit == "%":
        return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
    return number(value, digits)


def span(finding: Finding) -> str:
    """The 95 % interval, "" where there is none."""
    return between(finding.low, finding.high, finding.unit)


def margin(finding: Finding) -> str:
    """By how much a clause holds, with its interval; "" of what was not measured."""
    if not is_number(finding.margin):
        return ""
    ends = between(finding.margin_low, finding.margin_high, finding.unit)
    return f"by {amount(finding.margin, finding.unit)}{finding.unit} {ends}".rstrip()


def between(low: Any, high: Any, unit: str) -> str:
    """An interval, "" where there is none."""
    return f"[{amount(low, unit)}, {amount(high, unit)}]" if is_number(low) and is_number(high) else ""
