"""The board: the lowest number of a model counts, and what is no number says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

import reports
from harness.schema.board import BundleEntry
from reports.bundles.standings import threats
from tests.helpers.bundles import board_entries, claim
from tests.helpers.report import Page


def test_the_lowest_claim_counts_and_the_others_are_its_history() -> None:
    linf, l2 = threats(board_entries())
    assert (linf.norm, l2.norm) == ("linf", "l2")
    told = [(one.place, one.lowest.defense, one.lowest.accuracy, one.source.by) for one in linf.standings]
    assert told == [(1, "pgd", 0.5, "Ada"), (2, "standard", 0.1, "Grace"), (None, "masked <b>", 0.9, "Ada")]
    past = linf.standings[1].history
    assert [(one.accuracy, source.date) for one, source in past] == [(0.3, "2026-01-01"), (0.1, "2026-02-01")]


def test_other_weights_or_images_are_another_model() -> None:
    entries = [
        BundleEntry(name=str(at), link="", claims=(claim(str(at), "standard", 0.5 - at / 10, **fields),))
        for at, fields in enumerate([{}, {"weights": ("other",)}, {"n": 50}])
    ]
    (threat,) = threats(entries)
    assert [one.lowest.accuracy for one in threat.standings] == [0.5, 0.4, 0.3]


def test_an_incomplete_claim_lowers_a_number_and_takes_its_place() -> None:
    whole, part = claim("a", "standard", 0.5), claim("b", "standard", 0.4, note="3 pairs not run")
    (threat,) = threats(
        [BundleEntry(name="a", link="", claims=(whole,)), BundleEntry(name="b", link="", claims=(part,))]
    )
    (one,) = threat.standings
    assert (one.place, one.lowest.accuracy, one.lowest.note) == (None, 0.4, "3 pairs not run")


def test_files(tmp_path: Path, parse: Callable[[str], Page]) -> None:
    entries = board_entries()
    files = reports.write_board(entries, tmp_path)
    assert [file.name for file in files] == ["board.csv", "board.md", "index.html"]
    again = reports.write_board(entries, tmp_path / "again")
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    frame = pd.read_csv(files[0])
    assert frame["worst_case_accuracy"].tolist() == [0.5, 0.1, 0.9, 0.6]
    assert frame["bundle"].tolist() == ["a.tar", "b", "a.tar", "a.tar"]
    text = files[1].read_text()
    assert "| 2 | standard | mlp-8 | 10.0 |" in text
    assert "masked &lt;b&gt;" in text
    assert "[b](../b/)" in text
    assert "numbers.json was changed" in text
    page = files[2].read_text()
    assert "masked &lt;b&gt;" in page
    assert "masked <b>" not in page
    assert parse(page)
    assert "No bundle could be read" in reports.write_board([], tmp_path / "none")[-1].read_text()
