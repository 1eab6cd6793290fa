"""Findings of a study: each printed value beside the measured one, with interval and verdict."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from itertools import starmap
from typing import Final, Literal

import numpy as np
import pandas as pd

from ..metrics.pairs import Floats, wilson
from ..schema.base import Cost
from ..schema.models import Card
from .quantities import QUANTITIES, Gallery
from .study import SCALE, Basis, Claim, Clause, Derived, Measure, Quantity, Study, Value, leaves

Verdict = Literal[
    "reproduced", "close", "undecided", "not reproduced", "held", "refuted", "not judged", "not run", ""
]  # fmt: skip
"""Of values the first four, of clauses and claims ``held``, ``refuted`` and ``undecided``; "" where the paper prints no
number, ``not judged`` where it was measured on other data than the paper's."""

Kind = Literal["value", "clause", "effect"]

CONFIDENCE: Final = 0.95


@dataclass(frozen=True)
class MeasurementSource:
    """Where measured numbers come from.

    Attributes:
        card: ``card(model, seed)``: training record of a model, None if it is not there.
        samples: ``samples(measure, seed)``: judged images, None if the pair was not run.
        cost: ``cost(measure, seed)``: what that pair took.
        trouble: ``trouble(measure, seed)``: why a pair that was run gives no number, "" if it does.
        seeds: Training seeds.
        test_size: Test images behind a card's accuracy.
        commit: ``commit(measure, seed)``: of the code that made it, "" if that is not known.
        key: ``key(measure, seed)``: of the pair, or of the model where there is none.
        gallery: ``gallery(measure, seed)``: the pair's first attacked images, none if they were not kept.
    """

    card: Callable[[str, int], Card | None]
    samples: Callable[[Measure, int], pd.DataFrame | None]
    cost: Callable[[Measure, int], Cost | None]
    trouble: Callable[[Measure, int], str]
    seeds: Sequence[int]
    test_size: int = 0
    commit: Callable[[Measure, int], str] = lambda _measure, _seed: ""
    key: Callable[[Measure, int], str] = lambda _measure, _seed: ""
    gallery: Callable[[Measure, int], Gallery] = lambda _measure, _seed: {}


@dataclass(frozen=True)
class Estimate:
    """A quantity over seeds.

    Attributes:
        mean: Over seeds, NaN if it was not measured.
        low: Lower end of the interval; NaN if there is no saying.
        high: Upper end.
        each: The value for every seed that has one.
        n: Images behind the value of a seed, 0 if it is not one over images.
        note: What a reader must know.
        over_seeds: Half of the interval that training seeds alone would give; NaN for one seed.
        over_images: Half of the one that images alone would give; NaN if it is not one over images.
    """

    mean: float
    low: float
    high: float
    each: tuple[float, ...]
    n: int
    note: str = ""
    over_seeds: float = math.nan
    over_images: float = math.nan

    @property
    def measured(self) -> bool:
        """Whether there is a number."""
        return math.isfinite(self.mean)

    def times(self, scale: float) -> Estimate:
        """In another unit."""
        scaled = {name: scale * getattr(self, name) for name in ("mean", "low", "high", "over_seeds", "over_images")}
        return replace(self, each=tuple(scale * value for value in self.each), **scaled)


@dataclass(frozen=True)
class Finding:
    """One line of ``claims.csv``: a value of a table or figure, a clause of a claim, or the effect of a choice.

    Attributes:
        kind: Which of these.
        item: Name of the item or claim, topic of the choice.
        row: Row, or the clause's or effect's text.
        column: Column of a value.
        metric: What is measured, or what a clause's left side is compared with.
        unit: Of all numbers.
        printed: The paper's value, None where it prints none; a clause's bound.
        rival: See :class:`~harness.studies.study.Value`.
        tolerance: Likewise, None where nothing is printed.
        basis: Likewise; a later cell of the same quantity and printed value is a ``"repeat"``.
        measured: Mean over seeds, NaN if nothing was measured; of a clause its left side.
        low: Lower end of the 95 % interval.
        high: Upper end.
        margin: By how much a clause holds; None of others.
        margin_low: Lower end of the margin's interval, at a confidence corrected for the number of clauses.
        margin_high: Upper end.
        over_seeds: Half interval that training seeds alone would give, of a clause its margin's; NaN if not known.
        over_images: Likewise of images alone.
        sampled: Whether more test images would narrow it: all of it rests on pairs of the profile's number of them.
        seeds: Training seeds measured, of a clause on both sides.
        n: Images behind the value of a seed, of a clause its margin's; 0 if it is not one over images.
        verdict: See :func:`value_verdict` and :func:`clause_verdict`.
        profile: Of the study.
        commits: That the numbers behind it were made at, separated by blanks.
        keys: Digest of the keys of the pairs and models behind it, over all seeds; see :func:`digest_of_keys`.
        note: What a reader must know.
    """

    kind: Kind
    item: str
    row: str
    column: str
    metric: str
    unit: str
    printed: float | None
    rival: float | None
    tolerance: float | None
    basis: Basis
    measured: float
    low: float
    high: float
    margin: float | None
    margin_low: float | None
    margin_high: float | None
    over_seeds: float
    over_images: float
    sampled: bool
    seeds: int
    n: int
    verdict: Verdict
    profile: str
    commits: str
    keys: str
    note: str

    @property
    def place(self) -> tuple[str, str, str, str]:
        """What it is about."""
        return self.kind, self.item, self.row, self.column


CLAIM_COLUMNS: Final = tuple(field.name for field in fields(Finding))
"""Columns of ``claims.csv``."""


def value_verdict(value: Value, mean: float, low: float, high: float) -> Verdict:
    """Verdict of a printed value.

    Args:
        value: What is printed, with tolerance and rival.
        mean: Measured, in the printed unit.
        low: Lower end of its 95 % interval, NaN if there is none.
        high: Upper end.

    Returns:
        ``"undecided"`` where half the interval exceeds the tolerance (no interval is none of any use), or it holds both
        print and rival. Otherwise ``"reproduced"`` within the tolerance of print; ``"close"`` where the interval
        excludes the rival and the mean is nearer to print than to it; else ``"not reproduced"``.
    """
    if value.printed is None:
        return ""
    if not math.isfinite(mean):
        return "not run"
    rival = math.nan if value.rival is None else value.rival  # no comparison with NaN holds
    if not (high - low) / 2 <= value.tolerance or (low <= value.printed <= high and low <= rival <= high):
        return "undecided"
    if abs(mean - value.printed) <= value.tolerance:
        return "reproduced"
    if (rival < low or rival > high) and abs(mean - value.printed) < abs(mean - rival):
        return "close"
    return "not reproduced"


def clause_verdict(clause: Clause, margin: Estimate) -> Verdict:
    """Verdict of a clause: whether the interval of its margin lies on one side of zero.

    Zero itself counts for ``>=`` and ``<=``, against ``>`` and ``<``. Without an interval nothing is decided.
    """
    if not margin.measured:
        return "not run"
    tie = clause.relation in (">=", "<=")
    if margin.low > 0 or (tie and margin.low >= 0):
        return "held"
    if margin.high < 0 or (not tie and margin.high <= 0):
        return "refuted"
    return "undecided"


def clause_confidence(claim: Claim) -> float:
    """Confidence of a clause's interval, so that all of a claim's hold together (Bonferroni)."""
    return 1 - (1 - CONFIDENCE) / len(claim.clauses)


def claim_verdict(clauses: Sequence[Verdict]) -> Verdict:
    """A claim is refuted by one clause, and held by all of them."""
    order: tuple[Verdict, ...] = ("refuted", "not run", "undecided", "held")
    return next(verdict for verdict in order if verdict in clauses)


class Findings:
    """Everything that a study asks for, worked out from evidence.

    Args:
        study: What is asked for.
        evidence: What was measured.
        profile: Name of the profile, for the record.
        dataset: What was measured on; None: the profile's. On one that is none of the study's, no printed value is
            judged.
    """

    def __init__(self, study: Study, evidence: MeasurementSource, profile: str, dataset: str | None = None) -> None:
        self.study, self.profile = study, profile
        self._foreign = (dataset or study.profile(profile).dataset) not in study.datasets
        self._evidence = evidence
        self._once = cache(self._measured)
        self.estimate = cache(self._estimate)

    def rows(self) -> Iterator[Finding]:
        """Every value, clause and effect, in the study's order."""
        seen: set[tuple[Quantity, float | None]] = set()
        for item in self.study.items:
            for value in item.values:
                again = value.printed is not None and (value.quantity, value.printed) in seen
                seen.add((value.quantity, value.printed))
                yield self.value(item.name, replace(value, basis="repeat") if again else value)
        for claim in self.study.claims:
            yield from (self.clause(claim, clause) for clause in claim.clauses)
        for choice in self.study.choices:
            for name, value in choice.effects:
                found = self.value(choice.topic, value)
                yield replace(found, kind="effect", row=name, column="", verdict="")

    def value(self, item: str, value: Value) -> Finding:
        """One value of a table or figure, in the printed unit, with its verdict."""
        found = self.estimate(value.quantity).times(SCALE[value.unit])
        verdict = value_verdict(value, found.mean, found.low, found.high)
        notes = [found.note]
        if self._foreign and value.printed is not None:
            verdict = "not judged" if math.isfinite(found.mean) else "not run"
            notes.insert(0, f"printed for {' and '.join(self.study.datasets)}")
        if value.printed_std is not None and len(found.each) > 1:
            notes.insert(0, f"standard deviation {np.std(found.each, ddof=1):.2f}, printed {value.printed_std:g}")
        outside = value.printed is not None and (value.printed < found.low or value.printed > found.high)
        if verdict == "undecided" and outside:
            notes.append("wider than the tolerance, without the printed value")
        return self._finding(
            "value", item, value.row, value.column, value.metric, value.unit, value.quantity, found, verdict, notes,
            printed=value.printed, rival=value.rival, basis=value.basis,
            tolerance=None if value.printed is None else value.tolerance,
        )  # fmt: skip

    def clause(self, claim: Claim, clause: Clause) -> Finding:
        """One clause of a claim: measured is the left side, the margin decides."""
        margin = self.margin(clause, clause_confidence(claim))
        scale = SCALE[clause.unit]
        left, margin_shown = self.estimate(clause.left).times(scale), margin.times(scale)
        printed, right = None, "what was not run"
        if isinstance(clause.right, float | int):
            printed = float(clause.right) * scale
            right = f"{printed:g}"
        elif self.estimate(clause.right).measured:
            right = f"{self.estimate(clause.right).mean * scale:.4g}"
        of = Derived(operation="mean", of=_sides(clause))
        return self._finding(
            "clause", claim.name, clause.text, "", f"{clause.relation} {right}{clause.unit}", clause.unit, of, left,
            clause_verdict(clause, margin), [left.note, margin.note], printed=printed, margin=margin_shown,
        )  # fmt: skip

    def margin(self, clause: Clause, confidence: float = CONFIDENCE) -> Estimate:
        """By how much a clause holds: the difference of its sides, seed by seed, positive where it holds."""
        sign = 1 if clause.relation in (">", ">=") else -1
        if isinstance(clause.right, float | int):
            left, right = self.estimate(clause.left, confidence), float(clause.right)
            low, high = sorted((sign * (left.low - right), sign * (left.high - right)))
            each = tuple(sign * (value - right) for value in left.each)
            return replace(left, mean=sign * (left.mean - right), low=low, high=high, each=each)
        return self.estimate(Derived(operation="difference", of=_sides(clause)[::sign]), confidence)

    def frame(self) -> pd.DataFrame:
        """The frame behind ``claims.csv``: :data:`CLAIM_COLUMNS`."""
        return pd.DataFrame([asdict(row) for row in self.rows()], columns=list(CLAIM_COLUMNS))

    def _finding(
        self, kind: Kind, item: str, row: str, column: str, metric: str, unit: str, quantity: Quantity,
        found: Estimate, verdict: Verdict, notes: Sequence[str], *, margin: Estimate | None = None,
        printed: float | None = None, rival: float | None = None, tolerance: float | None = None,
        basis: Basis = "measured",
    ) -> Finding:  # fmt: skip
        behind = [(leaf, seed) for leaf in leaves(quantity) for seed in self._evidence.seeds]
        commits = {self._evidence.commit(*one) for one in behind}
        decides = found if margin is None else margin
        return Finding(
            kind=kind, item=item, row=row, column=column, metric=metric, unit=unit, printed=printed, rival=rival,
            tolerance=tolerance, basis=basis, measured=found.mean, low=found.low, high=found.high,
            margin=None if margin is None else margin.mean, margin_low=None if margin is None else margin.low,
            margin_high=None if margin is None else margin.high, over_seeds=decides.over_seeds,
            over_images=decides.over_images, sampled=all(map(_is_sampled, leaves(quantity))),
            seeds=len(decides.each), n=decides.n, verdict=verdict, profile=self.profile,
            commits=" ".join(sorted(commits - {""})), keys=digest_of_keys(starmap(self._evidence.key, behind)),
            note="; ".join(dict.fromkeys(filter(None, notes))),
        )  # fmt: skip

    def _estimate(self, quantity: Quantity, confidence: float = CONFIDENCE) -> Estimate:
        """A quantity over the seeds that have it; its interval is over seeds and images together.

        What seeds and images each add is independent of the other, so that their half intervals add in squares.
        """
        seeds = self._evidence.seeds
        found = {seed: self._once(quantity, seed) for seed in seeds}
        notes = [one.trouble for one in found.values() if one.trouble]
        measured = {seed: one for seed, one in found.items() if math.isfinite(one.value)}
        n = max((len(one.images) if len(one.images) > 1 else one.n for one in found.values()), default=0)
        if not measured:
            return Estimate(math.nan, math.nan, math.nan, (), n, "; ".join(dict.fromkeys(notes)))
        each = tuple(one.value for one in measured.values())
        mean = float(np.mean(each))
        over_images = self._over_images(quantity, tuple(measured), confidence)
        over_seeds = _over_seeds(each, confidence) if len(each) > 1 else math.nan
        if len(each) == 1:
            notes.append("one seed: " + ("no interval" if math.isnan(over_images[0]) else "interval over images"))
        down, up = (_together(over_seeds, half) for half in over_images)
        low, high = mean - down, mean + up
        if isinstance(quantity, Measure) and QUANTITIES[quantity.quantity].share:
            low, high = max(low, 0.0), min(high, 1.0)
        if len(each) < len(seeds):
            notes.append(f"{len(each)} of {len(seeds)} seeds")
        both = "; ".join(dict.fromkeys(notes))
        return Estimate(mean, low, high, each, n, both, over_seeds, sum(over_images) / 2)

    def _over_images(self, quantity: Quantity, seeds: tuple[int, ...], confidence: float) -> tuple[float, float]:
        """Half intervals over images, downwards and upwards, of the mean over seeds; NaN where there are none.

        All seeds see the same images, so that more seeds make it no narrower, but for what their images' means do.
        """
        found = [self._once(quantity, seed) for seed in seeds]
        mean = float(np.mean([one.value for one in found]))
        sizes = {len(one.images) for one in found}
        share = isinstance(quantity, Measure) and QUANTITIES[quantity.quantity].share
        if share and found[0].n and sizes == {0}:  # known as a share alone
            low, high = wilson(mean * found[0].n, found[0].n, confidence)
            return mean - low, high - mean
        aligned = not isinstance(quantity, Measure) or QUANTITIES[quantity.quantity].every
        if sizes != {0} and min(sizes) > 1:
            if len(found) == 1 or (aligned and len(sizes) == 1):
                values = np.mean([one.images for one in found], axis=0)
                if share:
                    low, high = wilson(float(values.sum()), len(values), confidence)
                    return mean - low, high - mean
                half = _over_values(values, confidence)
            else:
                half = float(np.mean([_over_values(one.images, confidence) for one in found]))
            return half, half
        if isinstance(quantity, Derived):
            half = self._through_parts(quantity, seeds, confidence)
            return half, half
        return math.nan, math.nan

    def _through_parts(self, quantity: Derived, seeds: tuple[int, ...], confidence: float) -> float:
        """Half interval of a derived number, those of its parts taken as independent (to first order)."""
        parts = [float(np.mean([self._once(part, seed).value for seed in seeds])) for part in quantity.of]
        halves = [max(self._over_images(part, seeds, confidence)) for part in quantity.of]
        if all(map(math.isnan, halves)):
            return math.nan
        total = 0.0
        for index, half in enumerate(halves):
            if half > 0:
                moved = [
                    _combined(quantity, [*parts[:index], parts[index] + step, *parts[index + 1 :]])
                    for step in (-half, half)
                ]
                total += ((moved[1] - moved[0]) / 2) ** 2
        return math.sqrt(total)

    def _measured(self, quantity: Quantity, seed: int) -> _Once:
        """What one seed gives."""
        if isinstance(quantity, Derived):
            parts = [self._once(part, seed) for part in quantity.of]
            trouble = "; ".join(dict.fromkeys(part.trouble for part in parts if part.trouble))
            value = _combined(quantity, [part.value for part in parts])
            return _Once(value, _paired(quantity, [part.images for part in parts]), trouble)
        reading = QUANTITIES[quantity.quantity]
        settings = dict(quantity.settings)
        if reading.needs == "card":
            card = self._evidence.card(quantity.model, seed)
            if card is None:
                return _Once(math.nan)
            # what was not trained was looked at on a part alone, and training images are no sample
            tested = reading.share and quantity.quantity.startswith("test_") and card.epochs
            return _Once(float(reading.read(card, settings)[0]), n=self._evidence.test_size if tested else 0)
        trouble = self._evidence.trouble(quantity, seed)
        if reading.needs == "cost":
            cost = self._evidence.cost(quantity, seed)
            known = cost is not None and not trouble
            return _Once(float(reading.read(cost, settings)[0]) if known else math.nan, trouble=trouble)
        look = self._evidence.gallery if reading.needs == "gallery" else self._evidence.samples
        seen = look(quantity, seed)
        if seen is None or not len(seen) or trouble:
            return _Once(math.nan, trouble=trouble)
        images = reading.read(seen, settings)
        if len(images) == 1 and not reading.every:
            return _Once(float(images[0]))
        return _Once(float(images.mean()) if len(images) else math.nan, images)


_NONE: Final[Floats] = np.empty(0)


@dataclass(frozen=True, eq=False)
class _Once:
    """What one seed gives: a value, those of single images behind it, trouble, and their number where that is all."""

    value: float
    images: Floats = field(default_factory=lambda: _NONE)
    trouble: str = ""
    n: int = 0


def digest_of_keys(keys: Iterable[str]) -> str:
    """Twelve hexadecimal digits that stand for a set of keys; "" for none."""
    found = sorted(set(keys) - {""})
    return hashlib.sha256(" ".join(found).encode()).hexdigest()[:12] if found else ""


def _is_sampled(measure: Measure) -> bool:
    """Whether it is read from as many test images as the profile says."""
    reading = QUANTITIES[measure.quantity]
    return reading.needs == "samples" and measure.part == "test" and measure.samples is None


def _sides(clause: Clause) -> tuple[Quantity, ...]:
    """The quantities that a clause compares."""
    return (clause.left,) if isinstance(clause.right, float | int) else (clause.left, clause.right)


def _combined(quantity: Derived, values: Sequence[float]) -> float:
    if not all(map(math.isfinite, values)):
        return math.nan
    match quantity.operation:
        case "difference":
            return values[0] - values[1]
        case "ratio":
            return values[0] / values[1] if values[1] else math.nan
        case "recovered":
            return 1 - values[0] / values[1] if values[1] else math.nan
        case "least":
            return min(values)
        case "most":
            return max(values)
        case "mean":
            return float(np.mean(values))


def _paired(quantity: Derived, images: Sequence[Floats]) -> Floats:
    """Differences image by image, where both sides are known for the same images; else nothing."""
    sides = [side for side in quantity.of if isinstance(side, Measure) and QUANTITIES[side.quantity].every]
    if quantity.operation != "difference" or len(sides) < 2 or sides[0].part != sides[1].part:
        return _NONE
    return images[0] - images[1] if len(images[0]) == len(images[1]) else _NONE


def _together(*halves: float) -> float:
    """Half interval of a sum of independent parts; NaN if none is known."""
    known = [half for half in halves if not math.isnan(half)]
    return math.hypot(*known) if known else math.nan


def _over_seeds(each: Sequence[float], confidence: float) -> float:
    """Half interval of the mean over training seeds, by Student's t."""
    return standard_errors(len(each), confidence) * float(np.std(each, ddof=1))


def standard_errors(seeds: int, confidence: float) -> float:
    """Half interval of a mean over training seeds, in standard deviations of one seed."""
    from scipy.special import stdtrit

    return float(stdtrit(seeds - 1, 0.5 + confidence / 2)) / math.sqrt(seeds)


def _over_values(values: Floats, confidence: float) -> float:
    """Half interval of the mean over images."""
    from scipy.special import ndtri

    return float(ndtri(0.5 + confidence / 2)) * float(values.std(ddof=1)) / math.sqrt(len(values))
