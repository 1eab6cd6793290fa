"""The board as a page, as Markdown, and as a frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import quote

import pandas as pd

from harness.schema.board import BundleEntry

from ..drawing.html import page
from ..drawing.markdown import escape as md
from ..drawing.markdown import table
from ..drawing.text import MISSING, days_text, integer, interval, percent
from .standings import Threat

COLUMNS = (
    "place", "dataset", "norm", "eps", "architecture", "defense", "suite", "n", "seeds", "clean_accuracy",
    "worst_case_accuracy", "worst_case_low", "worst_case_high", "certified", "trust", "evaluated_by", "date", "bundle",
    "claims", "note",
)  # fmt: skip
"""Columns of ``board.csv``: a row for each model, norm and eps, its lowest claim."""


def render(entries: Sequence[BundleEntry], threats: Sequence[Threat], title: str) -> str:
    """The page as text."""
    return page(
        "board.html.j2",
        title=title,
        days=days_text(one.date for one in entries),
        up="",
        entries=entries,
        threats=threats,
    )


def frame(threats: Sequence[Threat]) -> pd.DataFrame:
    """:data:`COLUMNS`."""
    rows = [
        (
            one.place, threat.dataset, threat.norm, threat.eps, one.lowest.architecture, one.lowest.defense,
            one.lowest.suite, one.lowest.n, one.lowest.seeds, one.lowest.clean, one.lowest.accuracy, one.lowest.low,
            one.lowest.high, one.lowest.certified, one.lowest.trust, one.source.by, one.source.date, one.source.name,
            len(one.history), one.lowest.note,
        )
        for threat in threats
        for one in threat.standings
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"place": "Int64"})


def markdown(entries: Sequence[BundleEntry], threats: Sequence[Threat], title: str) -> str:
    """The board as GitHub-flavoured Markdown."""
    lines = [f"# {md(title)}", ""]
    lines += [
        "Robust accuracy in percent, on test images, of the worst case of all attacks of a suite: an upper bound,",
        "which whoever attacks harder can only lower. Of a model (the same weights, the same number of images) the",
        "lowest claim counts. Places follow the accuracies alone; a model without a place has no rank in its bundle.",
        "To check a number without attacking: `gauntlet verify BUNDLE`.",
        "",
    ]
    for threat in threats:
        lines += [f"## {md(threat.dataset)}, {md(threat.text)}", ""]
        head = ("place", "defense", "architecture", "worst case", "95 % interval", "clean", "n", "trust", "suite")
        rows = []
        for one in threat.standings:
            claim = one.lowest
            worst = percent(claim.accuracy)
            rows.append(
                [
                    integer(one.place),
                    md(claim.defense),
                    md(claim.architecture),
                    f"\u2264 {worst}" if claim.note else worst,
                    md(interval(claim.low, claim.high)),
                    percent(claim.clean),
                    integer(claim.n),
                    md(claim.trust or MISSING),
                    md(claim.suite),
                    md(one.source.by or MISSING),
                    md(one.source.date or MISSING),
                    _link(one.source),
                ]
            )
        lines += table((*head, "evaluated by", "date", "bundle"), rows, "rllrrrrlllll")
        notes = [
            f"- {md(one.lowest.defense)} / {md(one.lowest.architecture)}: {md(one.lowest.note)}"
            for one in threat.standings
            if one.lowest.note
        ]
        lines += [*notes, ""] if notes else []
    lines += ["## Bundles", "", *_bundles(entries)]
    return "\n".join(lines).rstrip() + "\n"


def _bundles(entries: Sequence[BundleEntry]) -> Iterator[str]:
    yield from table(
        ("bundle", "evaluated by", "date", "models", "pairs", "licence", "manifest", "trouble"),
        (
            [
                _link(one),
                md(one.by or MISSING),
                md(one.date or MISSING),
                integer(one.models),
                integer(one.pairs),
                md(one.licence or MISSING),
                md(one.manifest[:12] or MISSING),
                md("; ".join(one.trouble) or "none"),
            ]
            for one in entries
        ),
        "lllrrlll",
    )


def _link(entry: BundleEntry) -> str:
    return f"[{md(entry.name)}]({quote(entry.link, safe='/%')})"
