"""Trust in a model over its seeds: the worst grade, and every check with its findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.trust.grade import Check, Grade, Status

from ..drawing.text import ANSWERS
from .results import SuiteResults
from .rows import Entry


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
