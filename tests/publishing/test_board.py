"""A board of real bundles, and of what is none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from harness.leaderboard import leaderboard
from harness.publishing.board import UNGRADED, bundles
from harness.publishing.export import claims as exported
from harness.records.boards import boards_from_home
from harness.records.home import Home
from tests.helpers.commands import call, complaint

pytestmark = pytest.mark.slow


def test_bundles_of_a_folder(published: tuple[Path, Path], tmp_path: Path) -> None:
    home, bundle = published
    shutil.copytree(bundle, tmp_path / "one")
    assert call("publish", home, "--out", tmp_path / "two.tar", "--by", "Another").exit_code == 0
    changed = Path(shutil.copytree(bundle, tmp_path / "changed \x1b[2J"))
    (changed / "numbers.json").write_text("{}")
    linked = Path(shutil.copytree(bundle, tmp_path / "linked"))
    (linked / "README.md").unlink()
    (linked / "README.md").symlink_to("/etc/hostname")
    (tmp_path / "three.zip").write_bytes(b"PK nothing")
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "elsewhere").symlink_to(bundle)
    (tmp_path / "notes.txt").write_text("no bundle")
    result = call("board", tmp_path, "--out", tmp_path / "site")
    assert result.exit_code == 1
    assert "\x1b" not in result.output
    assert "2 of 5 bundles can be read and counted" in result.output
    for name, what in (("changed", "numbers.json was changed"), ("linked", "is no plain file"), ("three.zip", "")):
        (line,) = [line for line in result.stderr.splitlines() if line.startswith(f"gauntlet: {name}")]
        assert what in line
    frame = pd.read_csv(tmp_path / "site" / "board.csv")
    (board,) = boards_from_home(Home(home))
    told = leaderboard(board).set_index(["defense", "norm", "eps"])["worst_case_accuracy"]
    assert len(frame) == len(told)
    for row in frame.to_dict("records"):
        assert row["worst_case_accuracy"] == pytest.approx(told[row["defense"], row["norm"], row["eps"]])
    assert set(frame["claims"]) == {2}  # two bundles say the same of the same weights
    page = (tmp_path / "site" / "index.html").read_text()
    for words in ("The Tester", "Another", 'href="../one/"', 'href="../two.tar"'):
        assert words in page


def test_what_is_no_robust_accuracy_has_no_place(published: tuple[Path, Path], tmp_path: Path) -> None:
    """Numbers of images with targets, and of suites that do not search for the worst case, are higher."""
    home = Path(shutil.copytree(published[0], tmp_path / "home"))
    run = ["--model", "mlp-8", "--defense", "standard:epochs=8", "--samples", 30, "--certify", 0, "--no-surrogate"]
    run += ["--jobs", 1, "--home", home]
    (tmp_path / "weak.py").write_text(
        "from harness.attacks.noise import Noise\nfrom harness.planning.suite import Suite\n"
        'WEAK = Suite(name="weak", summary="", attacks={"linf": (Noise(),)})\n'
    )
    assert call("run", f"{published[0].parent / 'suite.py'}:TINY", "--targets", "next", *run).exit_code == 0
    assert call("run", f"{tmp_path / 'weak.py'}:WEAK", *run).exit_code == 0
    assert call("publish", home, "--out", tmp_path / "in" / "all.tar").exit_code == 0
    result = call("board", tmp_path / "in", "--out", tmp_path / "site")
    assert result.exit_code == 0, result.output
    claims = [claim for entry in bundles(tmp_path / "in", tmp_path) for claim in entry.claims]
    assert {claim.suite for claim in claims} == {"tiny", "weak"}
    assert {claim.note for claim in claims if claim.suite == "weak"} == {UNGRADED}
    assert {one.board.suite for one in exported(Home(home))} == {"tiny", "weak"}


def test_no_bundles(tmp_path: Path) -> None:
    assert "no bundle in" in complaint(call("board", tmp_path))
    assert "there is no folder" in complaint(call("board", tmp_path / "none"))
