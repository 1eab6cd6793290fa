"""Health check on what attacks met on their way and did not return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..metrics.pairs import Pair
from .checks import WORST_CASE, Check, Evidence, Grade, Power, Question, grade_of, least, listed, percent

LOST: Final[Mapping[Grade, float]] = {"B": 0.01}
"""Share of the images that one of our own attacks may find broken and not return. On sound networks they lose none."""

OWN: Final = "gauntlet"


def _lost(question: Question, evidence: Evidence) -> Check:
    """A toolkit that loses what it finds is named and costs nothing: what was met counts, so the number is right."""
    looked = [pair for pair in evidence.pairs if pair.result.harvest is not None]
    if not looked:
        return question.skipped("nobody looked at what attacks met on their way")
    lost = {id(pair): pair.result.harvest.lost for pair in looked if pair.result.harvest is not None}
    n = len(evidence.images)
    worst = max(looked, key=lambda pair: lost[id(pair)])
    ours = [pair for pair in looked if pair.result.toolkit == OWN and pair.result.family in WORST_CASE]
    grade: Grade = max((grade_of(lost[id(pair)], n, LOST) for pair in ours), default="A")
    blind = [pair for pair in looked if _unseen(pair) > 0.5]
    more = f"; most of what {listed(pair.result.attack for pair in blind)} met could not be told" if blind else ""
    power = Power(n, least(n, LOST))
    if not lost[id(worst)]:
        return question.graded(grade, f"none of {len(looked)} attacks lost an adversarial that it met{more}", power)
    if grade != "A":
        worst = max(ours, key=lambda pair: lost[id(pair)])
    names = listed(pair.result.attack for pair in sorted(looked, key=lambda pair: -lost[id(pair)]) if lost[id(pair)])
    count = lost[id(worst)]
    return question.graded(
        grade,
        f"{worst.result.attack} did not return the adversarials that it met of {percent(count / n)} ({count} of {n}), "
        f"which count all the same (attacks that lost some: {names}){more}",
        power,
    )


def _unseen(pair: Pair) -> float:
    """Share of a pair's forward passes whose images are not known."""
    attacked = max(int(pair.columns["attacked"].sum()), 1)
    asked = pair.result.forwards * attacked
    return pair.result.harvest.unattributed / asked if pair.result.harvest is not None and asked else 0.0


HARVEST_QUESTIONS: Final = (
    Question(
        "found-and-lost",
        "Does every attack return what it finds?",
        "The number is right; the attack named is ours, so please report it with the command that ran.",
        _lost,
    ),
)
