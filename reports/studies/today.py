"""What today's batteries leave of the models of studies, as tables: of one study, and of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.studies.record import StudyRecord

from ..drawing.html import page
from ..drawing.markdown import escape as md
from ..drawing.markdown import table
from ..drawing.text import (
    MISSING,
    band_on,
    days_text,
    eps_text,
    integer,
    interval,
    is_number,
    norm_name,
    percent,
    planted_text,
    spread,
)

Row = Mapping[Any, Any]


@dataclass(frozen=True)
class Judged:
    """A model as batteries judged it: a row of ``judgement.csv`` for every norm and eps.

    Attributes:
        study: The study that it is of.
        record: The folder of the record that says so.
        model: What the study calls it.
        cells: Rows by norm and eps.
    """

    study: str
    record: str
    model: str
    cells: Mapping[tuple[str, float], Row]

    @property
    def first(self) -> Row:
        """Any row, for what they have in common."""
        return next(iter(self.cells.values()))

    @property
    def norms(self) -> dict[str, Row]:
        """A row for every norm, for what its budgets have in common."""
        found: dict[str, Row] = {}
        for (norm, _), row in self.cells.items():
            found.setdefault(norm, row)
        return found

    @property
    def planted(self) -> dict[str, str]:
        """Shares of planted adversarials that were found, by norm; none where none were planted."""
        return {norm: text for norm, row in self.norms.items() if (text := planted_text(row)) != MISSING}

    @property
    def judged_on(self) -> str:
        """Images and seeds."""
        return f"{integer(self.first['n'])} \u00d7 {self.first['seeds']}"

    def reserves(self, grades: str) -> list[str]:
        """What must be read beside the numbers: why there is no rank, trust of these grades, or no certificate."""
        found: dict[str, None] = {}
        for (norm, _), row in self.cells.items():
            doubt = row["note"] or (row["trust_reasons"] if row["trust"] in grades else "")
            found |= {f"{norm_name(norm)}: {words}": None for words in (doubt, row["certificate"]) if words}
        return list(found)


@dataclass(frozen=True)
class JudgementTable:
    """A row per model, a column per norm and eps."""

    columns: Sequence[tuple[str, float]]
    rows: Sequence[Judged]

    def reserves(self, grades: str = "BCD") -> list[tuple[str, str]]:
        """Of every model what :meth:`Judged.reserves` says, by its name."""
        return [(one.model, words) for one in self.rows for words in one.reserves(grades)]

    @property
    def planted(self) -> bool:
        """Whether adversarials were planted in any model."""
        return any(one.planted for one in self.rows)

    @property
    def images(self) -> int:
        """Most that any model was judged on."""
        return max((int(one.first["n"]) for one in self.rows), default=0)

    @property
    def seeds(self) -> int:
        """Likewise."""
        return max((int(one.first["seeds"]) for one in self.rows), default=0)


def judgement_table(record: StudyRecord, name: str = "") -> JudgementTable:
    """Of one study, its models in its own order.

    Args:
        record: What it came to.
        name: The record's folder.
    """
    groups = record.judgement.groupby("model", sort=False)
    rows = [
        Judged(
            study=record.study.name,
            record=name,
            model=str(model),
            cells={(str(row["norm"]), float(row["eps"])): row for row in group.to_dict("records")},
        )
        for model, group in groups
    ]
    return _table(rows)


def unjudged(record: StudyRecord) -> list[str]:
    """Defended models that a battery should have judged and has not, or not with all of its attacks."""
    there = {*record.judgement["model"], *record.facts["skipped"]}
    return [called for _, called in record.study.defended if len(record.judgement) and called not in there]


def boards(records: Mapping[str, StudyRecord]) -> dict[str, JudgementTable]:
    """Of all studies, a table per data set, from what stands best at the smallest L-infinity budget downwards.

    The data set with most models comes first. Of a model that several records judge, the one on most images and seeds
    counts, of equals the latest; models without a rank come last.

    Args:
        records: By folder.
    """
    best: dict[str, dict[tuple[str, str], Judged]] = {}
    for name, record in sorted(records.items(), key=lambda one: max(one[1].facts.get("days", ()), default="")):
        there = best.setdefault(str(record.facts["dataset"]), {})
        for one in judgement_table(record, name).rows:
            known = there.get((one.study, one.model))
            if known is None or _size(one) >= _size(known):
                there[one.study, one.model] = one
    tables = {dataset: _table(found.values()) for dataset, found in sorted(best.items()) if found}
    return {
        dataset: replace(found, rows=sorted(found.rows, key=lambda one: _standing(one, found.columns)))
        for dataset, found in sorted(tables.items(), key=lambda table: -len(table[1].rows))
    }


def _order(column: tuple[str, float]) -> tuple[bool, str, float]:
    return column[0] != "linf", *column


def _table(rows: Iterable[Judged]) -> JudgementTable:
    ordered = [replace(one, cells=dict(sorted(one.cells.items(), key=lambda cell: _order(cell[0])))) for one in rows]
    return JudgementTable(sorted({at for one in ordered for at in one.cells}, key=_order), ordered)


def _size(one: Judged) -> int:
    return int(one.first["n"]) * int(one.first["seeds"])


def _standing(one: Judged, columns: Sequence[tuple[str, float]]) -> tuple[object, ...]:
    left = (one.cells[at]["worst_case_accuracy"] if at in one.cells else -1 for at in columns)
    return bool(one.first["note"]), *(-value if is_number(value) else 1 for value in left), one.study, one.model


def markdown(found: JudgementTable, *, studies: bool = False) -> Iterator[str]:
    """A table as Markdown, with the reserves below.

    Args:
        found: What is shown.
        studies: Whether to say of which study each model is, and on how many images it was judged.
    """
    heads = ["model", "clean", *(f"{norm_name(norm)} {eps_text(eps)}" for norm, eps in found.columns), "trust"]
    align = "l" + "r" * (len(heads) - 2) + "l"
    if found.planted:
        heads, align = [*heads, "planted found"], align + "r"
    if studies:
        heads, align = ["study", *heads, "images \u00d7 seeds"], f"l{align}r"
    rows = []
    for one in found.rows:
        grades = " ".join(f"{norm_name(norm)} {row['trust'] or MISSING}" for norm, row in one.norms.items())
        cells = [md(one.model), percent(one.first["clean_accuracy"])]
        cells += [_cell(one.cells.get(at)) for at in found.columns]
        cells += [grades]
        if found.planted:
            cells += [", ".join(f"{norm_name(norm)} {words}" for norm, words in one.planted.items()) or MISSING]
        if studies:
            cells = [f"`{one.study}`", *cells, one.judged_on]
        rows.append(cells)
    yield from table(heads, rows, align)
    if reserves := found.reserves("CD" if studies else "BCD"):
        yield from ("<details><summary>Reserves</summary>", "")
        yield from (*(f"- {md(model)}, {md(words)}" for model, words in reserves), "", "</details>", "")


def _cell(row: Row | None) -> str:
    if row is None:
        return MISSING
    left = "\u2264 " * bool(row["note"]) + spread(row["worst_case_accuracy"], row["std"])
    band = band_on(row, row["n"])
    lines = [left, interval(row["worst_case_low"], row["worst_case_high"]), *([f"band {band}"] * (band != MISSING))]
    return "<br>".join(md(line).replace(" ", "\u00a0") for line in lines)


def board(found: Mapping[str, JudgementTable]) -> str:
    """Of all studies as Markdown, a table per data set."""
    lines: list[str] = []
    for dataset, part in found.items():
        lines += [f"### {md(dataset)}", "", *markdown(part, studies=True)]
    return "\n".join(lines)


def render(found: Mapping[str, JudgementTable], records: Mapping[str, StudyRecord]) -> str:
    """The same as a page; its links are relative to the folder of the records."""
    shown = {one.record for part in found.values() for one in part.rows}
    return page(
        "papers.html.j2",
        title="Defenses of four papers under today's attacks",
        days=days_text(day for name in shown for day in records[name].facts.get("days", ())),
        boards=found,
        titles={record.study.name: record.study.title for record in records.values()},
        up="",
    )
