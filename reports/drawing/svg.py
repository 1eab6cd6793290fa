"""Line charts as SVG files of their own, for Markdown: on white, with a legend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from xml.sax.saxutils import escape

from .charts import Chart

COLOURS: Final = (
    "#2a6bd8", "#d4650f", "#15876a", "#b83280", "#7250cc", "#8a6a00", "#0a86a6", "#c43a31", "#586472", "#4f8a10",
)  # fmt: skip
LEGEND: Final = 190
FONT: Final = 'font-family="system-ui, Liberation Sans, Arial, sans-serif" font-size="12"'


def svg(chart: Chart) -> str:
    """The chart as text; the same chart gives the same bytes."""
    return "\n".join(_lines(chart)) + "\n"


def _lines(chart: Chart) -> Iterator[str]:
    axes = chart.axes
    longest = max((len(line.name) for line in chart.lines), default=0)
    width, height = axes.width + max(LEGEND, 40 + 7 * longest), max(axes.height, axes.top + 18 * len(chart.lines) + 10)
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    yield f'<rect width="{width}" height="{height}" fill="#fff"/><g {FONT} fill="#5b6470">'
    for tick in chart.y_ticks:
        yield f'<line x1="{axes.left}" x2="{axes.right}" y1="{tick.at}" y2="{tick.at}" stroke="#e1e4e9"/>'
        yield f'<text x="{axes.left - 7}" y="{tick.at + 4}" text-anchor="end">{escape(tick.text)}</text>'
    for tick in chart.x_ticks:
        yield f'<text x="{tick.at}" y="{axes.bottom + 18}" text-anchor="middle">{escape(tick.text)}</text>'
    yield f'<line x1="{axes.left}" x2="{axes.right}" y1="{axes.bottom}" y2="{axes.bottom}" stroke="#c4cad3"/>'
    middle, centre = (axes.left + axes.right) / 2, (axes.top + axes.bottom) / 2
    yield f'<text x="{middle}" y="{axes.height - 6}" text-anchor="middle">{escape(axes.x_name)}</text>'
    yield f'<text transform="rotate(-90)" x="{-centre}" y="11" text-anchor="middle">{escape(axes.y_name)}</text>'
    for number, line in enumerate(chart.lines):
        stroke = f'stroke="{COLOURS[line.index % len(COLOURS)]}"'
        dash = ' stroke-dasharray="5 3"' if line.dashed else ""
        if line.band:
            colour = COLOURS[line.index % len(COLOURS)]
            yield f'<path d="{line.band}" fill="{colour}" fill-opacity="0.12" stroke="none"/>'
        if line.path:
            yield f'<path d="{line.path}" fill="none" {stroke} stroke-width="2"{dash}/>'
        for x, y in line.marks:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{chart.radius}" fill="#fff" {stroke} stroke-width="1.6"/>'
        at = axes.top + 18 * number + 6
        yield f'<path d="M{axes.width + 4} {at}h22" {stroke} stroke-width="2"{dash}/>'
        yield f'<text x="{axes.width + 32}" y="{at + 4}" fill="#1a1e24">{escape(line.name)}</text>'
    yield "</g></svg>"
