from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from harness.metrics.pairs import Pair, nearest, wilson
from reports.boards.curves import Curve, eps_chart
from reports.drawing import charts
from reports.drawing.html import PALETTE, environment, soft
from reports.drawing.svg import svg


@pytest.mark.parametrize("end", [0.0376, 1.2, 3.0, 24.0, 1e-6])
def test_ticks_are_round_and_fit(end: float) -> None:
    ticks = charts.nice_ticks(end)
    assert ticks[0] == 0
    assert ticks[-1] <= end * (1 + 1e-9)
    assert 3 <= len(ticks) <= 7
    assert np.allclose(np.diff(ticks), ticks[1])


def line(*seeds: list[Pair], norm: str = "linf", **extra: Any) -> Curve:
    distances = [nearest(pairs, norm)["distance"].to_numpy(float) for pairs in seeds]
    return Curve(**{"index": 0, "name": "m", "n": len(distances[0]), "distances": distances} | extra)


def test_marks_and_values_are_the_worst_case_at_the_canonical_eps(pair: Callable[..., Pair]) -> None:
    pairs = [pair([1, 1, 1, 0], [0.05, 0.25, math.nan, math.nan], attack=name) for name in "ab"]
    pairs[1] = pair([1, 1, 1, 0], [0.15, 0.15, math.nan, math.nan], attack="b")
    chart = eps_chart([line(pairs)], "linf", (0.1, 0.2), 255)
    (drawn,) = chart.lines
    assert [value for value, _, _ in drawn.values] == pytest.approx([0.5, 0.25])
    assert [ends for _, *ends in drawn.values] == [pytest.approx(wilson(k, 4)) for k in (2, 1)]
    axes = chart.axes
    span = axes.bottom - axes.top
    assert [y for _, y in drawn.marks] == pytest.approx([axes.top + span * 0.5, axes.top + span * 0.75], abs=0.1)
    assert [x for x, _ in drawn.marks] == pytest.approx([tick.at for tick in chart.canonical], abs=0.1)
    points = np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", drawn.path), float)
    assert points[0].tolist() == pytest.approx([axes.left, axes.top + span * 0.25], abs=0.1)  # clean accuracy
    assert points[-1][0] == pytest.approx(axes.right, abs=0.1)
    assert (np.diff(points[:, 1]) >= 0).all()


def test_curves_are_means_over_seeds_which_are_drawn_if_asked_for(pair: Callable[..., Pair]) -> None:
    seeds = [pair([1, 1], [0.1, math.nan])], [pair([1, 1], [math.nan, math.nan])]
    plain, thin = (eps_chart([line(*seeds, seeds=each)], "linf", (0.05, 0.2), 255) for each in (False, True))
    assert [value for value, _, _ in plain.lines[0].values] == pytest.approx([1, 0.75])
    assert plain.lines[0].seeds == []
    assert len(set(thin.lines[0].seeds)) == 2


def test_no_image_is_farther_away_than_the_whole_range(pair: Callable[..., Pair]) -> None:
    far = eps_chart([line([pair([1], [0.1])])], "linf", (0.5, 0.9), 255)
    assert far.x_ticks[-1].at == pytest.approx(far.axes.right)
    assert far.x_ticks[-1].text == "1"
    wide = eps_chart([line([pair([1], [0.1], norm="l2")], norm="l2")], "l2", (0.9,), 255)
    assert wide.x_ticks[-1].at < wide.axes.right  # up to 1.08


def test_labels_that_would_collide_are_dropped_but_not_their_lines(pair: Callable[..., Pair]) -> None:
    budgets = (1 / 255, 1.2 / 255, 1.4 / 255, 16 / 255)
    chart = eps_chart([line([pair([1], [0.1])])], "linf", budgets, 255)
    assert [bool(tick.text) for tick in chart.canonical] == [True, False, False, True]
    assert len(chart.lines[0].marks) == 4


def test_sparkline_skips_what_is_no_number() -> None:
    assert charts.sparkline([math.nan, 1.0]) == ""
    assert charts.sparkline([]) == ""
    assert charts.sparkline([2.0, math.nan, 1.0]).count("L") == 1
    assert "nan" not in charts.sparkline([2.0, math.nan, 1.0, 1.0])


def test_a_legend_is_as_wide_as_its_longest_name(pair: Callable[..., Pair]) -> None:
    name = "external(3a67c488-54488c28, mean=0.485,0.456,0.406)"
    short, long = (
        int(re.search(r'width="(\d+)"', svg(eps_chart([line([pair([1], [0.1])], name=text)], "linf", (0.1,), 255)))[1])  # type: ignore[index]
        for text in ("a", name)
    )
    assert long >= short - 190 + 6.5 * len(name)


def test_a_label_breaks_at_its_joints_alone() -> None:
    assert soft("standard(epochs=2)") == "standard(<wbr>epochs=2)"
    assert soft("f(weights=abcdefghijklmnop)") == "f(<wbr>weights=<wbr>abcdefghijklmnop)"
    assert soft("alpha(mode=minimal)") == "alpha(<wbr>mode=<wbr>minimal)"
    assert soft("transfer:apgd from mlp-32 standard seed 1") == "transfer:apgd from mlp-32 standard seed 1"
    assert soft("of " + "a" * 65 + " ends") == f"of <wbr>{'a' * 30}<wbr>{'a' * 30}<wbr>aaaaa ends"


def test_beyond_the_palette_colours_come_again_in_another_shape() -> None:
    dot = environment().get_template("parts.html.j2").module.dot  # type: ignore[attr-defined]
    first, second, third = (re.sub(r"\s+", " ", str(dot(3 + PALETTE * lap))) for lap in range(3))
    assert all('class="c3"' in one for one in (first, second, third))
    assert ["<circle" in first, "<rect" in second, "rotate" in second, "rotate" in third] == [True, True, False, True]
