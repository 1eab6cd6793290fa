"""Bands on the page, in Markdown and CSV: numbers where something is proved, the reason where nothing is."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import reports
from harness.metrics.pairs import Board
from harness.schema.certificates import CertificateFacts, CertifiedLevel
from tests.helpers.report import BUDGETS


def facts(images: int, certified: int, **more: Any) -> CertificateFacts:
    """Certificates of the first images in L-infinity, of which the last so many stand at every eps."""
    flags = tuple(place >= images - certified for place in range(images))
    levels = tuple(CertifiedLevel(eps=eps, certified=flags, margins=(0.5,) * images) for eps in BUDGETS["linf"])
    base: dict[str, Any] = {
        "norm": "linf",
        "n": images,
        "index": tuple(range(images)),
        "levels": levels,
        "cost": 1,
        "seconds": 1,
    }
    return CertificateFacts(**base | more)


def texts(board: Board, folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in reports.write([board], folder)}


def test_without_certificates_nothing_is_said_of_them(small_board: Board, tmp_path: Path) -> None:
    found = texts(small_board, tmp_path)
    assert "Certified ... attacked, %" not in "".join(text for name, text in found.items() if name.endswith(".html"))
    assert "| certified ... attacked |" not in found["leaderboard.md"]


def test_bands_and_reasons(small_board: Board, tmp_path: Path) -> None:
    keys = list(small_board.by_model)
    (a, b, c, *_) = [key for key in keys if small_board.by_model[key]]
    board = replace(
        small_board,
        certificates={
            a: {"linf": facts(20, 0)},
            b: {"linf": facts(20, 0, uncovered="aten.<sort>")},
            c: {"linf": facts(0, 0, n=10)},
        },
    )
    found = texts(board, tmp_path)
    markdown, index = found["leaderboard.md"], found["index.html"]
    assert re.search(r"\| certified \.\.\. attacked \|", markdown)
    assert re.search(r"\| 0\.0 \.\.\. \d+\.\d \|", markdown)
    assert "certificate: no bound: aten." in markdown
    assert "not certified: bounds of one image would cost more" in markdown
    assert "no bound: aten.&lt;sort&gt;" in index
    assert "aten.<sort>" not in index
    assert re.search(r'class="num band" data-v="0">0\.0 \.\.\. \d+\.\d', index)
    pages = [text for name, text in found.items() if name.startswith("models/")]
    assert sum("Certified ... attacked, %" in text for text in pages) == 3
    assert sum("no bound: aten.&lt;sort&gt;" in text for text in pages) == 1


@pytest.mark.parametrize("alpha", [None, 0.001])
def test_a_contradiction_is_one_clear_line(small_board: Board, tmp_path: Path, alpha: float | None) -> None:
    key = next(iter(small_board.by_model))
    board = replace(small_board, certificates={key: {"linf": facts(20, 20, alpha=alpha)}})
    found = texts(board, tmp_path)
    said = "certified and broken in linf"
    for name in ("index.html", "leaderboard.md", "leaderboard.csv"):
        assert (said in found[name]) == (alpha is None), name
        assert ("finitely many votes were wrong" in found[name]) == (alpha is not None), name
