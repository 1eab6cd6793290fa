"""The sections of a report: the results of a suite on a data set, with every table of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import pandas as pd

from harness.metrics.pairs import Board

from .costs import costs
from .failures import cautions, failures, omissions
from .panels import panels
from .results import SuiteResults
from .rows import Panel


class Section(SuiteResults):
    """The results of one suite on one data set, with the tables made of them."""

    panels = cached_property(panels)
    failures = cached_property(failures)
    cautions = cached_property(cautions)
    omissions = cached_property(omissions)
    costs = cached_property(costs)

    @property
    def first(self) -> str:
        """Anchor of the panel to show first."""
        return self.panel(self.norms[0], self.reference(self.norms[0])).anchor

    def panel(self, norm: str, eps: float) -> Panel:
        """The panel at one norm and canonical eps."""
        return next(panel for panel in self.panels if (panel.norm, panel.eps) == (norm, eps))


def sections(boards: Sequence[Board], frames: Sequence[pd.DataFrame]) -> list[Section]:
    """A section for every suite and data set, in order of appearance.

    Args:
        boards: The boards.
        frames: Their :func:`harness.leaderboard.leaderboard`, in the same order.
    """
    found: list[Section] = []
    taken: set[str] = set()
    colours: dict[tuple[str, str], int] = {}
    for board, frame in zip(boards, frames, strict=True):
        sets = [pair.result.dataset for pair in board.pairs]
        sets += [model.dataset for model in board.models.values()]
        for dataset in dict.fromkeys(sets):
            section = Section(f"s{len(found)}", board, frame[frame["dataset"] == dataset], dataset, taken, colours)
            assert section.entries is not None  # names its pages, before the next section does
            found.append(section)
    return found
