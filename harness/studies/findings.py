"""Findings of a study: each printed value beside the measured one, with interval and verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

from ..metrics.pairs import Floats, wilson
from ..schema.base import Cost
from ..schema.models import Card
from .quantities import QUANTITIES
from .study import SCALE, Claim, Clause, Derived, Measure, Quantity, Study, Value, leaves

Verdict = Literal["reproduced", "same direction", "not reproduced", "not run", ""]

CLAIM_COLUMNS: Final = (
    "study", "item", "row", "column", "metric", "printed", "measured", "low", "high", "seeds", "n", "verdict",
    "profile", "note",
)  # fmt: skip
"""Columns of ``claims.csv``: a row a value of a table or figure, and a row a clause of a claim. ``low`` and ``high``
are the ends of the 95 % interval: over training seeds, and never narrower than over images. Shares are in percent.
``verdict`` is empty where the paper prints no number."""


@dataclass(frozen=True)
class MeasurementSource:
    """Where measured numbers come from.

    Attributes:
        card: ``card(model, seed)``: training record of a model, None if it is not there.
        samples: ``samples(measure, seed)``: judged images, None if the pair was not run.
        cost: ``cost(measure, seed)``: what that pair took.
        trouble: ``trouble(measure, seed)``: why a pair that was run gives no number, "" if it does.
        seeds: Training seeds.
    """

    card: Callable[[str, int], Card | None]
    samples: Callable[[Measure, int], pd.DataFrame | None]
    cost: Callable[[Measure, int], Cost | None]
    trouble: Callable[[Measure, int], str]
    seeds: Sequence[int]


@dataclass(frozen=True)
class Estimate:
    """A quantity over seeds.

    Attributes:
        mean: Over seeds, NaN if it was not measured.
        low: Lower end of the 95 % interval; NaN if there is no saying.
        high: Upper end.
        each: The value for every seed that has one.
        n: Images behind the value of a seed, 0 if it is not one over images.
        note: What a reader must know.
    """

    mean: float
    low: float
    high: float
    each: tuple[float, ...]
    n: int
    note: str = ""

    @property
    def measured(self) -> bool:
        """Whether there is a number."""
        return math.isfinite(self.mean)


@dataclass(frozen=True)
class Finding:
    """One line of ``claims.csv``."""

    item: str
    row: str
    column: str
    metric: str
    printed: float | None
    unit: str
    estimate: Estimate
    verdict: Verdict
    note: str


class Findings:
    """Everything that a study asks for, worked out from evidence.

    Args:
        study: What is asked for.
        evidence: What was measured.
        profile: Name of the profile, for the record.
    """

    def __init__(self, study: Study, evidence: MeasurementSource, profile: str) -> None:
        self.study, self.profile = study, profile
        self._foreign = study.profile(profile).dataset not in study.datasets
        self._evidence = evidence
        self._estimates: dict[Quantity, Estimate] = {}

    def estimate(self, quantity: Quantity) -> Estimate:
        """A quantity over the seeds that have it."""
        if quantity not in self._estimates:
            self._estimates[quantity] = self._measure(quantity)
        return self._estimates[quantity]

    def value(self, item: str, value: Value) -> Finding:
        """One value of a table or figure, in the printed unit, with its verdict."""
        found = _scaled(self.estimate(value.quantity), SCALE[value.unit])
        verdict = self._verdict(value, found)
        if self._foreign and value.printed is not None:
            elsewhere = f"printed for {' and '.join(self.study.datasets)}"
            found = replace(found, note="; ".join(filter(None, (elsewhere, found.note))))
        if value.printed_std is not None and len(found.each) > 1:
            spread = f"standard deviation {np.std(found.each, ddof=1):.2f}, printed {value.printed_std:g}"
            found = replace(found, note="; ".join(filter(None, (spread, found.note))))
        return Finding(
            item, value.row, value.column, value.metric, value.printed, value.unit, found, verdict, found.note
        )

    def clause(self, claim: Claim, clause: Clause) -> Finding:
        """One clause of a claim: measured is the left side, its interval that of what decides (see :meth:`margin`)."""
        verdict, margin = self._judged[clause]
        left = _scaled(self.estimate(clause.left), SCALE[clause.unit])
        note = "; ".join(filter(None, (left.note, _margin_note(clause, margin))))
        if isinstance(clause.right, float | int):
            printed: float | None = float(clause.right) * SCALE[clause.unit]
            right = f"{printed:g}"
        else:
            other = self.estimate(clause.right).mean * SCALE[clause.unit]
            printed, right = None, f"{other:.4g}" if math.isfinite(other) else "what was not run"
        metric = f"{clause.relation} {right}{clause.unit}"
        return Finding(claim.name, clause.text, "", metric, printed, clause.unit, left, verdict, note)

    def holds(self, claim: Claim) -> Verdict:
        """A claim's verdict: that of its weakest clause."""
        order: list[Verdict] = ["not reproduced", "not run", "same direction", "reproduced"]
        return min((self._judged[clause][0] for clause in claim.clauses), key=order.index)

    @cached_property
    def _judged(self) -> dict[Clause, tuple[Verdict, Estimate]]:
        found = {}
        for claim in self.study.claims:
            for clause in claim.clauses:
                margin = self.margin(clause)
                found[clause] = (_clause_verdict(clause, margin), margin)
        return found

    def margin(self, clause: Clause) -> Estimate:
        """By how much a clause holds: the difference of its sides, seed by seed, positive where it holds."""
        sign = 1 if clause.relation in (">", ">=") else -1
        if isinstance(clause.right, float | int):
            left, right = self.estimate(clause.left), float(clause.right)
            low, high = sorted((sign * (left.low - right), sign * (left.high - right)))
            each = tuple(sign * (value - right) for value in left.each)
            return Estimate(sign * (left.mean - right), low, high, each, left.n)
        sides = (clause.left, clause.right) if sign > 0 else (clause.right, clause.left)
        return self.estimate(Derived(operation="difference", of=sides))

    def _verdict(self, value: Value, found: Estimate) -> Verdict:
        if not found.measured or (self._foreign and value.printed is not None):
            return "not run"
        if value.printed is None:
            return ""
        off = abs(found.mean - value.printed)
        reach = found.low if value.printed < found.mean else found.high
        # two seeds that differ widely must not make every printed value a reproduced one
        excused = 0.0 if math.isnan(reach) else min(abs(reach - found.mean), value.tolerance)
        if off <= value.tolerance + excused:
            return "reproduced"
        mine = set(leaves(value.quantity))
        about = [
            verdict
            for clause, (verdict, _) in self._judged.items()
            if mine & {*leaves(clause.left), *(() if isinstance(clause.right, float | int) else leaves(clause.right))}
        ]
        if about and all(verdict in ("reproduced", "same direction") for verdict in about):
            return "same direction"
        return "not reproduced"

    def _measure(self, quantity: Quantity) -> Estimate:
        each, n, notes = [], 0, []
        images: list[Floats] = []
        share = isinstance(quantity, Measure) and QUANTITIES[quantity.quantity].share
        same = not isinstance(quantity, Measure) or QUANTITIES[quantity.quantity].every
        for seed in self._evidence.seeds:
            value, values, trouble = self._once(quantity, seed)
            notes += [trouble] if trouble else []
            if math.isfinite(value):
                each.append(value)
                n = len(values) if len(values) > 1 else n
                images.append(values)
        if not each:
            return Estimate(math.nan, math.nan, math.nan, (), n, "; ".join(dict.fromkeys(notes)))
        mean = float(np.mean(each))
        low, high = _over_images(images, share) if same or len(each) == 1 else (math.nan, math.nan)
        if len(each) > 1:  # seeds may agree by chance
            ends = _over_seeds(each)
            low, high = float(np.fmin(low, ends[0])), float(np.fmax(high, ends[1]))
        else:
            notes.append("one seed: interval over images" if math.isfinite(low) else "one seed: no interval")
        if share:
            low, high = max(low, 0.0), min(high, 1.0)
        if len(each) < len(self._evidence.seeds):
            notes.append(f"{len(each)} of {len(self._evidence.seeds)} seeds")
        return Estimate(mean, low, high, tuple(each), n, "; ".join(dict.fromkeys(notes)))

    def _once(self, quantity: Quantity, seed: int) -> tuple[float, Floats, str]:
        """Value for one seed, the values of single images behind it (none if there are none), and trouble."""
        nothing: Floats = np.empty(0)
        if isinstance(quantity, Derived):
            parts = [self._once(part, seed) for part in quantity.of]
            values = [value for value, _, _ in parts]
            trouble = "; ".join(dict.fromkeys(filter(None, (why for _, _, why in parts))))
            return (_combined(quantity, values), _paired(quantity, [images for _, images, _ in parts]), trouble)
        reading = QUANTITIES[quantity.quantity]
        settings = dict(quantity.settings)
        if reading.needs == "card":
            card = self._evidence.card(quantity.model, seed)
            return (math.nan, nothing, "") if card is None else (float(reading.read(card, settings)[0]), nothing, "")
        trouble = self._evidence.trouble(quantity, seed)
        if reading.needs == "cost":
            cost = self._evidence.cost(quantity, seed)
            return (math.nan if cost is None or trouble else float(reading.read(cost, settings)[0])), nothing, trouble
        frame = self._evidence.samples(quantity, seed)
        if frame is None or trouble:
            return math.nan, nothing, trouble
        values_of = reading.read(frame, settings)
        return (float(values_of.mean()) if len(values_of) else math.nan, values_of, "")

    def rows(self) -> Iterator[Finding]:
        """Every value and every clause, in the study's order."""
        for item in self.study.items:
            yield from (self.value(item.name, value) for value in item.values)
        for claim in self.study.claims:
            yield from (self.clause(claim, clause) for clause in claim.clauses)

    def frame(self) -> pd.DataFrame:
        """The frame behind ``claims.csv``: :data:`CLAIM_COLUMNS`."""
        rows = [
            {
                "study": self.study.name,
                "item": row.item,
                "row": row.row,
                "column": row.column,
                "metric": f"{row.metric} [{row.unit}]" if row.unit else row.metric,
                "printed": row.printed,
                "measured": row.estimate.mean,
                "low": row.estimate.low,
                "high": row.estimate.high,
                "seeds": len(row.estimate.each),
                "n": row.estimate.n,
                "verdict": row.verdict,
                "profile": self.profile,
                "note": row.note,
            }
            for row in self.rows()
        ]
        return pd.DataFrame(rows, columns=list(CLAIM_COLUMNS))


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
        return np.empty(0)
    return images[0] - images[1] if len(images[0]) == len(images[1]) else np.empty(0)


def _clause_verdict(clause: Clause, margin: Estimate) -> Verdict:
    """Whether it holds: beyond the interval, only on average, or not."""
    if not margin.measured:
        return "not run"
    tied = margin.mean == 0 and clause.relation in (">=", "<=")
    if not (margin.mean > 0 or tied):
        return "not reproduced"
    # without an interval (one seed, and nothing known image by image) nobody can be sure
    sure = margin.low > 0 or tied or (margin.low == 0 and clause.relation in (">=", "<="))
    return "reproduced" if sure else "same direction"


def _margin_note(clause: Clause, margin: Estimate) -> str:
    if not margin.measured:
        return ""
    scale = SCALE[clause.unit]
    ends = "" if math.isnan(margin.low) else f" [{scale * margin.low:.4g}, {scale * margin.high:.4g}]"
    return f"margin {scale * margin.mean:.4g}{ends}"


def _over_seeds(each: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean over training seeds, by Student's t."""
    from scipy.special import stdtrit

    half = float(stdtrit(len(each) - 1, 0.975)) * float(np.std(each, ddof=1)) / math.sqrt(len(each))
    mean = float(np.mean(each))
    return mean - half, mean + half


def _over_images(seeds: Sequence[Floats], share: bool) -> tuple[float, float]:
    """95 % interval over images of a mean over seeds, which saw the same ones; NaN if there are none behind it."""
    if len({len(values) for values in seeds}) > 1 or len(seeds[0]) < 2:
        return math.nan, math.nan
    values = np.mean(seeds, axis=0)
    if share:
        return wilson(float(values.sum()), len(values))
    half = 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - half, float(values.mean()) + half


def _scaled(found: Estimate, scale: float) -> Estimate:
    each = tuple(scale * value for value in found.each)
    return Estimate(scale * found.mean, scale * found.low, scale * found.high, each, found.n, found.note)


@dataclass(frozen=True)
class Outcome:
    """What a study came to: everything that its report is made from.

    Attributes:
        findings: Values and claims.
        judgement: What today's batteries leave of the defended models, a row per model, norm and eps; see
            :func:`harness.studies.reproduce.judgement`.
        galleries: First images of the pairs behind image grids, by measure: ``x``, ``x_adv``, ``label``, ``adv_pred``.
        facts: Profile, seeds, data set, images, command, versions, cost.
        declared: Architecture and training of every model, by the study's name of it.
    """

    findings: Findings
    judgement: pd.DataFrame
    galleries: Mapping[Measure, Mapping[str, Any]]
    facts: Mapping[str, Any]
    declared: Mapping[str, str]
