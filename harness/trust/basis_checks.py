"""Health checks on the basis of a number: enough images, better than chance, whole battery.

None of them says that a number is wrong. They say that little is behind it, and so leave a B at best.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ..metrics.pairs import reference, wilson
from .checks import Check, Evidence, Power, Question, concerns, percent

ENOUGH: Final = 100
"""Images below which no accuracy has an A. At 100 the 95 % interval is about 10 points to either side (Wilson: 40.4 to
59.6 % around a half); on six it goes from 19 to 81 %. The checks too need images: fewer than
:data:`harness.trust.checks.FEW` raise none, and three of a hundred are the few per cent that a C speaks of."""

ABOVE: Final = 0.1
"""How far above one in K the clean accuracy must lie, as a share of the way to 1. Images of one class fall together, so
an untrained network is no fair die. Measured on the 359 test images of digits, 300 networks with random weights each: 6
(lenet) to 21 % (softmax) lie significantly above 1/K, up to an accuracy of 24 %; at most one of 300 lies significantly
above this bound, which is 19 % for ten classes."""


def _images(question: Question, evidence: Evidence) -> Check:
    n = len(evidence.images)
    power = Power(n, 1)
    if n < ENOUGH:
        return question.graded("B", f"judged on {n} image{'' if n == 1 else 's'}, fewer than {ENOUGH}", power)
    return question.graded("A", f"judged on {n} images", power)


def _chance(question: Question, evidence: Evidence) -> Check:
    """The lower end of the 95 % interval of the clean accuracy against what a blind guess gets."""
    judged = reference(evidence.everything)
    labels, n, right = judged.columns["label"], judged.n, int(judged.columns["clean_correct"].sum())
    if not n:
        return question.graded("B", "no image was judged", Power(0, 1))
    # older records do not name the classes
    classes = len(judged.result.class_names) or 1 + int(max(labels.max(), judged.columns["clean_pred"].max()))
    _, counts = np.unique(labels, return_counts=True)
    most = int(counts.max()) / n
    above = wilson(right, n)[0] > max(most, 1 / classes + ABOVE * (1 - 1 / classes))
    finding = f"clean accuracy {percent(right / n)} ({right} of {n}) is {{}} chance ({percent(max(most, 1 / classes))})"
    return question.graded("A" if above else "B", finding.format("above" if above else "not above"), Power(n, 1))


def _asked(question: Question, evidence: Evidence) -> Check:
    """No failure: somebody chose attacks by hand, or other machines have the rest."""
    board, model = evidence.board, evidence.model
    absent, left = (
        [label for label in labels.get(model, ()) if concerns(label, evidence.norm)]
        for labels in (board.missing, board.unasked)
    )
    total = len(evidence.pairs) + len(absent) + len(left)
    if not left:
        return question.graded("A", f"all {total} {evidence.norm} pairs were asked for", Power(total, 1, unit="pairs"))
    finding = f"{len(left)} of the suite's {total} {evidence.norm} pairs were not asked for"
    return question.skipped(finding, "B", question.remedy)


BASIS_QUESTIONS: Final = (
    Question(
        "enough-images",
        "Was the model judged on enough images?",
        "Judge it on more images, 1000 say: --samples 1000.",
        _images,
    ),
    Question(
        "better-than-chance",
        "Does the model know its task?",
        "Train the model, or see whether images, labels and normalisation are those that it was trained with.",
        _chance,
    ),
    Question(
        "battery-asked",
        "Was the whole battery asked for?",
        "Run the suite without --attack; if it was run in parts, merge all of them with gauntlet sync.",
        _asked,
    ),
)
