"""Lines as an SVG file of its own, for Markdown: on white, with its legend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from xml.sax.saxutils import escape

from .study_view import Plot

COLOURS: Final = (
    "#2a6bd8", "#d4650f", "#15876a", "#b83280", "#7250cc", "#8a6a00", "#0a86a6", "#c43a31", "#586472", "#4f8a10",
)  # fmt: skip
LEGEND: Final = 190
FONT: Final = 'font-family="system-ui, Liberation Sans, Arial, sans-serif" font-size="12"'


def svg(plot: Plot) -> str:
    """The figure as text; the same plot gives the same bytes."""
    return "\n".join(_lines(plot)) + "\n"


def _lines(plot: Plot) -> Iterator[str]:
    width, height = plot.width + LEGEND, max(plot.height, plot.top + 18 * len(plot.strokes) + 10)
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    yield f'<rect width="{width}" height="{height}" fill="#fff"/><g {FONT} fill="#5b6470">'
    for at, words in plot.y_ticks:
        yield f'<line x1="{plot.left}" x2="{plot.right}" y1="{at}" y2="{at}" stroke="#e1e4e9"/>'
        yield f'<text x="{plot.left - 7}" y="{at + 4}" text-anchor="end">{escape(words)}</text>'
    for at, words in plot.x_ticks:
        yield f'<text x="{at}" y="{plot.bottom + 18}" text-anchor="middle">{escape(words)}</text>'
    yield f'<line x1="{plot.left}" x2="{plot.right}" y1="{plot.bottom}" y2="{plot.bottom}" stroke="#c4cad3"/>'
    middle, centre = (plot.left + plot.right) / 2, (plot.top + plot.bottom) / 2
    yield f'<text x="{middle}" y="{plot.height - 6}" text-anchor="middle">{escape(plot.x_axis)}</text>'
    yield f'<text transform="rotate(-90)" x="{-centre}" y="11" text-anchor="middle">{escape(plot.y_axis)}</text>'
    for number, stroke in enumerate(plot.strokes):
        colour = COLOURS[stroke.index % len(COLOURS)]
        dash = ' stroke-dasharray="5 3"' if stroke.dashed else ""
        if stroke.path:
            yield f'<path d="{stroke.path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
        for x, y in stroke.points:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="#fff" stroke="{colour}" stroke-width="1.6"/>'
        at = plot.top + 18 * number + 6
        yield f'<path d="M{plot.width + 4} {at}h22" stroke="{colour}" stroke-width="2"{dash}/>'
        yield f'<text x="{plot.width + 32}" y="{at + 4}" fill="#1a1e24">{escape(stroke.name)}</text>'
    yield "</g></svg>"
