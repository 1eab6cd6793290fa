"""A study's outcome in the shape that its pages show: tables as grids of cells, figures as lines and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.studies.findings import Finding, Findings, Outcome, Verdict
from harness.studies.study import Claim, Item, leaves

from .drawing.charts import Axes, Chart, Line, nice_ticks, path, ticks
from .drawing.png import data_uri
from .drawing.text import MISSING, eps_text, is_number, norm_name, number, percent

PICTURES: Final = 8
"""Rows of an image grid."""

MARKS: Final[Mapping[Verdict, str]] = {
    "reproduced": "\u2713",
    "same direction": "\u2248",
    "not reproduced": "\u2717",
    "not run": MISSING,
    "": "",
}
"""What stands beside a number, for eyes; the verdict in words is its title."""

MEANINGS: Final[Mapping[str, str]] = {
    "reproduced": "the printed value is met within the stated tolerance, or twice that where the 95 % interval reaches "
    "as far; of a claim: it holds beyond the interval",
    "same direction": "the value differs, but the claims about it hold; of a claim: it holds on average, and the "
    "interval reaches the other side",
    "not reproduced": "neither",
    "not run": "nothing was measured in this profile",
}


@dataclass(frozen=True)
class Grid:
    """A table: findings by row and column, in the order of the paper."""

    rows: Sequence[str]
    columns: Sequence[str]
    cells: Mapping[tuple[str, str], Finding]


@dataclass(frozen=True)
class Wall:
    """An image grid: headings, and PNG data URIs by row ("" where nothing is there)."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Shown:
    """An item as it is shown; ``plot`` for lines and histograms, ``wall`` for images."""

    item: Item
    grid: Grid
    plot: Chart | None
    wall: Wall | None


@dataclass(frozen=True)
class Judged:
    """A claim with its clauses and verdict."""

    claim: Claim
    verdict: Verdict
    clauses: Sequence[Finding]


def shown(outcome: Outcome) -> list[Shown]:
    """Every item of the study."""
    return [_item(outcome, item) for item in outcome.findings.study.items]


def judged(findings: Findings) -> list[Judged]:
    """Every claim of the study."""
    return [
        Judged(claim, findings.holds(claim), [findings.clause(claim, clause) for clause in claim.clauses])
        for claim in findings.study.claims
    ]


def tally(outcome: Outcome) -> dict[str, int]:
    """How many printed values have which verdict."""
    verdicts = [
        finding.verdict
        for item in shown(outcome)
        for finding in item.grid.cells.values()
        if finding.printed is not None
    ]
    return {name: verdicts.count(name) for name in MEANINGS}  # type: ignore[arg-type]


def amount(value: Any, unit: str, digits: int = 3) -> str:
    """A value as it is printed: one decimal (two below 10) for percent, significant digits otherwise."""
    if not is_number(value):
        return MISSING
    if unit == "%":
        return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
    return number(value, digits)


def span(finding: Finding) -> str:
    """The 95 % interval, "" where there is none."""
    found = finding.estimate
    if not (is_number(found.low) and is_number(found.high)):
        return ""
    return f"[{amount(found.low, finding.unit)}, {amount(found.high, finding.unit)}]"


def _item(outcome: Outcome, item: Item) -> Shown:
    cells = {(v.row, v.column): outcome.findings.value(item.name, v) for v in item.values}
    grid = Grid(
        rows=list(dict.fromkeys(v.row for v in item.values)),
        columns=list(dict.fromkeys(v.column for v in item.values)),
        cells=cells,
    )
    plot = _plot(item, grid) if item.kind in ("lines", "histogram") else None
    wall = _wall(item, outcome.galleries) if item.kind == "grid" else None
    return Shown(item, grid, plot, wall)


def _plot(item: Item, grid: Grid) -> Chart:
    """Lines over columns that are numbers, or outlines of bins that begin there; what was not measured leaves a gap."""
    xs = [float(column) for column in grid.columns]
    bin_ = xs[1] - xs[0] if item.kind == "histogram" and len(xs) > 1 else 0.0
    measured = [f.estimate.mean for f in grid.cells.values() if f.estimate.measured]
    x_end, y_end = max(xs, default=1.0) + bin_ or 1.0, max([*measured, 1e-9]) * 1.05
    axes = Axes(*item.axes, x_end, y_end, width=560, left=48, right=546, top=14, bottom=284)
    paired = len(grid.rows) > 6 and len(grid.rows) % 2 == 0  # too many for a colour each: full and dashed
    lines = []
    for index, row in enumerate(grid.rows):
        found = [
            (axes.x(at), axes.y(cell.estimate.mean))
            for at, column in zip(xs, grid.columns, strict=True)
            if (cell := grid.cells.get((row, column))) is not None and cell.estimate.measured
        ]
        if bin_:
            width, ground = axes.x(bin_) - axes.left, axes.y(0.0)
            drawn = "".join(f"M{a:.1f} {ground:.1f}V{b:.1f}H{a + width:.1f}V{ground:.1f}" for a, b in found)
        else:
            drawn = path(found) if found else ""
        lines.append(
            Line(index // 2 if paired else index, row, drawn, paired and index % 2 == 1, [] if bin_ else found)
        )
    return Chart(
        title=item.title,
        axes=axes,
        lines=lines,
        x_ticks=ticks(nice_ticks(x_end), axes.x),
        y_ticks=ticks(nice_ticks(y_end), axes.y),
        radius=2.6,
    )


def _wall(item: Item, galleries: Mapping[Any, Mapping[str, npt.NDArray[Any]]]) -> Wall:
    columns = []
    for picture in item.pictures:
        gallery = galleries.get(picture.measure)
        columns.append([] if gallery is None else [data_uri(image) for image in _images(gallery, picture.shows)])
    length = max((len(column) for column in columns), default=0)
    rows = [[column[i] if i < len(column) else "" for column in columns] for i in range(length)]
    return Wall([picture.title for picture in item.pictures], rows)


def _images(gallery: Mapping[str, npt.NDArray[Any]], shows: str) -> list[npt.NDArray[Any]]:
    x = np.asarray(gallery["x"][:PICTURES], dtype=np.float64)
    if shows == "original":
        return list(x)
    x_adv = np.asarray(gallery["x_adv"][:PICTURES], dtype=np.float64)
    return list(x_adv if shows == "adversarial" else 0.5 + (x_adv - x))


def picture_sheet(item: Item, galleries: Mapping[Any, Mapping[str, npt.NDArray[Any]]]) -> npt.NDArray[Any] | None:
    """An image grid as one image (C, H, W) in [0, 1], white between the pictures; None if nothing is there."""
    columns = [(galleries.get(picture.measure), picture.shows) for picture in item.pictures]
    stacks = [_images(gallery, shows) for gallery, shows in columns if gallery is not None]
    if not stacks or len(stacks) < len(columns):
        return None
    channels, height, width = stacks[0][0].shape
    gap = 2
    rows = min(len(stack) for stack in stacks)
    sheet = np.ones((channels, rows * (height + gap) + gap, len(stacks) * (width + gap) + gap))
    for j, stack in enumerate(stacks):
        for i in range(rows):
            top, left = gap + i * (height + gap), gap + j * (width + gap)
            sheet[:, top : top + height, left : left + width] = stack[i]
    factor = max(1, math.ceil(60 / height))
    larger: npt.NDArray[Any] = sheet.repeat(factor, axis=1).repeat(factor, axis=2)
    return larger


@dataclass(frozen=True)
class Left:
    """What today's batteries leave of one model: a text for every norm at its smallest budget, with trust."""

    model: str
    parts: Sequence[tuple[str, str, str]]


def todays(outcome: Outcome, shown_item: Shown, row: str) -> list[Left]:
    """For a row of a table, what is left of the judged models that it is about."""
    called = dict(outcome.findings.study.defended)
    about = [
        measure.model for value in shown_item.item.values if value.row == row for measure in leaves(value.quantity)
    ]
    found = []
    for name in dict.fromkeys(about):
        rows = outcome.judgement[outcome.judgement["model"] == called.get(name, "")]
        parts = []
        for norm, group in sorted(rows.groupby("norm"), key=lambda part: part[0] != "linf"):
            first = min(group.to_dict("records"), key=lambda one: float(one["eps"]))
            left = ("\u2264 " if first["note"] else "") + f"{percent(first['worst_case_accuracy'])} %"
            parts.append((f"{norm_name(str(norm))} {eps_text(first['eps'])}", left, str(first["trust"] or "")))
        if parts:
            found.append(Left(called[name], parts))
    return found


Record = Mapping[Any, Any]


@dataclass(frozen=True)
class Remains:
    """The judgement by today's batteries as a table: a row a model, a column a norm and eps."""

    columns: Sequence[tuple[str, float]]
    rows: Sequence[tuple[str, Any, Mapping[tuple[str, float], Record], Mapping[str, Record]]]


def remains(outcome: Outcome) -> Remains:
    """Model, clean accuracy, numbers by (norm, eps), and trust by norm."""
    frame = outcome.judgement
    columns = sorted(
        {(str(r["norm"]), float(r["eps"])) for r in frame.to_dict("records")}, key=lambda c: (c[0] != "linf", c)
    )
    rows = []
    for model, group in frame.groupby("model", sort=False):
        records: list[Record] = list(group.to_dict("records"))
        cells = {(str(r["norm"]), float(r["eps"])): r for r in records}
        trust = {norm: cells[norm, eps] for norm, eps in columns if (norm, eps) in cells}
        rows.append((str(model), records[0]["clean_accuracy"], cells, trust))
    return Remains(columns, rows)
