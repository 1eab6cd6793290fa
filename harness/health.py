"""Can a number be believed? Automated checks of a model's evaluation, and the trust grade that follows.

Everything here works on records alone: the pairs of a board, and the facts that :mod:`harness.probe` measured on the
model. Each check has a page of its name in ``docs/health/``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Status = Literal["passed", "remedied", "failed", "skipped"]
Grade = Literal["A", "B", "C", "D"]

GRADES: Final[tuple[Grade, ...]] = ("A", "B", "C", "D")
"""Best first. A: nothing speaks against the number. B: small reserves. C: it stands with a reserve that must be read.
D: not to be believed, and not ranked."""


@dataclass(frozen=True)
class Check:
    """One question put to an evaluation, and its answer.

    Attributes:
        name: Public name, also of its page in ``docs/health/``.
        title: The question in a few words.
        status: ``"passed"``; ``"remedied"`` (the model has the fault, the attacks were given the remedy);
            ``"failed"``; ``"skipped"`` (the suite has not what it takes to ask).
        grade: The best grade that this answer leaves.
        finding: What was measured, in one clause with numbers.
        remedy: What to do about it, "" where nothing is to be done.
    """

    name: str
    title: str
    status: Status
    grade: Grade
    finding: str
    remedy: str = ""


@dataclass(frozen=True)
class Trust:
    """How far a model's accuracy under a suite's attacks in one norm can be believed.

    Attributes:
        grade: The worst of the checks' grades.
        checks: Every check, those that lower the grade first.
    """

    grade: Grade
    checks: tuple[Check, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Findings of the checks that lower the grade, the gravest first."""
        return tuple(check.finding for check in self.checks if check.grade != "A")
