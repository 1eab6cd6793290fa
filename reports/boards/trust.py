"""Trust in a model over its seeds: the worst grade, and every check with its findings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from harness.trust.grade import Check, Grade, Power, Status

from ..drawing.text import ANSWERS
from .results import SuiteResults
from .rows import Entry

CHECK_COLUMNS: Final = (
    "suite", "dataset", "architecture", "defense", "seed", "norm", "check", "status", "grade", "finding", "remedy",
    "compared", "unit", "could", "least",
)  # fmt: skip
"""Columns of ``checks.csv``: a row per model, norm and check. ``compared`` things (``unit``) were looked at, ``could``
of them might have raised the question, and it takes ``least``."""


@dataclass(frozen=True)
class CheckSummary:
    """One check of an entry in one norm, over its seeds.

    Attributes:
        name: Of the check.
        title: The question.
        status: Of the seed with the worst grade.
        grade: The worst.
        findings: What was measured, with the seeds it was measured on ("" if all agree).
        remedy: What to do, "" where nothing is to be done.
        power: What the answer of that seed rests on, "" where the question was not asked.
    """

    name: str
    title: str
    status: Status
    grade: Grade
    findings: Sequence[tuple[str, str]]
    remedy: str
    power: str


@dataclass(frozen=True)
class TrustSummary:
    """Trust in an entry in one norm: the worst grade over its seeds and every check, failed ones first."""

    norm: str
    grade: Grade
    checks: Sequence[CheckSummary]
    remedies: Sequence[str]

    @property
    def reasons(self) -> list[str]:
        """Findings that lower the grade, the gravest first, each once."""
        low = [check for check in self.checks if check.grade != "A"]
        return list(dict.fromkeys(finding for check in low for _, finding in check.findings))

    def count(self, status: Status) -> int:
        """Checks with that status."""
        return sum(check.status == status for check in self.checks)


def trust_summary(results: SuiteResults, entry: Entry, norm: str) -> TrustSummary | None:
    """Trust in an entry; None where nothing is graded: no attack in that norm looked for the worst case."""
    graded = {}
    for key, pairs in entry.models.items():
        if (found := results.trust(key, norm)) is not None:
            graded[str(pairs[0].result.seed)] = found
    if not graded:
        return None
    by_name: dict[str, dict[str, Check]] = {}
    for seed, found in graded.items():
        for check in found.checks:
            by_name.setdefault(check.name, {})[seed] = check
    checks = sorted(
        (_over_seeds(checks) for checks in by_name.values()),
        key=lambda check: (-ord(check.grade), list(ANSWERS).index(check.status)),
    )
    facts = (results.board.health.get(key, {}).get(norm) for key in entry.models)
    remedies = dict.fromkeys(found.remedy for found in facts if found is not None and found.remedy)
    return TrustSummary(norm, max(found.grade for found in graded.values()), checks, list(remedies))


def check_rows(sections: Iterable[SuiteResults]) -> pd.DataFrame:
    """The frame behind ``checks.csv``: :data:`CHECK_COLUMNS`."""
    rows = [
        {
            **{name: getattr(pairs[0].result, name) for name in ("dataset", "architecture", "defense", "seed")},
            **{name: getattr(check, name) for name in ("status", "grade", "finding", "remedy")},
            **{"suite": section.board.suite, "norm": norm, "check": check.name},
            **_power(check.power),
        }
        for section in sections
        for entry in section.entries
        for key, pairs in entry.models.items()
        for norm in section.norms
        if (found := section.trust(key, norm)) is not None
        for check in found.checks
    ]
    return pd.DataFrame(rows, columns=list(CHECK_COLUMNS)).astype(
        dict.fromkeys(("compared", "could", "least"), "Int64")
    )


def _power(power: Power | None) -> dict[str, object]:
    if power is None:
        return {}
    could = power.compared if power.could is None else power.could
    return {"compared": power.compared, "unit": power.unit, "could": could, "least": power.least}


def _over_seeds(checks: Mapping[str, Check]) -> CheckSummary:
    """One check over seeds: the worst status, and every finding that is not just one of many passes."""
    worst = max(checks.values(), key=lambda check: (check.grade, check.status == "failed"))
    shown = {seed: check for seed, check in checks.items() if check.grade == worst.grade}
    seeds: dict[str, list[str]] = {}
    for seed, check in shown.items():
        seeds.setdefault(check.finding, []).append(seed)
    agree = len(seeds) == 1 and len(shown) == len(checks)
    return CheckSummary(
        name=worst.name,
        title=worst.title,
        status=worst.status,
        grade=worst.grade,
        findings=[("" if agree else "seed " + ", ".join(who), finding) for finding, who in seeds.items()],
        remedy=worst.remedy,
        power=str(worst.power or ""),
    )
