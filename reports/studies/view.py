"""What the pages of a study show: its items as tables and figures, its claims, and what today's attacks leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.studies.findings import Finding, Findings, Outcome, Verdict
from harness.studies.study import Claim, Item, leaves

from ..drawing.charts import Chart
from ..drawing.text import eps_text, norm_name, percent
from .figures import ImageGrid, image_grid, line_chart
from .values import MEANINGS, ValueTable

Row = Mapping[Any, Any]


@dataclass(frozen=True)
class ItemView:
    """An item as it is shown: ``chart`` for lines and histograms, ``image_grid`` for images."""

    item: Item
    table: ValueTable
    chart: Chart | None
    image_grid: ImageGrid | None


@dataclass(frozen=True)
class ClaimView:
    """A claim with its clauses and verdict."""

    claim: Claim
    verdict: Verdict
    clauses: Sequence[Finding]


def item_views(outcome: Outcome) -> list[ItemView]:
    """Every item of the study."""
    return [_item(outcome, item) for item in outcome.findings.study.items]


def claim_views(findings: Findings) -> list[ClaimView]:
    """Every claim of the study."""
    return [
        ClaimView(claim, findings.holds(claim), [findings.clause(claim, clause) for clause in claim.clauses])
        for claim in findings.study.claims
    ]


def tally(outcome: Outcome) -> dict[str, int]:
    """How many printed values have which verdict."""
    findings = [finding for item in item_views(outcome) for finding in item.table.cells.values()]
    verdicts = [finding.verdict for finding in findings if finding.printed is not None]
    return {name: verdicts.count(name) for name in MEANINGS}  # type: ignore[arg-type]


def _item(outcome: Outcome, item: Item) -> ItemView:
    table = ValueTable(
        rows=list(dict.fromkeys(v.row for v in item.values)),
        columns=list(dict.fromkeys(v.column for v in item.values)),
        cells={(v.row, v.column): outcome.findings.value(item.name, v) for v in item.values},
    )
    return ItemView(
        item=item,
        table=table,
        chart=line_chart(item, table) if item.kind in ("lines", "histogram") else None,
        image_grid=image_grid(item, outcome.galleries) if item.kind == "grid" else None,
    )


@dataclass(frozen=True)
class Remaining:
    """What today's batteries leave of one model: a text for every norm at its smallest budget, with trust."""

    model: str
    parts: Sequence[tuple[str, str, str]]


def remaining(outcome: Outcome, item: Item, row: str) -> list[Remaining]:
    """For a row of a table, what is left of the judged models that it is about."""
    called = dict(outcome.findings.study.defended)
    about = [measure.model for value in item.values if value.row == row for measure in leaves(value.quantity)]
    found = []
    for name in dict.fromkeys(about):
        rows = outcome.judgement[outcome.judgement["model"] == called.get(name, "")]
        parts = []
        for norm, group in sorted(rows.groupby("norm"), key=lambda part: part[0] != "linf"):
            first = min(group.to_dict("records"), key=lambda one: float(one["eps"]))
            left = ("\u2264 " if first["note"] else "") + f"{percent(first['worst_case_accuracy'])} %"
            parts.append((f"{norm_name(str(norm))} {eps_text(first['eps'])}", left, str(first["trust"] or "")))
        if parts:
            found.append(Remaining(called[name], parts))
    return found


@dataclass(frozen=True)
class JudgementTable:
    """The judgement by today's batteries as a table: a row per model, a column per norm and eps."""

    columns: Sequence[tuple[str, float]]
    rows: Sequence[tuple[str, Any, Mapping[tuple[str, float], Row], Mapping[str, Row]]]


def judgement_table(outcome: Outcome) -> JudgementTable:
    """Model, clean accuracy, numbers by (norm, eps), and trust by norm."""
    frame = outcome.judgement
    columns = sorted(
        {(str(r["norm"]), float(r["eps"])) for r in frame.to_dict("records")}, key=lambda c: (c[0] != "linf", c)
    )
    rows = []
    for model, group in frame.groupby("model", sort=False):
        records: list[Row] = list(group.to_dict("records"))
        cells = {(str(r["norm"]), float(r["eps"])): r for r in records}
        trust = {norm: cells[norm, eps] for norm, eps in columns if (norm, eps) in cells}
        rows.append((str(model), records[0]["clean_accuracy"], cells, trust))
    return JudgementTable(columns, rows)
