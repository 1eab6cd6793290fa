"""What the pages of a study show: its items as tables and figures, its claims, and what today's attacks leave."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from harness.schema.counts import plural
from harness.studies.deciding import Remedy, remedies
from harness.studies.findings import Finding, Verdict
from harness.studies.record import VALUES, StudyRecord
from harness.studies.study import Claim, Item, leaves

from ..drawing.charts import Chart
from ..drawing.text import eps_text, norm_name, percent
from .figures import line_chart
from .values import BASES, ValueTable

Row = Mapping[Any, Any]


@dataclass(frozen=True)
class ItemView:
    """An item as it is shown, with a chart of lines and histograms."""

    item: Item
    table: ValueTable
    chart: Chart | None


@dataclass(frozen=True)
class ClaimView:
    """A claim with its clauses and verdict."""

    claim: Claim
    verdict: Verdict
    clauses: Sequence[Finding]


def item_views(record: StudyRecord) -> list[ItemView]:
    """Every item of the study."""
    return [_item(record, item) for item in record.study.items]


def claim_views(record: StudyRecord) -> list[ClaimView]:
    """Every claim of the study."""
    return [ClaimView(claim, record.verdict(claim), record.clauses(claim)) for claim in record.study.claims]


PLACES: Final = re.compile(r"(table|figure)s? ((?:[0-9]+|[IVX]+)(?:(?:, | and )(?:[0-9]+|[IVX]+))*)")


def claims_on(item: Item, claims: Sequence[ClaimView]) -> list[ClaimView]:
    """Claims of which the paper says that they rest on an item's table or figure."""
    kind, _, number = item.name.partition("-")
    number = number.partition("-")[0].lower()
    found = []
    for one in claims:
        places = {
            (kind, each.lower())
            for kind, all_of in PLACES.findall(one.claim.where)
            for each in re.findall(r"\w+", all_of)
        }
        if (kind, number) in places or (kind, _ROMAN.get(number, "")) in places:
            found.append(one)
    return found


_ROMAN: Final = {
    str(i): word for i, word in enumerate(("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x"), 1)
}


@dataclass(frozen=True)
class Tally:
    """How many printed values and clauses have which verdict.

    Attributes:
        values: Of printed values measured for their own sake.
        apart: Of the others, in words.
        clauses: Of the claims.
    """

    values: Mapping[Verdict, int]
    apart: Sequence[str]
    clauses: Mapping[Verdict, int]


def tally(record: StudyRecord) -> Tally:
    """The counts that a page opens with; verdicts that nothing has are left out."""
    values, apart, clauses = record.counts()
    words = [
        f"{BASES[basis]}: " + ", ".join(f"{counts[name]} {name}" for name in VALUES if counts[name])
        for basis, counts in apart.items()
    ]
    return Tally(
        {name: count for name, count in values.items() if count},
        words,
        {name: count for name, count in clauses.items() if count},
    )


def _item(record: StudyRecord, item: Item) -> ItemView:
    quoted = {(quote.row, quote.column): quote for quote in item.quoted}
    places = [*((v.row, v.column) for v in item.values), *quoted]
    table = ValueTable(
        rows=list(dict.fromkeys(row for row, _ in places)),
        columns=list(dict.fromkeys(column for _, column in places)),
        cells={(v.row, v.column): record.value(item, v) for v in item.values},
        quoted=quoted,
    )
    return ItemView(
        item=item,
        table=table,
        chart=line_chart(item, table) if item.kind in ("lines", "histogram") else None,
    )


@dataclass(frozen=True)
class Remaining:
    """What today's batteries leave of one model: a text for every norm at its smallest budget, with trust."""

    model: str
    parts: Sequence[tuple[str, str, str]]


def remaining(record: StudyRecord, item: Item, row: str) -> list[Remaining]:
    """For a row of a table, what is left of the judged models that it is about."""
    called = dict(record.study.defended)
    about = [measure.model for value in item.values if value.row == row for measure in leaves(value.quantity)]
    found = []
    for name in dict.fromkeys(about):
        rows = record.judgement[record.judgement["model"] == called.get(name, "")]
        parts = []
        for norm, group in sorted(rows.groupby("norm"), key=lambda part: part[0] != "linf"):
            first = min(group.to_dict("records"), key=lambda one: float(one["eps"]))
            left = ("\u2264 " if first["note"] else "") + f"{percent(first['worst_case_accuracy'])} %"
            parts.append((f"{norm_name(str(norm))} {eps_text(first['eps'])}", left, str(first["trust"] or "")))
        if parts:
            found.append(Remaining(called[name], parts))
    return found


@dataclass(frozen=True)
class Deciding:
    """What would decide the open findings of an item or claim, in words; "" where nothing is foreseen to.

    Attributes:
        item: Its name.
        open: What is.
        decided: How many of it the run is foreseen to decide.
        size: Seeds and images.
        hours: What that costs beyond what was spent.
        command: The run.
    """

    item: str
    open: str
    decided: str
    size: str
    hours: str
    command: str


def deciding(record: StudyRecord) -> list[Deciding]:
    """A row for every item and claim that is not decided as a whole."""
    return [_deciding(one) for one in remedies(record)]


def _deciding(one: Remedy) -> Deciding:
    size = ""
    if one.size is not None:
        size = plural(one.size.seeds, "seed") + (f", {plural(one.size.images, 'image')}" if one.sampled else "")
    hours = ""
    if one.size is not None:
        hours = "not known" if one.hours is None else f"{'' if one.measured else 'at most '}{max(one.hours, 0.1):.1f}"
    return Deciding(
        item=one.item,
        open=_counted({"undecided": one.undecided, "not run": one.not_run}),
        decided=outlook([one]),
        size=size,
        hours=hours,
        command=one.command,
    )


def outlook(found: Sequence[Remedy]) -> str:
    """How many open findings the runs are foreseen to decide."""
    return _counted(
        {
            "foreseen": sum(one.decided for one in found),
            "not foreseen": sum(one.unforeseen for one in found),
            "out of reach": sum(one.out_of_reach for one in found),
        }
    )


def _counted(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {what}" for what, number in parts.items() if number)


def on(facts: Mapping[str, Any]) -> str:
    """The data set, and what it stands in for."""
    there = facts.get("stands_in_for", "")
    return f"{facts['dataset']} (standing in for {there})" if there else str(facts["dataset"])


def provenance(facts: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """What the numbers were made with, by name; what a record does not say is left out."""
    found = {
        "measured at": facts.get("commits", ()),
        "on": facts.get("machines", ()),
        "device": [facts["device"]] if facts.get("device") else (),
        "days": facts.get("days", ()),
        "data (SHA-256)": [facts["data_sha256"]] if facts.get("data_sha256") else (),
    }
    return {name: values for name, values in found.items() if values}
