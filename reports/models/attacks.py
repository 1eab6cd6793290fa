"""What each attack did to one model: images broken, passes, problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.metrics.pairs import rounding

from ..boards.costs import mean
from ..boards.results import SuiteResults
from ..boards.rows import Entry, Record
from ..drawing.text import both, norm_name


@dataclass(frozen=True)
class AttackResult:
    """What one attack did to an entry at one norm and eps, over seeds.

    What it found with any norm and eps counts; costs are those of its own pairs at this norm and eps.

    Attributes:
        attack: Label.
        toolkit: Where it comes from.
        family: Sort of attack, "" if the records do not say.
        broken: Share of the images it broke.
        alone: Share of the images that no other attack broke.
        counts: The same as mean numbers of images.
        met: Per seed of a cascade the images shown to it; empty outside of cascades.
        forwards: Passes per attacked image.
        backwards: Passes per attacked image.
        seconds: For a whole pair.
        rounding: Share of its adversarials within eps that survive rounding to 8 bits.
        problems: Per seed that failed or returned something invalid, what happened.
        elsewhere: Norms it was run in, if it was not run in this one.
        anchor: Id of its first record, "" if it was not run in this norm.
    """

    attack: str
    toolkit: str
    family: str
    broken: float
    alone: float
    counts: tuple[float, float]
    met: Sequence[int]
    forwards: float
    backwards: float
    seconds: float
    rounding: float
    problems: Sequence[str]
    elsewhere: str
    anchor: str


def attack_results(results: SuiteResults, entry: Entry, norm: str, eps: float) -> list[AttackResult]:
    """A row per attack, most images first."""
    cases = results.worst(entry, norm, eps)
    rows = []
    for label in dict.fromkeys(label for case in cases for label in case.broken_by):
        records = [record for record in results.records[entry.anchor] if record.pair.result.attack == label]
        own = [
            record for record in records if record.pair.result.norm == norm and record.pair.result.eps in (None, eps)
        ]
        result = records[0].pair.result
        hit = [(case.broken_by[label], case.alone[label], case.n) for case in cases if label in case.broken_by]
        rows.append(
            AttackResult(
                attack=label,
                toolkit=result.toolkit,
                family=result.family,
                broken=mean(broken / n for broken, _, n in hit if n),
                alone=mean(alone / n for _, alone, n in hit if n),
                counts=(mean(broken for broken, _, _ in hit), mean(alone for _, alone, _ in hit)),
                met=[record.met for record in own if record.met is not None],
                forwards=mean(record.pair.result.forwards for record in own),
                backwards=mean(record.pair.result.backwards for record in own),
                seconds=mean(record.pair.result.seconds for record in own),
                rounding=mean(rounding(record.pair.columns, norm, eps) for record in own),
                problems=[problem for record in own if (problem := _problem(record, len(own)))],
                elsewhere="" if own else both([norm_name(one) for one in dict.fromkeys(_norms(records))]),
                anchor=own[0].anchor if own else "",
            )
        )
    return sorted(rows, key=lambda row: (-row.counts[0], -row.counts[1], row.attack))


def _norms(records: Sequence[Record]) -> list[str]:
    return [str(record.pair.result.norm) for record in records]


def _problem(record: Record, seeds: int) -> str:
    words: list[str] = [record.pair.result.status] if record.failed else []
    words += [record.problem] if record.problem else []
    seed = f"seed {record.pair.result.seed}: " if seeds > 1 and words else ""
    return seed + ", ".join(dict.fromkeys(words))
