"""Figures of a study: line charts, histograms, image grids."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.studies.study import Item

from ..drawing.charts import Axes, Chart, Line, nice_ticks, path, ticks
from ..drawing.png import data_uri
from .values import ValueTable

Image = npt.NDArray[Any]
Galleries = Mapping[Any, Mapping[str, Image]]

PICTURES: Final = 8
"""Rows of an image grid."""


@dataclass(frozen=True)
class ImageGrid:
    """An image grid: headings, and PNG data URIs by row ("" where nothing is there)."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]


def line_chart(item: Item, table: ValueTable) -> Chart:
    """Lines over columns that are numbers, or outlines of bins that begin there; what was not measured leaves a gap."""
    xs = [float(column) for column in table.columns]
    bin_ = xs[1] - xs[0] if item.kind == "histogram" and len(xs) > 1 else 0.0
    measured = [f.estimate.mean for f in table.cells.values() if f.estimate.measured]
    x_end, y_end = max(xs, default=1.0) + bin_ or 1.0, max([*measured, 1e-9]) * 1.05
    axes = Axes(*item.axes, x_end, y_end, width=560, left=48, right=546, top=14, bottom=284)
    paired = len(table.rows) > 6 and len(table.rows) % 2 == 0  # too many for a colour each: full and dashed
    lines = []
    for index, row in enumerate(table.rows):
        found = [
            (axes.x(at), axes.y(cell.estimate.mean))
            for at, column in zip(xs, table.columns, strict=True)
            if (cell := table.cells.get((row, column))) is not None and cell.estimate.measured
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


def image_grid(item: Item, galleries: Galleries) -> ImageGrid:
    """The pictures of an item, a column each."""
    columns = [map(data_uri, images) for images in _columns(item, galleries)]
    return ImageGrid([picture.title for picture in item.pictures], list(zip_longest(*columns, fillvalue="")))


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
