"""What would decide the values and clauses that a study leaves open: how many seeds and images, at what cost.

A power calculation: means and spreads are taken to stay as they were measured, and the intervals to shrink with the
square root of the images, and with Student's t over the root of the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ..datasets.registry import DATASETS
from .findings import CONFIDENCE, Finding, clause_confidence, standard_errors
from .record import StudyRecord

MOST_SEEDS: Final = 20
"""More than these nobody trains to decide a cell."""

FEW: Final = 5
"""Seeds asked for where there is no spread yet to foretell a number from."""

OPEN: Final = ("undecided", "not run")


@dataclass(frozen=True)
class Size:
    """Seeds, and images of a cell."""

    seeds: int
    images: int


@dataclass(frozen=True)
class CellCost:
    """Seconds of one core that one training seed of an item takes.

    Attributes:
        training: Of all models it needs.
        attacks: Of all its pairs.
        images: Of a pair.
        measured: Whether they were measured; else they are foreseen, and an upper bound.
    """

    training: float
    attacks: float
    images: int
    measured: bool = True

    def hours(self, size: Size) -> float:
        """Core-hours of so many seeds and images."""
        return size.seeds * (self.training + self.attacks * size.images / max(self.images, 1)) / 3600

    def missing(self, size: Size, seeds: int) -> float:
        """The same without what ``seeds`` of the item's own images have cost already."""
        done = seeds * (self.training + (self.attacks if size.images == self.images else 0)) / 3600
        return self.hours(size) - (done if self.measured else 0)


@dataclass(frozen=True)
class Remedy:
    """What would decide the open findings of an item or claim.

    Attributes:
        item: Its name.
        undecided: Findings that are.
        not_run: Findings that were not run.
        decided: How many of these ``size`` is foreseen to decide.
        unforeseen: Those of which no spread over seeds is known: they are asked for :data:`FEW` seeds.
        size: Seeds and images that this takes; None where everything is out of reach.
        hours: Core-hours beyond what was spent; None if that is not known.
        measured: Whether the hours follow from measured ones; else they are an upper bound.
    """

    item: str
    undecided: int
    not_run: int
    decided: int
    unforeseen: int
    size: Size | None
    hours: float | None
    measured: bool

    @property
    def out_of_reach(self) -> int:
        """Findings that :data:`MOST_SEEDS` seeds and the whole test set would not decide."""
        return self.undecided + self.not_run - self.decided - self.unforeseen


def remedies(record: StudyRecord) -> list[Remedy]:
    """For every item and claim with open findings what would decide them, in the study's order."""
    facts = record.facts
    whole = DATASETS[facts["dataset"]].test_size
    found = []
    for item, confidence, findings in _items(record):
        still = [finding for finding in findings if finding.verdict in OPEN]
        if not still:
            continue
        told = facts.get("costs", {}).get(item)
        cost = None if told is None else CellCost(**told)
        price: Callable[[Size], float] = (lambda size: size.seeds * size.images) if cost is None else cost.hours
        known = [finding for finding in still if _has_spread(finding)]
        sizes = [size for one in known if (size := decisive(one, facts["samples"], whole, confidence, price))]
        unforeseen = len(still) - len(known)
        done = max(finding.seeds for finding in findings)
        asked = [*sizes, *([Size(max(FEW, done), facts["samples"])] if unforeseen else [])]
        size = Size(max(s.seeds for s in asked), max(s.images for s in asked)) if asked else None
        run = sum(finding.verdict == "not run" for finding in still)
        hours = None if cost is None or size is None else cost.missing(size, done)
        measured = cost is not None and cost.measured
        found.append(Remedy(item, len(still) - run, run, len(sizes), unforeseen, size, hours, measured))
    return found


def decisive(
    finding: Finding, images: int, whole: int, confidence: float, price: Callable[[Size], float]
) -> Size | None:
    """The cheapest size at which an open finding is foreseen to be decided, None if there is none.

    Args:
        finding: What is open, with a known spread over seeds.
        images: Of a cell now.
        whole: Images of the test set.
        confidence: Of its interval.
        price: What a size costs.
    """
    over_images = 0.0 if math.isnan(finding.over_images) else finding.over_images
    deviation = finding.over_seeds / standard_errors(finding.seeds, confidence)
    found = []
    for more in (images, whole) if over_images and finding.n == images < whole else (images,):
        shrunk = over_images * math.sqrt(images / more)
        for seeds in range(finding.seeds, MOST_SEEDS + 1):
            if _decided(finding, math.hypot(shrunk, deviation * standard_errors(seeds, confidence))):
                found.append(Size(seeds, more))
                break
    return min(found, key=price, default=None)


def _has_spread(finding: Finding) -> bool:
    """Whether it is known how far training seeds lie apart."""
    return finding.verdict == "undecided" and math.isfinite(finding.over_seeds)


def _decided(finding: Finding, half: float) -> bool:
    """Whether half an interval of this length decides it, were its mean the same."""
    if finding.margin is not None:
        return half < abs(finding.margin)
    if finding.printed is None or finding.tolerance is None or half > finding.tolerance:
        return False
    away = abs(finding.measured - finding.printed)
    return away > half or finding.rival is None or abs(finding.measured - finding.rival) > half


def _items(record: StudyRecord) -> Iterator[tuple[str, float, Sequence[Finding]]]:
    """Items with the values measured for their own sake, claims with their clauses; and the interval's confidence."""
    for item in record.study.items:
        values = [record.value(item, value) for value in item.values]
        yield item.name, CONFIDENCE, [one for one in values if one.printed is not None and one.basis == "measured"]
    for claim in record.study.claims:
        yield claim.name, clause_confidence(claim), record.clauses(claim)
