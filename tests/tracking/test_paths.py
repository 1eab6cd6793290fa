"""Homes whose names have a meaning in addresses, or are no UTF-8."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.records.boards import boards_from_home
from harness.records.files import write_record
from harness.records.home import Home
from harness.records.results import read_pair, read_shard, shard_path, write_result, write_shard
from harness.schema.base import Provenance
from harness.tracking.connection import Connection, Unreachable, default_uri
from tests.helpers.boards import outcome, plan, sound

NAMES = ["q?x", "h%20x", "100%", "a b", "h#1", "é:;&+=@x"]
ODD = os.fsdecode(b"caf\xe9")


@pytest.mark.slow
def test_a_store_lies_in_its_home_whatever_that_is_called(tmp_path: Path) -> None:
    """The first home's database is copied, so that MLflow makes one alone."""
    made = Home(tmp_path / "homes" / NAMES[0]).create()
    assert Connection(made, default_uri(made)).experiment
    for name in NAMES[1:]:
        home = Home(tmp_path / "homes" / name).create()
        shutil.copy(made.path / "mlflow.db", home.path)
        connection = Connection(home, default_uri(home))
        assert connection.search("") == []
        assert connection.store == "home"
    assert sorted(path.name for path in (tmp_path / "homes").iterdir()) == sorted(NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["homes"]


def test_an_address_is_as_it_was_where_nothing_is_quoted(tmp_path: Path) -> None:
    assert default_uri(Home(tmp_path)) == f"sqlite:///{tmp_path.resolve() / 'mlflow.db'}"


def test_a_home_that_is_no_utf8(tmp_path: Path) -> None:
    home = Home(tmp_path / ODD).create()
    pairs = sound(n=20, without=("fgsm", "apgd", "square", "transfer:pgd")).pairs
    images = {"index": pairs[0].columns["index"][:2]}
    images |= dict.fromkeys(("x", "x_adv", "label", "clean_pred", "adv_pred"), images["index"])
    found = [
        write_result(home.cell(f"c{place}"), pair.result.model_copy(update={"cell": f"c{place}"}), pair.samples, images)
        for place, pair in enumerate(pairs)
    ]
    write_record(home.plans / "p.json", plan(*found, command=f"gauntlet run quick --home {ODD}"))
    (board,) = boards_from_home(home)
    assert len(board.pairs) == len(found)
    assert list(read_pair(home.cell("c0")).gallery["x"]) == list(images["x"])
    write_shard(home.cell("half"), 0, outcome(pairs[0].samples, images), Provenance())
    assert len(read_shard(shard_path(home.cell("half"), 0))[0].samples) == 20
    with pytest.raises(Unreachable, match="MLflow takes no path that is not UTF-8"):
        _ = Connection(home, default_uri(home)).client


def test_a_name_in_a_locale_that_knows_no_accents(tmp_path: Path) -> None:
    home = Home(tmp_path / "café").create()
    pair = sound(n=20).pairs[0]
    write_result(home.cell("c0"), pair.result.model_copy(update={"cell": "c0"}), pair.samples, {})
    code = "import os, sys; from pathlib import Path; from harness.records.results import read_pair; "
    code += "print(sys.getfilesystemencoding(), len(read_pair(Path(sys.argv[1])).columns['index']), flush=True); "
    code += "os._exit(0)"  # a process that ends so soon may abort in a library's threads
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, str(home.cell("c0"))]
    done = subprocess.run(command, env={**os.environ, **plain}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ascii", "20"]
