"""From boards to what a page shows: sections, panels, rankings, heat maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import pandas as pd

from harness.metrics import FLAGS, Board, Pair, WorstCase, by_model, pair_rows, summary, worst_case

from .text import counts, is_number, percent, plural, threat_text
from .view import Column, Cost, Entry, Failure, Gain, HeatCell, HeatRow, Panel, Record

MOSTLY: Final = 0.5
"""Share of unchanged images above which an attack with a budget is pointed out."""


@dataclass
class Section:
    """One suite on one data set.

    Attributes:
        anchor: Id on the page.
        board: The board.
        frame: The rows of its leaderboard that belong to ``dataset``.
        dataset: Name.
    """

    anchor: str
    board: Board
    frame: pd.DataFrame
    dataset: str
    _worst: dict[tuple[str, str, float], WorstCase] = field(default_factory=dict, repr=False)

    @property
    def title(self) -> str:
        """Suite and data set."""
        return f"{self.board.suite} on {self.dataset}"

    @cached_property
    def pairs(self) -> list[Pair]:
        """The section's pairs."""
        return [pair for pair in self.board.pairs if pair.meta["dataset"] == self.dataset]

    @cached_property
    def levels(self) -> int:
        """Images hold k/levels."""
        return next((int(pair.meta.get("levels") or 255) for pair in self.pairs), 255)

    @cached_property
    def known(self) -> dict[str, Mapping[str, Any]]:
        """Models the board knows on this data set."""
        return {key: model for key, model in self.board.models.items() if model.get("dataset") == self.dataset}

    @cached_property
    def entries(self) -> list[Entry]:
        """Lines of the tables in order of appearance, those without a single pair last."""
        groups: dict[tuple[str, str, int], dict[str, list[Pair]]] = {}
        for key, pairs in by_model(self.pairs).items():
            meta = pairs[0].meta
            n = max(len(pair.samples) for pair in pairs)
            groups.setdefault((meta["architecture"], meta["defense"], n), {})[key] = pairs
        seen = {group[:2] for group in groups}
        for model in self.known.values():
            if (name := (str(model.get("architecture")), str(model.get("defense")))) not in seen:
                groups.setdefault((*name, 0), {})
        return [
            Entry(
                index=i,
                anchor=f"{self.anchor}-m{i}",
                architecture=architecture,
                defense=defense,
                n=n,
                models=models,
                known={
                    key: model
                    for key, model in self.known.items()
                    if (model.get("architecture"), model.get("defense")) == (architecture, defense)
                },
                note=self._note(architecture, defense, n),
            )
            for i, ((architecture, defense, n), models) in enumerate(groups.items())
        ]

    def _note(self, architecture: str, defense: str, n: int) -> str:
        rows = self.frame
        rows = rows[(rows["architecture"] == architecture) & (rows["defense"] == defense) & (rows["n"] == n)]
        if len(rows):
            return str(rows["note"].iloc[0])
        reasons = []
        for key, model in self.known.items():
            if (model.get("architecture"), model.get("defense")) == (architecture, defense):
                missing = len(self.board.missing.get(key, ()))
                reason = model.get("error") or (f"{plural(missing, 'pair')} not run" if missing else "nothing was run")
                reasons.append(f"seed {model.get('seed')}: {reason}")
        return "; ".join(reasons) or "nothing was run"

    @cached_property
    def norms(self) -> list[str]:
        """Norms with at least one pair, in the order of the budgets."""
        used = {pair.meta["norm"] for pair in self.pairs}
        return [norm for norm in self.board.budgets.get(self.dataset, {}) if norm in used]

    @cached_property
    def records(self) -> dict[str, list[Record]]:
        """Per entry anchor its pairs, the seeds of one attack next to each other."""
        number = 0
        found: dict[str, list[Record]] = {}
        for entry in self.entries:
            ordered = sorted(entry.pairs, key=self._pair_order)
            found[entry.anchor] = []
            for pair in ordered:
                found[entry.anchor].append(self._record(f"{self.anchor}-p{number}", pair))
                number += 1
        return found

    def _pair_order(self, pair: Pair) -> tuple[int, str, str, float, int]:
        meta = pair.meta
        rank = self.norms.index(meta["norm"])
        return rank, meta["attack"], str(meta.get("source") or ""), meta["eps"] or 0.0, meta["seed"]

    def _record(self, anchor: str, pair: Pair) -> Record:
        # the rows of pairs.csv, so that the page cannot show an accuracy that the file withholds
        rows = pair_rows(replace(self.board, pairs=[pair])).to_dict("records")
        names = ("eps", "robust_accuracy", "robust_accuracy_low", "robust_accuracy_high")
        accuracies = [tuple(float(row[name]) for name in names) for row in rows]
        flags = pair.meta.get("invalid") or {flag: int(pair.samples[flag].sum()) for flag in FLAGS}
        return Record(anchor, pair, _measured(pair), accuracies, counts(flags.items()))

    @cached_property
    def panels(self) -> list[Panel]:
        """A panel for every norm and canonical eps."""
        budgets = self.board.budgets.get(self.dataset, {})
        return [
            self._panel(f"{self.anchor}-{norm}-{i}", norm, eps)
            for norm in self.norms
            for i, eps in enumerate(budgets[norm])
        ]

    def _panel(self, anchor: str, norm: str, eps: float) -> Panel:
        columns, rows = self._heat(norm, eps)
        gains = self._gains(norm, eps)
        return Panel(
            anchor=anchor,
            norm=norm,
            eps=eps,
            text=threat_text(norm, eps, self.levels),
            rankings=self._rankings(norm, eps),
            columns=columns,
            heat=rows,
            gains=[gain for gain in gains if gain.total > 0],
            idle=[gain.attack for gain in gains if gain.total == 0],
        )

    def _rankings(self, norm: str, eps: float) -> list[tuple[int, list[dict[str, Any]]]]:
        here = self.frame[(self.frame["norm"] == norm) & (self.frame["eps"] == eps)]
        by_name = {(entry.architecture, entry.defense, entry.n): entry for entry in self.entries}
        tables = []
        for n in sorted(set(here["n"]), reverse=True):
            rows = here[here["n"] == n].to_dict("records")
            tables.append((int(n), [{**row, "entry": by_name[row["architecture"], row["defense"], n]} for row in rows]))
        shown = {row["entry"].anchor for _, rows in tables for row in rows}
        never = [entry for entry in self.entries if entry.anchor not in shown]
        if never and not tables:
            tables.append((0, []))
        for entry in never:
            tables[-1][1].append({"rank": pd.NA, "entry": entry, "note": entry.note or "no attack ran in this norm"})
        return tables

    def _heat(self, norm: str, eps: float) -> tuple[list[Column], list[HeatRow]]:
        found: dict[Column, dict[str, list[tuple[Record, float]]]] = {}
        for anchor, records in self.records.items():
            for record in records:
                if record.pair.meta["norm"] != norm:
                    continue
                for at, value, _, _ in record.accuracies:
                    if at == eps:
                        found.setdefault(column(record.pair), {}).setdefault(anchor, []).append((record, value))
        cells = {
            attack: [_heat_cell(by_entry.get(entry.anchor, [])) for entry in self.entries]
            for attack, by_entry in found.items()
        }

        def strength(attack: Column) -> tuple[bool, float, str]:
            values = [cell.value for cell in cells[attack] if cell.value is not None]
            return attack.control, float(np.mean(values)) if values else 1.0, attack.name

        columns = sorted(found, key=strength)
        ranked = [row["entry"].index for _, rows in self._rankings(norm, eps) for row in rows]
        rows = [
            HeatRow(
                self.entries[i], self._worst_cell(self.entries[i], norm, eps), [cells[attack][i] for attack in columns]
            )
            for i in ranked
        ]
        return columns, rows

    def _worst_cell(self, entry: Entry, norm: str, eps: float) -> HeatCell:
        if not entry.models:
            return HeatCell("absent", text="no model" if entry.note else "not run", detail=entry.note)
        cases = self.worst(entry, norm, eps)
        value = float(np.mean([case.accuracy for case in cases]))
        if not is_number(value):
            return HeatCell("failed", text="no images", detail=entry.note, anchor=entry.anchor)
        return HeatCell("bound" if entry.note else "value", value=value, detail=entry.note, anchor=entry.anchor)

    def worst(self, entry: Entry, norm: str, eps: float) -> list[WorstCase]:
        """Worst cases of an entry, one a seed."""
        for key, pairs in entry.models.items():
            if (key, norm, eps) not in self._worst:
                self._worst[key, norm, eps] = worst_case(pairs, norm, eps)
        return [self._worst[key, norm, eps] for key in entry.models]

    def _gains(self, norm: str, eps: float) -> list[Gain]:
        entries = [entry for entry in self.entries if entry.models]
        cases = [self.worst(entry, norm, eps) for entry in entries]
        labels = dict.fromkeys(label for over_seeds in cases for case in over_seeds for label in case.alone)
        gains = []
        for label in labels:
            shares: list[float | None] = []
            for over_seeds in cases:
                known = [case.alone[label] / case.n for case in over_seeds if case.n and label in case.alone]
                shares.append(float(np.mean(known)) if known else None)
            gains.append(Gain(label, shares))
        return sorted(gains, key=lambda gain: (-gain.total, gain.attack))

    @property
    def attacks(self) -> set[Column]:
        """Attacks of the section; the same under two norms counts once."""
        return {column(pair) for pair in self.pairs}

    @property
    def sizes(self) -> list[int]:
        """Distinct numbers of images."""
        return sorted({len(pair.samples) for pair in self.pairs})

    @property
    def first(self) -> str:
        """Anchor of the panel to show first: the middle eps of the first norm."""
        panels = [panel for panel in self.panels if panel.norm == self.norms[0]]
        return panels[len(panels) // 2].anchor

    @property
    def attacked(self) -> list[Entry]:
        """Entries with at least one pair."""
        return [entry for entry in self.entries if entry.models]

    @cached_property
    def failures(self) -> list[Failure]:
        """Failed models, pairs that did not run, crashed and invalid pairs."""
        found = []
        for key, model in self.known.items():
            name, seed = f"{model.get('defense')} / {model.get('architecture')}", str(model.get("seed"))
            labels = self.board.missing.get(key, ())
            error = str(model.get("error") or "")
            if model.get("status") == "failed" or error:
                what = f"training, so {plural(len(labels), 'pair')} did not run" if labels else "training"
                found.append(Failure(name, seed, what, "failed", _first_line(error), _more(error)))
            else:
                found += [Failure(name, seed, str(label), "not run", "no record") for label in labels]
        for entry in self.entries:
            for record in self.records[entry.anchor]:
                meta = record.pair.meta
                errors = [str(error) for error in meta.get("errors") or ()]
                if record.failed or errors or record.problem:
                    reason = "; ".join(filter(None, [record.problem, *dict.fromkeys(map(_first_line, errors))]))
                    what = f"{column(record.pair).name}, {threat_text(meta['norm'], meta['eps'], self.levels)}"
                    status = meta["status"] if record.failed else "noted"
                    found.append(Failure(entry.name, str(meta["seed"]), what, status, reason, errors, record))
        return found

    @cached_property
    def cautions(self) -> list[Failure]:
        """Pairs that count, of an attack with a budget that gave back most images as they were."""
        found = []
        for entry in self.entries:
            for record in self.records[entry.anchor]:
                meta, attack = record.pair.meta, column(record.pair)
                idle = meta.get("kind") != "budget" or attack.control or not meta["eps"]
                if idle or record.failed or record.unchanged <= MOSTLY:
                    continue
                what = f"{attack.name}, {threat_text(meta['norm'], meta['eps'], self.levels)}"
                reason = f"{percent(record.unchanged)} % of the attacked images came back unchanged"
                found.append(Failure(entry.name, str(meta["seed"]), what, "caution", reason, (), record))
        return found

    @cached_property
    def costs(self) -> list[Cost]:
        """A row an attack and norm, cheapest first within a norm."""
        groups: dict[tuple[Column, str], list[Record]] = {}
        for records in self.records.values():
            for record in records:
                groups.setdefault((column(record.pair), record.pair.meta["norm"]), []).append(record)
        rows = [
            Cost(
                column=attack,
                access=str(records[0].pair.meta.get("access") or ""),
                kind=str(records[0].pair.meta.get("kind") or ""),
                norm=norm,
                pairs=len(records),
                forwards=_mean(record.pair.meta.get("forwards") for record in records),
                backwards=_mean(record.pair.meta.get("backwards") for record in records),
                seconds=_mean(record.pair.meta.get("seconds") for record in records),
                success_rate=_mean(record.summary["success_rate"] for record in records),
            )
            for (attack, norm), records in groups.items()
        ]
        passes = {row: float(np.nan_to_num(row.forwards + row.backwards)) for row in rows}
        return sorted(rows, key=lambda row: (self.norms.index(row.norm), passes[row], row.column.name))


def sections(boards: Sequence[Board], frames: Sequence[pd.DataFrame]) -> list[Section]:
    """A section for every suite and data set, in order of appearance.

    Args:
        boards: The boards.
        frames: Their :func:`harness.metrics.leaderboard`, in the same order.
    """
    found: list[Section] = []
    for board, frame in zip(boards, frames, strict=True):
        names = [pair.meta["dataset"] for pair in board.pairs]
        names += [str(model["dataset"]) for model in board.models.values() if model.get("dataset")]
        for dataset in dict.fromkeys(names):
            found.append(Section(f"s{len(found)}", board, frame[frame["dataset"] == dataset], dataset))
    return found


def column(pair: Pair) -> Column:
    """The attack of a pair as a column. What needs nothing of any model is a control."""
    meta = pair.meta
    source = str(meta.get("source") or "")
    control = meta.get("access") == "none" and not source
    return Column(str(meta["attack"]), source, str(meta.get("toolkit") or ""), control)


def _heat_cell(found: Sequence[tuple[Record, float]]) -> HeatCell:
    if not found:
        return HeatCell("absent", text="not run")
    anchor = found[0][0].anchor
    failed = [record for record, _ in found if record.failed]
    if failed:
        states = dict.fromkeys(record.pair.meta["status"] for record in failed)
        share = f" {len(failed)} of {len(found)}" if len(found) > 1 else ""
        detail = "; ".join(f"seed {r.pair.meta['seed']}: {r.pair.meta['status']} {r.problem}".strip() for r in failed)
        return HeatCell("failed", text=" ".join(states) + share, detail=detail, anchor=anchor)
    values = [value for _, value in found]
    detail = "; ".join(f"seed {record.pair.meta['seed']}: {100 * value:.1f} %" for record, value in found)
    if not all(map(is_number, values)):
        return HeatCell("failed", text="no images", detail=detail, anchor=anchor)
    return HeatCell("value", value=float(np.mean(values)), detail=detail, anchor=anchor)


def _measured(pair: Pair) -> dict[str, float]:
    """Summary of a pair's samples. What a failed attack achieved on the rest is no measurement: NaN."""
    found = summary(pair.samples)
    if pair.meta["status"] == "ok":
        return found
    kept = ("n", "clean_accuracy", "invalid")
    return {name: value if name.startswith(kept) else float("nan") for name, value in found.items()}


def _mean(values: Iterable[Any]) -> float:
    known = [float(value) for value in values if is_number(value)]
    return float(np.mean(known)) if known else float("nan")


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines and lines[0].startswith("Traceback") else (lines[0] if lines else "no message")


def _more(text: str) -> list[str]:
    return [text] if len(text.strip().splitlines()) > 1 else []
