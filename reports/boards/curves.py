"""Robust accuracy over eps: the curves of some models in one chart per norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from harness.metrics.pairs import Floats, curve, interval

from ..drawing.charts import Axes, Chart, Line, Point, nice_ticks, path, spaced_ticks, thin, ticks
from ..drawing.html import PALETTE, heading
from ..drawing.text import budget_text, norm_name
from .results import SuiteResults
from .rows import Entry

POINTS: Final = 160
"""Steps of eps in a curve."""


@dataclass(frozen=True)
class Curve:
    """What a line is drawn from.

    Attributes:
        index: Number that sets the colour.
        name: What the legend says.
        n: Images.
        distances: Per seed the distance at which each image was lost, see :func:`harness.metrics.pairs.nearest`.
        bound: Whether the model has no rank, so that the line is dashed.
        seeds: Whether each seed's curve is drawn too.
        doubt: Images that may fall at each of the budgets, beyond those that fell
            (:attr:`harness.metrics.pairs.WorstCase.doubt`); none if it is empty.
    """

    index: int
    name: str
    n: int
    distances: Sequence[Floats]
    bound: bool = False
    seeds: bool = False
    doubt: Sequence[float] = ()

    def interval(self, share: float, at: int) -> tuple[float, float]:
        """Interval of a share of images where so many of the budgets are at most its eps."""
        return interval(share * self.n, self.n, self.doubt[max(at - 1, 0)] if self.doubt else 0.0)


def eps_chart(
    curves: Sequence[Curve], norm: str, budgets: Sequence[float], levels: int, measure: str = "robust accuracy"
) -> Chart:
    """Chart of robust accuracy over eps: the mean over seeds of what all attacks together leave.

    Args:
        curves: What to draw.
        norm: The norm of the horizontal axis.
        budgets: Canonical eps, ascending, at least one.
        levels: Images hold k/levels.
        measure: What that share of images is called.
    """
    end = 1.2 * max(budgets) or 1.0
    if norm == "linf":
        end = max(min(end, 1.0), *budgets)  # no image of [0, 1] is farther away
    axes = Axes(f"\u03b5 in {norm_name(norm)} distance", f"{measure}, %", end, 100)
    grid = np.union1d(np.linspace(0, end, POINTS + 1), np.asarray(budgets, float))
    at = [int(np.searchsorted(grid, eps)) for eps in budgets]

    def drawn(values: Sequence[float] | Floats) -> list[Point]:
        return [(axes.x(eps), axes.y(100 * value)) for eps, value in zip(grid, values, strict=True)]

    lines = []
    for line in curves:
        each = [curve(distances, grid) for distances in line.distances]
        values = np.mean(each, axis=0)
        below = np.searchsorted(np.asarray(budgets, float), grid, side="right")
        ends = [line.interval(float(value), int(at)) for value, at in zip(values, below, strict=True)]
        points = drawn(values)
        lower, upper = (thin(drawn(limits)) for limits in zip(*ends, strict=True))
        lines.append(
            Line(
                index=line.index,
                name=line.name,
                path=path(thin(points)),
                dashed=line.bound,
                marks=[points[i] for i in at],
                seeds=[path(thin(drawn(one))) for one in each] if line.seeds and len(each) > 1 else [],
                band=path(upper) + path(lower[::-1]).replace("M", "L", 1) + "Z",
                values=[(float(values[i]), *ends[i]) for i in at],
            )
        )
    texts = [budget_text(norm, eps, levels) for eps in budgets]
    return Chart(
        title=f"{heading(measure)} over \u03b5 in {norm_name(norm)}",
        axes=axes,
        lines=lines,
        x_ticks=ticks(nice_ticks(end), axes.x),
        y_ticks=ticks((0, 25, 50, 75, 100), axes.y),
        radius=3.4,
        heading=norm_name(norm),
        canonical=spaced_ticks([(axes.x(eps), text) for eps, text in zip(budgets, texts, strict=True)], axes.width),
        eps=texts,
    )


def distinct(entries: Sequence[Entry]) -> list[int]:
    """Numbers of the entries' colours; of two that would look alike, the second takes the next."""
    if len(entries) != 2 or (entries[0].colour - entries[1].colour) % PALETTE:
        return [entry.colour for entry in entries]
    return [entries[0].colour, entries[0].colour + 1]


def curves(
    results: SuiteResults, entries: Sequence[Entry], norms: Sequence[str], *, seeds: bool = False
) -> list[Chart]:
    """A chart of some entries for every norm with a bounded eps, in their colours."""
    found = []
    colours = distinct(entries)
    for norm in norms:
        lines = [
            Curve(
                index=colours[number],
                name=entry.name,
                n=entry.n,
                distances=[one["distance"].to_numpy(float) for one in results.nearest(entry, norm)],
                bound=bool(entry.notes[norm]),
                seeds=seeds,
                doubt=[
                    float(np.mean([case.doubt for case in results.worst(entry, norm, eps)]))
                    for eps in results.budgets[norm]
                ],
            )
            for number, entry in enumerate(entries)
            if entry.n and norm in results.bounded
        ]
        if lines:
            found.append(eps_chart(lines, norm, results.budgets[norm], results.levels, results.measure))
    return found
