"""Standings of models over many bundles: of every model its lowest number, with the others as its history."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.schema.board import BundleEntry, Claimed

from ..drawing.charts import sparkline
from ..drawing.names import slug
from ..drawing.text import NORM_NAMES, threat_text

LEVELS = 255


@dataclass(frozen=True)
class Standing:
    """A model at one eps: the same weights on the same number of images, whoever evaluated it.

    Attributes:
        place: Position among the ranked of its threat, from 1; None without a rank.
        lowest: The claim that counts: who attacked harder found it lower, and nothing raises it.
        history: Every claim with its bundle, oldest first.
        best: Accuracies that were known by then, as path data of a small line; "" for one claim.
    """

    place: int | None
    lowest: Claimed
    source: BundleEntry
    history: Sequence[tuple[Claimed, BundleEntry]]
    best: str


@dataclass(frozen=True)
class Threat:
    """The standings of one data set at one norm and eps."""

    anchor: str
    dataset: str
    norm: str
    eps: float
    text: str
    standings: Sequence[Standing]


def threats(entries: Sequence[BundleEntry]) -> list[Threat]:
    """Every threat that some bundle says anything of: data sets by name, norms in their usual order, eps ascending."""
    found: dict[tuple[str, str, float], dict[object, list[tuple[Claimed, BundleEntry]]]] = {}
    for entry in entries:
        for claim in entry.claims:
            who = (claim.weights, claim.n)  # whatever it is called
            found.setdefault((claim.dataset, claim.norm, claim.eps), {}).setdefault(who, []).append((claim, entry))
    norms = [*NORM_NAMES, *sorted({norm for _, norm, _ in found} - {*NORM_NAMES})]
    made = []
    for dataset, norm, eps in sorted(found, key=lambda at: (at[0], norms.index(at[1]), at[2])):
        anchor = f"{slug(dataset)}-{slug(norm)}-{slug(f'{eps:g}')}"
        text = threat_text(norm, eps, LEVELS)
        made.append(Threat(anchor, dataset, norm, eps, text, _standings(found[dataset, norm, eps])))
    return made


def _standings(groups: Mapping[object, list[tuple[Claimed, BundleEntry]]]) -> list[Standing]:
    rows = []
    for history in groups.values():
        history.sort(key=lambda one: (one[1].date, one[1].name))
        known = [claim.accuracy for claim, _ in history]
        lowest = min(history, key=lambda one: (math.isnan(one[0].accuracy), one[0].accuracy, bool(one[0].note)))
        line = sparkline([min(known[: at + 1]) for at in range(len(known))]) if len(known) > 1 else ""
        rows.append((lowest, history, line))
    rows.sort(key=lambda row: (bool(row[0][0].note), -row[0][0].accuracy, row[0][0].defense, row[0][0].architecture))
    return [
        Standing(at if not claim.note else None, claim, source, history, line)
        for at, ((claim, source), history, line) in enumerate(rows, 1)
    ]
