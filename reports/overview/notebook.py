"""A board as a part of somebody's page, such as the output of a notebook's cell."""

from __future__ import annotations

from markupsafe import Markup

from harness.leaderboard import leaderboard
from harness.metrics.pairs import Board

from ..boards.curves import curves
from ..boards.section import sections
from ..drawing.html import environment
from ..drawing.svg import svg
from .page import strips


def fragment(board: Board) -> str:
    """Ranking, curves of accuracy over eps and adversarial images as HTML without scripts, which styles nothing else.

    Returns:
        One element; the same board gives the same text.
    """
    parts = [
        {
            "section": section,
            "charts": [Markup(svg(chart)) for chart in curves(section, section.attacked, section.norms)],
            "strips": strips(section),
        }
        for section in sections([board], [leaderboard(board)])
    ]
    return environment().get_template("notebook.html.j2").render(parts=parts)
