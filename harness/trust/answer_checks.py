"""Health checks on consistency: same answers in any batch, order and call; order of the classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from ..metrics.class_order import better_order
from ..metrics.pairs import reference
from ..schema.models import Agreement
from .checks import Check, Evidence, Grade, Power, Question, percent

OTHER_LABEL: Final = 0.01
"""Share of images that may get another label when they are asked otherwise. Networks in float32 show none; weights and
activations of eight bits up to this."""

REORDERED: Final = 11
"""Images that another order must win before it is believed: a coin wins ten of ten more often than
:data:`harness.metrics.class_order.SURE`, on either side."""

AFTER_OTHERS: Final = "after images next to them"
"""A way of asking at admission: what differs then is memory, however little it changes, and the judge asks after the
images themselves."""

_WHERE: Final[Mapping[str, str]] = {
    "referee": "asked again in other batches after the attack, the model answers {} otherwise",
    "attacked": "after the attack, the copy that was attacked answers {} otherwise than the one that judges",
}


def _answers(question: Question, evidence: Evidence) -> Check:
    found: list[tuple[Grade, float, str]] = []
    asked = 0
    for text, seen, images in _seen(evidence):
        asked += seen.images
        if not seen.differ:
            continue
        other = seen.labels > OTHER_LABEL * images or text.startswith(AFTER_OTHERS)
        what = f"{seen.differ} of {seen.images} clean images"
        more = f"logits differ by up to {percent(seen.change)}, labels of {seen.labels}"
        found.append(("D" if other else "C", seen.change, f"{text.format(what)} ({more})"))
    power = Power(asked, 1, unit="images asked again")
    if found:
        grade, _, text = max(found, key=lambda item: item[:2])
        return question.graded(grade, text, power)
    reference_pair = reference(evidence.everything)
    if unsteady := max((pair.result.unsteady for pair in evidence.pairs), default=0):
        return question.graded(
            "B",
            f"two votes differ on {unsteady} of {reference_pair.n} images, which count as wrong: no seed reaches "
            "the model's random numbers",
            Power(reference_pair.n, 1),
        )
    if not asked:
        return question.skipped("nothing was asked twice")
    return question.graded("A", "other batches, orders and later calls gave the same answers", power)


def _seen(evidence: Evidence) -> Iterator[tuple[str, Agreement, int]]:
    """What is known of answers to the same images: from admission, and from each pair; and of how many images it is.

    A pair of a cascade asks the referee again about those alone that it was shown, which are a part of all.
    """
    known = evidence.board.models.get(evidence.model)
    if known is not None and known.card is not None and known.card.inspection is not None:
        for way, found in known.card.inspection.answers.items():
            yield f"{way}, the model answers {{}} otherwise", found, found.images
    for pair in evidence.pairs:
        for who, found in pair.result.answers.items():
            yield f"{_WHERE[who]} ({pair.result.attack})", found, pair.n if who == "referee" else found.images


def _order(question: Question, evidence: Evidence) -> Check:
    columns = reference(evidence.everything).columns
    classes = max(int(columns["label"].max(initial=0)), int(columns["clean_pred"].max(initial=0))) + 1
    better = better_order(columns["clean_pred"], columns["label"], classes)
    power = Power(len(columns["label"]), REORDERED)
    if better is None:
        return question.graded("A", "no other order of the classes fits better", power)
    return question.graded("B", str(better), power)


ANSWER_QUESTIONS: Final = (
    Question(
        "consistent-answers",
        "Does an image get the same answer however it is asked?",
        "Find what depends on the batch, on earlier calls or on the mode, and take it out; a model that draws at "
        "random needs --remedy draws=N.",
        _answers,
    ),
    Question(
        "class-order",
        "Are the model's classes those of the data set?",
        "Put the model's outputs in the order of the data set's classes; folders are read in the order of their names.",
        _order,
    ),
)
