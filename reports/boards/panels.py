"""The tables at one norm and eps: ranking, models against attacks, and what each attack adds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.trust.checks import FEW

from ..drawing.text import is_number, percent
from .results import SuiteResults
from .rows import Beaten, Column, Entry, Gain, HeatCell, HeatRow, Panel, Record, column

Found = tuple[Record, float, int]
"""A record, its robust accuracy at some eps, and the images it broke there."""


def panels(results: SuiteResults) -> list[Panel]:
    """A panel for every norm and canonical eps."""
    return [
        _panel(results, f"{results.anchor}-{norm}-{i}", norm, eps)
        for norm in results.norms
        for i, eps in enumerate(results.budgets[norm])
    ]


def _panel(results: SuiteResults, anchor: str, norm: str, eps: float) -> Panel:
    rankings = _rankings(results, norm, eps)
    order = [row["entry"] for _, rows in rankings for row in rows]
    columns, heat = _heat(results, order, norm, eps)
    gains = _gains(results, norm, eps)
    return Panel(
        anchor=anchor,
        norm=norm,
        eps=eps,
        text=results.threat(norm, eps),
        rankings=rankings,
        columns=columns,
        heat=heat,
        gains=[gain for gain in gains if gain.total > 0],
        idle=[gain.attack for gain in gains if gain.total == 0],
        beaten=_beaten(results, columns, heat),
    )


def _rankings(results: SuiteResults, norm: str, eps: float) -> list[tuple[int, list[dict[str, Any]]]]:
    """Rows by n, most first. Models that nothing was run on stand at the end of the last table."""
    here = results.frame[(results.frame["norm"] == norm) & (results.frame["eps"] == eps)]
    by_name = {(entry.architecture, entry.defense, entry.n): entry for entry in results.entries}
    tables = []
    for n in sorted(set(here["n"]) - {0}, reverse=True):
        rows = here[here["n"] == n].to_dict("records")
        ranks = Counter(row["rank"] for row in rows if not row["note"])
        tables.append(
            (
                int(n),
                [
                    {**row, "entry": by_name[row["architecture"], row["defense"], n], "shared": ranks[row["rank"]] > 1}
                    for row in rows
                ],
            )
        )
    shown = {row["entry"].anchor for _, rows in tables for row in rows}
    never = [entry for entry in results.entries if entry.anchor not in shown]
    if never and not tables:
        tables.append((0, []))
    for entry in never:
        tables[-1][1].append({"rank": pd.NA, "entry": entry, "note": entry.notes[norm], "trust": "", "shared": False})
    return tables


def _heat(results: SuiteResults, order: Sequence[Entry], norm: str, eps: float) -> tuple[list[Column], list[HeatRow]]:
    found: dict[Column, dict[str, list[Found]]] = {}
    for anchor, records in results.records.items():
        for record in records:
            if record.pair.result.norm != norm:
                continue
            for (at, value, _, _), (_, broke) in zip(record.accuracies, record.broke, strict=True):
                if at == eps:
                    found.setdefault(record.column, {}).setdefault(anchor, []).append((record, value, broke))
    cells = {
        attack: [_heat_cell(by_entry.get(entry.anchor, [])) for entry in results.entries]
        for attack, by_entry in found.items()
    }
    turn = {attack: i for i, attack in enumerate(dict.fromkeys(map(column, results.pairs)))}

    def strength(attack: Column) -> tuple[bool, float, int]:
        values = [cell.value for cell in cells[attack] if cell.value is not None]
        return attack.control, float(np.mean(values)) if values else 1.0, turn[attack]

    columns = sorted(found, key=strength)
    rows = [
        HeatRow(entry, _worst_cell(results, entry, norm, eps), [cells[attack][entry.index] for attack in columns])
        for entry in order
    ]
    return columns, rows


def _beaten(results: SuiteResults, columns: Sequence[Column], heat: Sequence[HeatRow]) -> list[Beaten]:
    """Models of which the best attack of one step breaks at least three images more than an iterated one."""
    family = {column(pair): pair.result.family for pair in results.pairs if not pair.result.source}
    found = []
    for row in heat:
        left = {attack: cell.value for attack, cell in zip(columns, row.cells, strict=True) if cell.value is not None}
        steps = [attack for attack in left if family.get(attack) == "one-step"]
        if not steps:
            continue
        best = min(steps, key=lambda attack: left[attack])
        iterated = [attack for attack in left if family.get(attack) == "iterated"]
        worse = [attack for attack in iterated if round((left[attack] - left[best]) * row.entry.n) >= FEW]
        if worse:
            words = [f"{attack.attack} ({percent(left[attack])} %)" for attack in worse]
            found.append(Beaten(row.entry, best.attack, left[best], words))
    return found


def _worst_cell(results: SuiteResults, entry: Entry, norm: str, eps: float) -> HeatCell:
    note = entry.notes[norm]
    if not entry.models:
        return HeatCell("absent", text="no model" if note else "not run", detail=note)
    cases = results.worst(entry, norm, eps)
    value = float(np.mean([case.accuracy for case in cases]))
    if not is_number(value):
        return HeatCell("failed", text="no images", detail=note, anchor=entry.anchor)
    return HeatCell("bound" if note else "value", value=value, detail=note, anchor=entry.anchor)


def _gains(results: SuiteResults, norm: str, eps: float) -> list[Gain]:
    cases = [results.worst(entry, norm, eps) for entry in results.attacked]
    labels = dict.fromkeys(label for over_seeds in cases for case in over_seeds for label in case.alone)
    gains = []
    for label in labels:
        shares: list[float | None] = []
        for over_seeds in cases:
            known = [case.alone[label] / case.n for case in over_seeds if case.n and label in case.alone]
            shares.append(float(np.mean(known)) if known else None)
        gains.append(Gain(label, shares))
    return sorted(gains, key=lambda gain: (-gain.total, gain.attack))


def _heat_cell(found: Sequence[Found]) -> HeatCell:
    if not found:
        return HeatCell("absent", text="not run")
    full = {record.pair.result.seed for record, _, _ in found if record.met is None}  # of one that was run both ways
    found = [one for one in found if one[0].met is None or one[0].pair.result.seed not in full]
    anchor = found[0][0].anchor
    failed = [record for record, _, _ in found if record.failed]
    if failed:
        states = dict.fromkeys(record.pair.result.status for record in failed)
        share = f" {len(failed)} of {len(found)}" if len(found) > 1 else ""
        detail = "; ".join(f"seed {r.pair.result.seed}: {r.pair.result.status} {r.problem}".strip() for r in failed)
        return HeatCell("failed", text=" ".join(states) + share, detail=detail, anchor=anchor)
    if any(record.met is not None for record, _, _ in found):
        return _cascade_cell(found, anchor)
    values = [value for _, value, _ in found]
    detail = "; ".join(f"seed {record.pair.result.seed}: {100 * value:.1f} %" for record, value, _ in found)
    if not all(map(is_number, values)):
        return HeatCell("failed", text="no images", detail=detail, anchor=anchor)
    return HeatCell("value", value=float(np.mean(values)), detail=detail, anchor=anchor)


def _cascade_cell(found: Sequence[Found], anchor: str) -> HeatCell:
    """Images broken of those met. There is no accuracy: the others were never shown to the attack."""
    details, met, total = [], 0, 0
    for record, value, broke in found:
        seed = f"seed {record.pair.result.seed}: "
        if record.met is None:  # this seed was run in full
            details.append(f"{seed}{100 * value:.1f} % of all images left")
            continue
        details.append(f"{seed}broke {broke} of the {record.met} images that it was shown")
        met, total = met + record.met, total + broke
    return HeatCell("cascade", text=f"{total} of {met}", detail="; ".join(details), anchor=anchor)
