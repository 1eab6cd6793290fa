"""What would decide the values and clauses that a study leaves open: how many seeds and images, at what cost.

A power calculation: means and spreads are taken to stay as they were measured, and the intervals to shrink with the
square root of the images, and with Student's t over the root of the seeds.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Final

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
class SeedCost:
    """Seconds of one core that one training seed of an item takes.

    Attributes:
        fixed: Of all models it needs, and of pairs that fix their own number of images.
        scaled: Of all pairs of the profile's number of images.
        images: That number.
        seeds: How many seeds were measured as a whole; with 0 the seconds are foreseen, and an upper bound.
    """

    fixed: float
    scaled: float
    images: int
    seeds: int

    def hours(self, size: Size) -> float:
        """Core-hours of so many seeds and images."""
        return size.seeds * (self.fixed + self.scaled * size.images / self.images) / 3600

    def missing(self, size: Size) -> float:
        """The same without what was measured; more images are attacked from the first one on."""
        kept = self.fixed + (self.scaled if size.images == self.images else 0)
        return self.hours(size) - min(self.seeds, size.seeds) * kept / 3600


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
        sampled: Whether any of its numbers rests on a number of images that can be chosen.
        hours: Core-hours beyond what was measured; None if that is not known.
        measured: Whether the hours follow from measured ones; else they are an upper bound.
        command: The run; "" without a size.
    """

    item: str
    undecided: int
    not_run: int
    decided: int
    unforeseen: int
    size: Size | None
    sampled: bool
    hours: float | None
    measured: bool
    command: str

    @property
    def out_of_reach(self) -> int:
        """Findings that :data:`MOST_SEEDS` seeds and the whole test set would not decide, or that give no number."""
        return self.undecided + self.not_run - self.decided - self.unforeseen


def remedies(record: StudyRecord) -> list[Remedy]:
    """For every item and claim with open findings what would decide them, in the study's order.

    None where verdicts say nothing about the paper.
    """
    return [] if record.caveat else [_remedy(record, *one) for one in _items(record)]


def _remedy(record: StudyRecord, item: str, confidence: float, still: Sequence[Finding]) -> Remedy:
    facts = record.facts
    told = facts.get("costs", {}).get(item)
    cost = None if told is None else SeedCost(**told)
    price: Callable[[Size], float] = (lambda size: size.seeds * size.images) if cost is None else cost.hours
    whole = facts.get("test_size", facts["samples"])
    known = [one for one in still if one.verdict == "undecided" and math.isfinite(one.over_seeds)]
    sizes = [size for one in known if (size := decisive(one, facts["samples"], whole, confidence, price))]
    # what was run and gives no number would give none again
    unforeseen = sum(one not in known and not (one.verdict == "not run" and one.note) for one in still)
    asked = [*sizes, *([Size(FEW, facts["samples"])] if unforeseen else [])]
    size = None
    if asked:
        seeds = max(len(facts["seeds"]), *(one.seeds for one in asked))
        size = Size(seeds, max(one.images for one in asked))
    run = sum(one.verdict == "not run" for one in still)
    return Remedy(
        item=item,
        undecided=len(still) - run,
        not_run=run,
        decided=len(sizes),
        unforeseen=unforeseen,
        size=size,
        sampled=any(one.sampled for one in still),
        hours=None if cost is None or size is None else cost.missing(size),
        measured=cost is not None and cost.seeds > 0,
        command="" if size is None else _command(record, item, size),
    )


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
    enough = abs(finding.margin) if finding.margin is not None else finding.tolerance or 0.0
    found = []
    for more in (images, whole) if finding.sampled and images < whole else (images,):
        shrunk = over_images * math.sqrt(images / more)
        halves = (
            (seeds, math.hypot(shrunk, deviation * standard_errors(seeds, confidence)))
            for seeds in range(finding.seeds, MOST_SEEDS + 1)
        )
        # a tolerance is less than half the way from print to rival: an interval as narrow cannot hold both
        first = next((seeds for seeds, half in halves if half <= enough > 0), None)
        found += [] if first is None else [Size(first, more)]
    return min(found, key=price, default=None)


def _items(record: StudyRecord) -> Iterator[tuple[str, float, Sequence[Finding]]]:
    """What is open of items (values measured for their own sake) and claims, with the confidence of intervals."""
    judged = record.facts["dataset"] in record.study.datasets
    for item in record.study.items if judged else ():
        values = [record.value(item, value) for value in item.values]
        own = [one for one in values if one.printed is not None and one.basis == "measured" and one.verdict in OPEN]
        if own:
            yield item.name, CONFIDENCE, own
    for claim in record.study.claims:
        still = [one for one in record.clauses(claim) if one.verdict in OPEN]
        if still:
            yield claim.name, clause_confidence(claim), still


def _command(record: StudyRecord, item: str, size: Size) -> str:
    """The run of an item at a size, with a page of its own beside the study's."""
    facts, profile = record.facts, record.study.profile(record.facts["profile"])
    words = ["gauntlet", "reproduce", record.study.name, "--profile", facts["profile"], "--only", item]
    if facts.get("stands_in_for"):
        words += ["--dataset", facts["dataset"]]
    seeds = list(facts["seeds"])
    seeds += islice((seed for seed in count() if seed not in seeds), max(0, size.seeds - len(seeds)))
    if tuple(seeds) != profile.seeds:
        words += ["--seeds", f"0-{len(seeds) - 1}" if seeds == [*range(len(seeds))] else ",".join(map(str, seeds))]
    if size.images != min(profile.samples, facts.get("test_size", profile.samples)):
        words += ["--samples", str(size.images)]
    return shlex.join([*words, "--out", f"study-{record.study.name}-{item}"])
