"""Intervals along a curve."""

from __future__ import annotations

import numpy as np
import pytest

from harness.metrics.pairs import wilson
from reports.boards.curves import Curve, eps_chart


def test_the_band_allows_for_what_was_not_shown_from_the_next_smaller_budget_on() -> None:
    line = Curve(index=0, name="net", n=100, distances=[np.full(100, np.inf)], doubt=(20.0, 5.0))
    lows = [line.interval(1.0, at)[0] for at in (0, 1, 2)]
    assert lows == [wilson(80, 100)[0], wilson(80, 100)[0], wilson(95, 100)[0]]
    (drawn,) = eps_chart([line], "linf", (0.1, 0.2), 255).lines
    assert drawn.values == [(1.0, lows[1], 1.0), (1.0, lows[2], 1.0)]


def test_without_doubt_it_is_wilsons() -> None:
    line = Curve(index=0, name="net", n=50, distances=[np.full(50, np.inf)])
    assert line.interval(0.5, 1) == pytest.approx(wilson(25, 50))
