"""Line charts in pixels: axes, ticks and paths. Templates draw them in the page's colours, :mod:`.svg` on white."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .text import is_number

Point = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, what it says ("" if its neighbour leaves no room)."""

    at: float
    text: str


@dataclass(frozen=True)
class Axes:
    """Two axes that begin at 0: their names, the values at their ends, and where they are in the picture, in pixels."""

    x_name: str
    y_name: str
    x_end: float
    y_end: float
    width: int = 500
    height: int = 330
    left: int = 44
    right: int = 486
    top: int = 30
    bottom: int = 286

    def x(self, value: float) -> float:
        """Pixels from the left of the picture."""
        return self.left + (self.right - self.left) * value / self.x_end

    def y(self, value: float) -> float:
        """Pixels from the top of the picture."""
        return self.top + (self.bottom - self.top) * (1 - value / self.y_end)


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        index: Number that sets the colour.
        name: What the legend says.
        path: SVG path data, "" if nothing was measured.
        dashed: Whether it is drawn so; where it shows a model, that this has no rank.
        marks: Centres of the marks on it.
        seeds: Paths of the seeds it is the mean of, as far as they are drawn.
        band: Outline of its 95 % band, "" without one.
        values: (accuracy, low, high) at each mark, as far as they are shown.
    """

    index: int
    name: str
    path: str
    dashed: bool
    marks: Sequence[Point]
    seeds: Sequence[str] = ()
    band: str = ""
    values: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Chart:
    """A line chart.

    Attributes:
        title: For those who do not see it.
        axes: Its axes.
        lines: Its lines.
        x_ticks: On the horizontal axis.
        y_ticks: On the vertical axis.
        radius: Of the marks.
        heading: What stands above it, "" for nothing.
        canonical: Vertical lines at the canonical eps.
        eps: The canonical eps in words; with them goes a table of the values there.
    """

    title: str
    axes: Axes
    lines: Sequence[Line]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    radius: float
    heading: str = ""
    canonical: Sequence[Tick] = ()
    eps: Sequence[str] = ()


def ticks(values: Sequence[float], place: Callable[[float], float]) -> list[Tick]:
    """A tick for each value, put in its place by a method of the axes."""
    return [Tick(round(place(value), 1), f"{value:g}") for value in values]


def nice_ticks(end: float, count: int = 5) -> list[float]:
    """Round values from 0 to at most ``end``, about ``count`` of them."""
    rough = end / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [round(i * step, 12) for i in range(int(end / step + 1e-9) + 1)]


def spaced_ticks(labels: Sequence[tuple[float, str]], width: float) -> list[Tick]:
    """Ticks whose text is dropped where it would run into the one before or out of the picture."""
    ticks: list[Tick] = []
    free = -math.inf
    for at, text in labels:
        half = 3.5 * len(text)
        fits = at - half >= free and at + half <= width
        ticks.append(Tick(round(at, 1), text if fits else ""))
        free = at + half + 4 if fits else free
    return ticks


def sparkline(values: Sequence[float], width: float = 150, height: float = 34) -> str:
    """Path data of a small line from the first to the last value; "" if fewer than two are finite."""
    finite = [(i, float(value)) for i, value in enumerate(values) if is_number(value)]
    if len(finite) < 2:
        return ""
    low = min(value for _, value in finite)
    span = max(value for _, value in finite) - low or 1.0
    last = finite[-1][0]
    return path(thin([(2 + (width - 4) * i / last, 2 + (height - 4) * (1 - (v - low) / span)) for i, v in finite]))


def thin(points: Sequence[Point]) -> list[Point]:
    """Drop points in the middle of a level stretch: most of a curve is level, and the page stays small."""
    inner = range(1, len(points) - 1)
    level = {i for i in inner if abs(points[i - 1][1] - points[i][1]) < 0.05 > abs(points[i][1] - points[i + 1][1])}
    return [point for i, point in enumerate(points) if i not in level]


def path(points: Sequence[Point]) -> str:
    """SVG path data of a line through points."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
