"""A stranger's home is data, whichever command reads it."""

from __future__ import annotations

import csv
import io
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from harness.cli.console import console
from harness.records.files import csv_text, write_record
from harness.records.home import Home
from harness.schema.pairs import Result
from harness.tracking.connection import default_uri
from harness.tracking.tracker import Tracker
from reports.drawing.markdown import code, escape
from tests.helpers.boards import plan, sound, write_pair
from tests.helpers.commands import call, complaint

EVIL = "=cmd|'/c calc'!A1"
ESCAPES = "\x1b]0;mine\x07\x1b[2J\u202e\x9b31m"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose model has a name that no terminal and no spreadsheet should see."""
    home = Home(tmp_path_factory.mktemp("made") / "home").create()
    names = {"defense": EVIL + ESCAPES, "architecture": "@SUM(1)", "command": ESCAPES}
    found = []
    for place, pair in enumerate(sound(n=20).pairs):
        found.append(write_pair(home, pair, **names, cell=f"c{place:02d}"))
    write_record(home.plans / "p.json", plan(*found, command=ESCAPES))
    return home.path


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "home"))


def commands(home: Path, out: Path) -> list[list[object]]:
    return [
        ["sync", home, "--home", out / "into"],
        ["report", "--home", home, "--from", "home", "--out", out / "report"],
        ["explain", "c00", "--home", home],
        ["diff", home, home, "--csv", out / "diff.csv"],
        ["export", home, "--format", "every-eval-ever", "--out", out / "export"],
    ]


def _link(home: Path) -> None:
    secret = home.parent / "secret.json"
    secret.write_text("{}")
    shutil.move(home / "cells" / "c00" / "result.json", secret)
    (home / "cells" / "c00" / "result.json").symlink_to(secret)


def _linked_folder(home: Path) -> None:
    shutil.move(home / "cells", home.parent / "cells")
    (home / "cells").symlink_to(home.parent / "cells")


def _pipe(home: Path) -> None:
    os.mkfifo(home / "plans" / "q.json")


def _pipe_for_a_lock(home: Path) -> None:
    (home / ".lock").unlink(missing_ok=True)
    os.mkfifo(home / ".lock")


def _header(home: Path) -> None:
    (home / "cells" / "c00" / "gallery.safetensors").write_bytes((2**40).to_bytes(8, "little"))


@pytest.mark.parametrize("harm", [_link, _linked_folder, _pipe, _pipe_for_a_lock, _header])
def test_nothing_leads_out_of_a_home(home: Path, tmp_path: Path, harm: Callable[[Path], None]) -> None:
    harm(home)
    for words in commands(home, tmp_path):
        line = complaint(call(*words))
        assert "is no plain file" in line or "is damaged" in line, words


@pytest.mark.parametrize("key", ["../../outside", "/etc", "..", "a\\b"])
def test_a_key_is_a_name(home: Path, tmp_path: Path, key: str) -> None:
    pair = sound(n=20).pairs[0]
    bad = Result(**{**dict(pair.result), "cell": key, "model": key})
    write_record(home.plans / "p.json" if isinstance(home, Home) else home / "plans" / "p.json", plan(bad))
    for words in commands(home, tmp_path)[1:2]:
        result = call(*words)
        assert "Traceback" not in result.output
        assert result.exit_code != 0
        assert "is no key" in result.output


def test_nothing_is_printed_raw(home: Path, tmp_path: Path) -> None:
    for words in commands(home, tmp_path):
        result = call(*words)
        assert not set("\x1b\x07\x9b\u202e") & set(result.output), words
    report = tmp_path / "report"
    assert not set("\x1b\x07\x9b") & set((report / "leaderboard.md").read_text())
    for file in (*report.glob("*.csv"), tmp_path / "diff.csv"):
        for row in csv.reader(io.StringIO(file.read_text())):
            for cell in row:
                assert not cell.startswith(("=", "@", "+", "\t")), (file, cell)
                assert not cell.startswith("-") or float(cell) < 0


def test_a_cell_that_would_be_run_is_a_text() -> None:
    frame = pd.DataFrame({"a": ["=1+1", "-x", "fine", None], "b": [-1.5, 2.0, float("nan"), 0.0]})
    assert csv_text(frame) == "a,b\n'=1+1,-1.5\n'-x,2.0\nfine,\n,0.0\n"


def test_what_a_terminal_would_obey_is_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    console.print(f"a {ESCAPES} é\u00a0b", markup=False)
    assert capsys.readouterr().out == "a \\x1b]0;mine\\x1b[2J\\u202e\\x9b31m é\u00a0b\n"
    assert "\x1b" not in escape(ESCAPES) + code(ESCAPES)


@pytest.mark.slow
def test_tracked_files_outside_of_a_home_are_not_read(home: Path, tmp_path: Path) -> None:
    place = Home(home)
    Tracker(place, default_uri(place)).rebuild()
    secret = shutil.copytree(home / "mlflow-artifacts", tmp_path / "secret")
    with sqlite3.connect(home / "mlflow.db") as database:
        database.execute(
            "UPDATE runs SET artifact_uri = replace(artifact_uri, ?, ?)",
            ((home / "mlflow-artifacts").as_uri(), secret.as_uri()),
        )
    line = complaint(call("report", "--home", home, "--out", tmp_path / "out"))
    assert "is outside of" in line
