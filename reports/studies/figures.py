"""Figures of a study: line charts, histograms, image grids."""

from __future__ import annotations

import base64
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt

from harness.studies.findings import Finding
from harness.studies.study import Item

from ..drawing.charts import Axes, Chart, Line, nice_ticks, path, ticks
from ..drawing.text import is_number
from .values import ValueTable

Image = npt.NDArray[Any]
Galleries = Mapping[Any, Mapping[str, Image]]

PICTURES: Final = 8
"""Rows of an image grid."""


def line_chart(item: Item, table: ValueTable) -> Chart:
    """Lines over columns that are numbers, or outlines of bins that begin there; what was not measured leaves a gap."""
    xs = [float(column) for column in table.columns]
    bin_ = xs[1] - xs[0] if item.kind == "histogram" and len(xs) > 1 else 0.0
    measured = [f.high if is_number(f.high) else f.measured for f in table.cells.values() if is_number(f.measured)]
    x_end, y_end = max(xs, default=1.0) + bin_ or 1.0, max([*measured, 1e-9]) * 1.05
    axes = Axes(*item.axes, x_end, y_end, width=560, left=48, right=546, top=14, bottom=284)
    paired = len(table.rows) > 6 and len(table.rows) % 2 == 0  # too many for a colour each: full and dashed
    lines = []
    for index, row in enumerate(table.rows):
        found = [
            (axes.x(at), axes.y(cell.measured))
            for at, column in zip(xs, table.columns, strict=True)
            if (cell := table.cells.get((row, column))) is not None and is_number(cell.measured)
        ]
        if bin_:
            width, ground = axes.x(bin_) - axes.left, axes.y(0.0)
            drawn = "".join(f"M{a:.1f} {ground:.1f}V{b:.1f}H{a + width:.1f}V{ground:.1f}" for a, b in found)
        else:
            drawn = path(found) if found else ""
        band = "" if bin_ else _band(axes, xs, [table.cells.get((row, column)) for column in table.columns])
        dashed, colour = paired and index % 2 == 1, index // 2 if paired else index
        lines.append(Line(colour, row, drawn, dashed, [] if bin_ else found, band=band))
    return Chart(
        title=item.title,
        axes=axes,
        lines=lines,
        x_ticks=ticks(nice_ticks(x_end), axes.x),
        y_ticks=ticks(nice_ticks(y_end), axes.y),
        radius=2.6,
    )


def _band(axes: Axes, xs: Sequence[float], cells: Sequence[Finding | None]) -> str:
    """Outline of the 95 % intervals along a line, "" where fewer than two are known."""
    ends = [
        (axes.x(at), axes.y(min(cell.high, axes.y_end)), axes.y(max(cell.low, 0.0)))
        for at, cell in zip(xs, cells, strict=True)
        if cell is not None and is_number(cell.low) and is_number(cell.high)
    ]
    if len(ends) < 2:
        return ""
    there, back = [(x, high) for x, high, _ in ends], [(x, low) for x, _, low in reversed(ends)]
    return path([*there, *back]) + "Z"


def headed(item: Item, sheet: bytes) -> str:
    """An image grid with a heading over each column, as an SVG file that holds the PNG file ``sheet``.

    Raises:
        ValueError: ``sheet`` is no PNG file.
    """
    if sheet[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError("no PNG file")
    width, height = (int.from_bytes(sheet[at : at + 4], "big") for at in (16, 20))
    column, top, wide = width / len(item.pictures), 48, max(width, 120 * len(item.pictures))
    scale = wide / width
    words = "".join(
        f'<text x="{scale * column * (number + 0.5):.1f}" y="{14 * line + 14}" text-anchor="middle">'
        f"{escape(part)}</text>"
        for number, picture in enumerate(item.pictures)
        for line, part in enumerate(textwrap.wrap(picture.title, int(scale * column / 6.2))[:3])
    )
    encoded = base64.b64encode(sheet).decode()
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {scale * height + top:.0f}" width="{wide}" '
        f'height="{scale * height + top:.0f}"><rect width="100%" height="100%" fill="#fff"/>'
        f'<g font-family="system-ui, Liberation Sans, Arial, sans-serif" font-size="11" fill="#1a1e24">{words}</g>'
        f'<image y="{top}" width="{wide}" height="{scale * height:.0f}" '
        f'href="data:image/png;base64,{encoded}"/></svg>\n'
    )


def picture_sheet(item: Item, galleries: Galleries) -> Image | None:
    """An image grid as one image (C, H, W) in [0, 1], white between the pictures; None if some are missing."""
    columns = _columns(item, galleries)
    if not columns or not all(columns):
        return None
    channels, height, width = columns[0][0].shape
    gap = 2
    rows = min(len(column) for column in columns)
    sheet = np.ones((channels, rows * (height + gap) + gap, len(columns) * (width + gap) + gap))
    for j, column in enumerate(columns):
        for i in range(rows):
            top, left = gap + i * (height + gap), gap + j * (width + gap)
            sheet[:, top : top + height, left : left + width] = column[i]
    factor = max(1, math.ceil(60 / height))
    return sheet.repeat(factor, axis=1).repeat(factor, axis=2)


def _columns(item: Item, galleries: Galleries) -> list[list[Image]]:
    """The first images of every picture, none where its measure was not taken."""
    return [_images(galleries.get(picture.measure), picture.shows) for picture in item.pictures]


def _images(gallery: Mapping[str, Image] | None, shows: str) -> list[Image]:
    if gallery is None:
        return []
    x = np.asarray(gallery["x"][:PICTURES], dtype=np.float64)
    if shows == "original":
        return list(x)
    x_adv = np.asarray(gallery["x_adv"][:PICTURES], dtype=np.float64)
    return list(x_adv if shows == "adversarial" else 0.5 + (x_adv - x))
