"""Reports on the board of tests.helpers.report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.metrics.pairs import Board, Pair
from tests.helpers.report import Page, build_board, cascade, frame, make_pair, unseen


@pytest.fixture(scope="session")
def parse() -> Callable[[str], Page]:
    """Read a page."""
    return Page


@pytest.fixture(scope="session")
def site(small_board: Board, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on three suites: everything, cascades, transformations."""
    import reports

    folder = tmp_path_factory.mktemp("site")
    reports.write([small_board, cascade(small_board), unseen(small_board)], folder, title="Site")
    return folder


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[str, Page]:
    """Every page of that report, by its path."""
    return {path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


@pytest.fixture(scope="session")
def board() -> Board:
    """Five models x ten attacks x two norms, two seeds."""
    return build_board()


@pytest.fixture(scope="session")
def small_board() -> Board:
    """The same on few images and one seed."""
    return build_board(n=20, seeds=1)


@pytest.fixture
def pair() -> Callable[..., Pair]:
    """Factory: ``pair(clean, distances, norm="linf", **meta)``."""

    def make(clean: Any, distance: Any, norm: str = "linf", **meta: Any) -> Pair:
        return make_pair(frame(clean, norm, distance), norm=norm, **meta)

    return make
