"""Health checks on results: attacks compared with one another, image by image."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from itertools import pairwise
from typing import Final

import numpy as np

from ..metrics.pairs import FLAGS, Bools, Pair, found_within
from .checks import (
    BLACK_BOX,
    FEW,
    GRADIENT_FREE,
    ITERATED,
    ONE_STEP,
    WHITE_BOX,
    WORST_CASE,
    Check,
    Evidence,
    Grade,
    Power,
    Question,
    accuracies,
    concerns,
    grade_of,
    least,
    listed,
    percent,
    threat_text,
)

ALONE: Final[Mapping[Grade, float]] = {"C": 0.01, "D": 0.05}
"""Share of images that the weaker sort of attack may break alone. On sound networks it breaks 0 to 0.5 % alone; more
says that the stronger sort fails on this model, also on images where no weaker attack came to help."""

PROBED_ALONE: Final[Mapping[Grade, float]] = {"C": 0.02, "D": 0.05}
"""Accuracy that the probe's iterated attack may leave beyond its single step: the balance of images lost and gained, on
a hundred of them. Sound networks show 0.02 at most."""

RISE: Final[Mapping[Grade, float]] = {"C": 0.02}
"""Accuracy that an attack may lose from one eps to a larger one. A search that stops at random may miss an image or
two; no D, because what it found within the smaller eps counts at the larger one too."""

LOST_BY_ROUNDING: Final[Mapping[Grade, float]] = {"B": 0.5}
"""Share of the broken images whose adversarials may vanish in 8-bit files. Beyond a half the number speaks of images
that mostly cannot be stored; it is the honest number for this threat all the same, hence no more than a B."""

SEARCHES: Final = frozenset({"iterated", "score", "decision"})
"""Families that could return at a larger eps what they found at a smaller one. A single step could not."""


def _alone(question: Question, evidence: Evidence, weak: Collection[str], strong: Collection[str], what: str) -> Check:
    """Images that only the weaker sort of attack broke, at the eps with most of them.

    In a cascade an attack did not meet what earlier ones broke: such images say nothing about it.
    """
    fewer, better = evidence.of(weak), [pair for pair in evidence.of(strong) if not pair.result.failed]
    if not fewer:
        return question.skipped(f"no {what} ran", "A" if set(weak) <= {"transfer"} else "B", _ADD.format(what))
    n = len(evidence.images)
    found: list[tuple[Grade, int, float]] = []
    unknown = could = 0
    for eps in evidence.grid:
        here = [pair for pair in better if pair.result.eps in (None, eps)]
        if not here:
            continue
        missed = evidence.lost(fewer, eps) & ~evidence.lost(evidence.of(strong), eps)
        met = evidence.met_by_each(here)
        count, hidden = int((missed & met).sum()), int((missed & ~met).sum())
        could = max(could, int((evidence.lost(fewer, eps) & met).sum()))
        grade = grade_of(count, n, ALONE)
        found.append((grade, count, eps))
        if grade == "A" and grade_of(count + hidden, n, ALONE) != "A":
            unknown = max(unknown, hidden)
    if not found:
        return question.skipped("no attack to hold it against ran well at the same eps", "B")
    grade, count, eps = max(found, key=lambda item: item[:2])
    if grade == "A" and unknown:
        return question.skipped(
            f"{what} broke {unknown} images that the stronger attacks of the cascade were not shown", "B", _WHOLE
        )
    power = Power(n, least(n, ALONE), could, f"{what} broke {{}} of them at most")
    powerless: Grade = "A" if not set(weak) <= GRADIENT_FREE or _shown(evidence) else "B"
    if not count:
        finding = f"{what} broke no image alone (of {n}, at any eps)"
    else:
        finding = f"{what} alone broke {percent(count / n)} ({count} of {n}) at {threat_text(evidence.norm, eps)}"
    return question.graded(grade, finding, power, powerless=powerless)


def _shown(evidence: Evidence) -> bool:
    """Whether attacks without gradients, taken together, broke enough to expose the others, or nothing is left to find.

    Where they did, those of one sort that broke next to nothing cost no grade: the other sort was asked.
    """
    free, n = evidence.of(GRADIENT_FREE), len(evidence.images)
    broke = max((int(evidence.lost(free, eps).sum()) for eps in evidence.grid), default=0)
    left = [int((evidence.correct & ~evidence.lost(evidence.pairs, eps)).sum()) for eps in evidence.grid]
    return broke >= least(n, ALONE) or max(left, default=0) < FEW


_ADD: Final = "Run a suite that holds {}."
_WHOLE: Final = "Run the suite without --cascade or --sampled."
_TRANSFERS: Final = "Run the suite with its transfers: they need another trained model."


def _one_step(question: Question, evidence: Evidence) -> Check:
    """From the pairs, or from the probe's accuracies where the suite takes no single step."""
    facts = evidence.facts
    single = facts.seen.attacked.one_step if facts is not None else None
    left = accuracies(facts.seen.attacked.steps) if facts is not None else {}
    if evidence.of(ONE_STEP) or facts is None or single is None or not left:
        return _alone(question, evidence, ONE_STEP, ITERATED, "one-step attacks")
    n, iterated = facts.n, min(left.values())
    text = f"in the probe the iterated attack left {percent(iterated)} where one step left {percent(single)}"
    power = Power(n, least(n, PROBED_ALONE), round((1 - single) * n), "one step broke {} of them")
    return question.graded(grade_of(round((iterated - single) * n), n, PROBED_ALONE), text, power)


def _transfer(question: Question, evidence: Evidence) -> Check:
    """Where transfers that the suite declares did not run, those that did (if any) answer at best a B."""
    answer = _alone(question, evidence, {"transfer"}, WHITE_BOX, "transferred images")
    board, model = evidence.board, evidence.model
    left = [label for label in board.left_out.get(model, ()) if label.startswith("transfer:")]
    left = [label for label in left if concerns(label, evidence.norm)]
    if left and answer.grade == "A":
        return question.skipped("not asked: transfers from other models were left out", "B", _TRANSFERS)
    gone = [*board.unasked.get(model, ()), *board.missing.get(model, ())]
    gone = [label for label in gone if label.startswith("transfer:") and concerns(label, evidence.norm)]
    if gone and answer.status == "skipped" and answer.grade == "A":
        return question.skipped(f"not asked: {len(gone)} transfers of the suite did not run", "B", _TRANSFERS)
    return answer


def _noise(question: Question, evidence: Evidence) -> Check:
    return _alone(question, evidence, {"noise"}, WHITE_BOX if evidence.of(WHITE_BOX) else BLACK_BOX, "random noise")


def _larger_eps(question: Question, evidence: Evidence) -> Check:
    """An attack's own images at a smaller eps against its images at the next larger one."""
    series: dict[tuple[str, str], dict[float, list[Pair]]] = {}
    for pair in evidence.of(SEARCHES):
        result = pair.result
        if not result.failed and result.eps is not None:
            series.setdefault((result.attack, result.source), {}).setdefault(result.eps, []).append(pair)
    n = len(evidence.images)
    found: list[tuple[Grade, int, str]] = []
    hidden, could = False, 0
    for (label, _), pairs in series.items():
        for (low, small), (high, large) in pairwise(sorted(pairs.items(), key=lambda item: item[0])):
            before, after = evidence.lost(small, low), evidence.lost(large, high)
            both = evidence.met(small) & evidence.met(large)
            count = int((before & ~after & both).sum()) - int((after & ~before & both).sum())
            hidden |= bool((before & ~both).any())
            could = max(could, int((before & both).sum()))
            where = f"{label} left {{}} more at {threat_text(evidence.norm, high)} than at"
            found.append((grade_of(count, n, RISE), count, f"{where} {low:.4g}"))
    if not found:
        return question.skipped("no attack ran at two values of eps")
    grade, count, text = max(found, key=lambda item: item[:2])
    if grade == "A" and hidden:
        return question.skipped("in a cascade the larger eps is not tried on what broke at the smaller", "A")
    power = Power(n, least(n, RISE), could, "an attack broke {} of them at a smaller eps")
    if count <= 0:
        return question.graded("A", f"accuracy fell or stayed at every larger eps ({len(found)} steps)", power)
    return question.graded(grade, text.format(f"{percent(count / n)} ({count} of {n})"), power)


def _rounding(question: Question, evidence: Evidence) -> Check:
    """Broken images for which no adversarial within eps outlives rounding, at the eps with the largest share."""
    found: list[tuple[Grade, float, int, int, float]] = []
    for eps in evidence.grid:
        lost = evidence.lost(evidence.pairs, eps)
        kept = np.zeros(len(lost), bool)
        for pair in evidence.pairs:
            kept |= _survives(evidence, pair, eps)
        count, total = int((lost & ~kept).sum()), int(lost.sum())
        if total:
            found.append((grade_of(count, total, LOST_BY_ROUNDING), count / total, count, total, eps))
    if not found:
        return question.skipped("no image was broken")
    grade, share, count, total, eps = max(found)
    where = threat_text(evidence.norm, eps)
    finding = f"rounding to 8 bits undoes {percent(share)} ({count} of {total}) of the broken images at {where}"
    return question.graded(grade, finding, Power(total, least(total, LOST_BY_ROUNDING), unit="broken images"))


def _survives(evidence: Evidence, pair: Pair, eps: float) -> Bools:
    good = pair.columns["survives_rounding"] & found_within(pair.columns, evidence.norm, eps)
    return np.isin(evidence.images, pair.columns["index"][good])


def _failed(question: Question, evidence: Evidence, status: str, verb: str) -> Check:
    bad = [pair for pair in evidence.pairs if pair.result.status == status]
    why = [f"{pair.result.attack}: {_why(pair)}" for pair in bad]
    more = f" ({listed(why)})" if why else ""
    finding = f"{len(bad)} of {len(evidence.pairs)} pairs {verb}{more}"
    return question.graded("D" if bad else "A", finding, Power(len(evidence.pairs), 1, unit="pairs"))


def _why(pair: Pair) -> str:
    flags = {flag: int(pair.summary[f"invalid_{flag}"]) for flag in FLAGS}
    counts = [f"{name.replace('_', ' ')} {count}" for name, count in flags.items() if count]
    if pair.result.status == "crashed" or not counts:
        counts = [error.strip().splitlines()[-1] for error in pair.result.errors if error.strip()]
    return "; ".join(counts[:2]) or "no reason recorded"


def _complete(question: Question, evidence: Evidence) -> Check:
    absent = [label for label in evidence.board.missing.get(evidence.model, ()) if concerns(label, evidence.norm)]
    total = len(evidence.pairs) + len(absent)
    more = f" ({listed(absent)})" if absent else ""
    finding = f"{len(absent)} of {total} pairs are missing{more}"
    return question.graded("D" if absent else "A", finding, Power(total, 1, unit="pairs"))


def _toolkits(question: Question, evidence: Evidence) -> Check:
    """Whether both libraries took part, and what each left alone at the largest eps."""
    n, eps = len(evidence.images), max(evidence.grid, default=0.0)
    kits: dict[str, list[Pair]] = {}
    for pair in evidence.of(WORST_CASE):
        kits.setdefault(pair.result.toolkit, []).append(pair)
    left = {
        kit: (int(evidence.correct.sum()) - int(evidence.lost(pairs, eps).sum())) / n if n else 0.0
        for kit, pairs in sorted(kits.items())
    }
    text = ", ".join(f"{kit} {percent(value)}" for kit, value in left.items())
    power = Power(sum(map(len, kits.values())), 1, unit="attacks")
    absent = [kit for kit in ("art", "foolbox") if kit not in kits]
    if absent:
        return question.graded("B", f"no attack of {' or '.join(absent)} ran (accuracy left: {text})", power)
    return question.graded("A", f"accuracy left at {threat_text(evidence.norm, eps)}: {text}", power)


PAIR_QUESTIONS: Final = (
    Question(
        "battery-complete",
        "Did every attack that was asked for run?",
        "Run the same command again: only what is missing is done.",
        _complete,
    ),
    Question(
        "attacks-crashed",
        "Did every attack come to its end?",
        "Read the error in the report, mend what it names, remove the pair's folder and run the command again.",
        partial(_failed, status="crashed", verb="crashed"),
    ),
    Question(
        "invalid-results",
        "Did every attack return valid images?",
        "Read in the report which rule was broken; an attack that returns every image unchanged found no gradient.",
        partial(_failed, status="invalid", verb="returned invalid images"),
    ),
    Question(
        "white-box-vs-black-box",
        "Do gradient attacks break what black-box attacks break?",
        "Gradients mislead: see misleading-gradients and vanishing-gradients, and give attacks the remedy named there.",
        partial(_alone, weak=BLACK_BOX, strong=WHITE_BOX, what="black-box attacks"),
    ),
    Question(
        "white-box-vs-transfer",
        "Do gradient attacks break what transferred images break?",
        "Gradients mislead: see misleading-gradients and vanishing-gradients, and give attacks the remedy named there.",
        _transfer,
    ),
    Question(
        "iterated-vs-one-step",
        "Do iterated attacks break what a single step breaks?",
        "Steps are lost on the way: try --remedy temperature=N, and more steps or restarts in the suite.",
        _one_step,
    ),
    Question(
        "noise-is-weakest",
        "Is random noise weaker than gradients?",
        "Gradients say less than chance: name the module that hides them with --stand-in MODULE=identity.",
        _noise,
    ),
    Question(
        "larger-eps",
        "Does a larger budget never help the model?",
        "Take more steps at the larger eps, or look for what hides the gradient there (misleading-gradients).",
        _larger_eps,
    ),
    Question(
        "mixed-toolkits",
        "Did independent implementations take part?",
        "Run a suite that holds attacks of both ART and Foolbox, such as quick.",
        _toolkits,
    ),
    Question(
        "survives-rounding",
        "Do the adversarial images survive as 8-bit files?",
        "Read the number as one about float images; adversarials that can be stored are fewer.",
        _rounding,
    ),
)
