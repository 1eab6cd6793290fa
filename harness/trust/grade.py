"""The trust grade of an evaluation, from all health checks.

Everything here works on records alone: the pairs of a board, and the facts that :mod:`harness.trust.probe` measured on
the model. Each check has a page of its name in ``docs/health/``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from ..errors import describe
from ..metrics.pairs import Board
from .answer_checks import ANSWER_QUESTIONS
from .basis_checks import BASIS_QUESTIONS
from .checks import GRADES, WORST_CASE, Check, Evidence, Grade, Power, Question, Status
from .harvest_checks import HARVEST_QUESTIONS
from .probe_checks import FACT_QUESTIONS
from .record_checks import PAIR_QUESTIONS

__all__ = ["trust", "Trust", "Check", "Grade", "Power", "Status", "GRADES", "QUESTIONS"]

QUESTIONS: Final[tuple[Question, ...]] = (
    *BASIS_QUESTIONS,
    *PAIR_QUESTIONS,
    *HARVEST_QUESTIONS,
    *FACT_QUESTIONS,
    *ANSWER_QUESTIONS,
)
"""Every check, in the order in which equals are reported."""


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
        """Findings of the checks that lower the grade, the gravest first, each once."""
        return tuple(dict.fromkeys(check.finding for check in self.checks if check.grade != "A"))


def trust(board: Board, model: str, norm: str) -> Trust | None:
    """Put every question to the evaluation of one model in one norm.

    The grade is the worst that any answer leaves. A question that cannot be asked for want of something essential (a
    model that was not probed, a suite without black-box attacks) leaves a B at best: nobody looked. So does a
    comparison that could not have failed where it is the only one of its kind, and a number with little behind it: few
    images, a model at chance, attacks that were not asked for.

    Returns:
        None where there is nothing to grade: none of the model's pairs in that norm searches for its worst case (noise,
        transformations and transfers alone do not), so that the accuracy does not claim to be one.
    """
    evidence = Evidence(board, model, norm)
    if not evidence.of(WORST_CASE):
        return None
    checks = [question.ask(evidence) for question in QUESTIONS] + [_offered(point, evidence) for point in _points()]
    ordered = sorted(checks, key=lambda check: check.grade, reverse=True)
    return Trust(grade=ordered[0].grade, checks=tuple(ordered))


@cache
def _points() -> tuple[EntryPoint, ...]:
    """Checks that installed packages offer."""
    return tuple(sorted(entry_points(group="gauntlet.checks"), key=lambda point: point.name))


def _offered(point: EntryPoint, evidence: Evidence) -> Check:
    """The answer to a check of a package; one that cannot be asked leaves a B at best, as any that nobody asked."""
    try:
        question = point.load()
        answer = question.ask(evidence)
        if not isinstance(answer, Check):
            raise TypeError(f"answered {type(answer).__name__}, expected a gauntlet.Check")
    except Exception as error:  # a package may raise anything
        package = point.dist.name if point.dist is not None else point.module
        return Check(point.name, point.name, "skipped", "B", f"{point.name} of {package} raised {describe(error)}")
    return answer
