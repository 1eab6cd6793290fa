"""Geometry of the charts. The templates draw it, so that colours follow the page's light and dark themes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from harness.metrics.pairs import Floats, curve, wilson

from .text import budget_text, is_number, norm_name

WIDTH: Final = 500
HEIGHT: Final = 330
LEFT: Final = 44
RIGHT: Final = 14
TOP: Final = 30
BOTTOM: Final = 44
POINTS: Final = 160


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, what it says ("" if its neighbour leaves no room)."""

    at: float
    text: str


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
    """

    index: int
    name: str
    n: int
    distances: Sequence[Floats]
    bound: bool = False
    seeds: bool = False


@dataclass(frozen=True)
class Line:
    """One model's curve: SVG path data, marks at the canonical eps, and the numbers behind the marks.

    Attributes:
        index: Number that sets the colour.
        name: What the legend says.
        bound: Whether the model has no rank.
        path: The line.
        seeds: The seeds' lines.
        band: Outline of its 95 % band.
        marks: Centres of the marks.
        values: (accuracy, low, high) at each canonical eps.
    """

    index: int
    name: str
    bound: bool
    path: str
    seeds: Sequence[str]
    band: str
    marks: Sequence[tuple[float, float]]
    values: Sequence[tuple[float, float, float]]


@dataclass(frozen=True)
class Chart:
    """Robust accuracy over eps, in one norm."""

    norm: str
    title: str
    lines: Sequence[Line]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    canonical: Sequence[Tick]
    eps: Sequence[str]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def eps_chart(curves: Sequence[Curve], norm: str, budgets: Sequence[float], levels: int) -> Chart:
    """Chart of robust accuracy over eps: the mean over seeds of what all attacks together leave.

    Args:
        curves: What to draw.
        norm: The norm of the horizontal axis.
        budgets: Canonical eps, ascending, at least one.
        levels: Images hold k/levels.
    """
    end = 1.2 * max(budgets) or 1.0
    if norm == "linf":
        end = max(min(end, 1.0), *budgets)  # no image of [0, 1] is farther away
    grid = np.union1d(np.linspace(0, end, POINTS + 1), np.asarray(budgets, float))
    at = [int(np.searchsorted(grid, eps)) for eps in budgets]

    def x(eps: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * eps / end

    def drawn(values: Sequence[float] | Floats) -> list[tuple[float, float]]:
        return [(x(eps), _y(value)) for eps, value in zip(grid, values, strict=True)]

    lines = []
    for line in curves:
        each = [curve(distances, grid) for distances in line.distances]
        values = np.mean(each, axis=0)
        ends = [wilson(value * line.n, line.n) for value in values]
        points = drawn(values)
        lower, upper = drawn([low for low, _ in ends]), drawn([high for _, high in ends])
        lines.append(
            Line(
                index=line.index,
                name=line.name,
                bound=line.bound,
                path=_path(points),
                seeds=[_path(drawn(one)) for one in each] if line.seeds and len(each) > 1 else [],
                band=_path(_thin(upper)) + _path(_thin(lower)[::-1]).replace("M", "L", 1) + "Z",
                marks=[(round(points[i][0], 1), round(points[i][1], 1)) for i in at],
                values=[(float(values[i]), *ends[i]) for i in at],
            )
        )
    return Chart(
        norm=norm,
        title=f"Robust accuracy over \u03b5 in {norm_name(norm)}",
        lines=lines,
        x_ticks=[Tick(round(x(eps), 1), f"{eps:.6g}") for eps in nice_ticks(end)],
        y_ticks=[Tick(round(_y(value / 100), 1), str(value)) for value in (0, 25, 50, 75, 100)],
        canonical=_spaced([(x(eps), budget_text(norm, eps, levels)) for eps in budgets]),
        eps=[budget_text(norm, eps, levels) for eps in budgets],
    )


def nice_ticks(end: float, count: int = 5) -> list[float]:
    """Round values from 0 to at most ``end``, about ``count`` of them."""
    rough = end / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [round(i * step, 12) for i in range(int(end / step + 1e-9) + 1)]


def sparkline(values: Sequence[float], width: float = 150, height: float = 34) -> str:
    """Path data of a small line from the first to the last value; "" if fewer than two are finite."""
    finite = [(i, float(value)) for i, value in enumerate(values) if is_number(value)]
    if len(finite) < 2:
        return ""
    low = min(value for _, value in finite)
    span = max(value for _, value in finite) - low or 1.0
    last = finite[-1][0]
    return _path([(2 + (width - 4) * i / last, 2 + (height - 4) * (1 - (v - low) / span)) for i, v in finite])


def _y(accuracy: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - accuracy)


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Drop points in the middle of a level stretch: most of a curve is level, and the page stays small."""
    inner = range(1, len(points) - 1)
    level = {i for i in inner if abs(points[i - 1][1] - points[i][1]) < 0.05 > abs(points[i][1] - points[i + 1][1])}
    return [point for i, point in enumerate(points) if i not in level]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in _thin(points))


def _spaced(labels: Sequence[tuple[float, str]]) -> list[Tick]:
    """Ticks whose text is dropped where it would run into the one before or out of the picture."""
    ticks: list[Tick] = []
    free = -math.inf
    for at, text in labels:
        half = 3.5 * len(text)
        fits = at - half >= free and at + half <= WIDTH
        ticks.append(Tick(round(at, 1), text if fits else ""))
        free = at + half + 4 if fits else free
    return ticks
