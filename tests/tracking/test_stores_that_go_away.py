"""Stores that are deleted, broken, emptied or of another version: home and store agree again, nothing is doubled."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pytest

from harness.records.home import Home
from harness.tracking.connection import default_uri
from harness.tracking.tracker import Tracker
from tests.helpers.commands import call
from tests.tracking.test_delivery import RUN, assert_tracked_once, cells, start
from tests.tracking.test_delivery import home as home
from tests.tracking.test_delivery import tracked as tracked
from tests.tracking.test_delivery import whole as whole

pytestmark = pytest.mark.slow


def mine(home: Path) -> Tracker:
    return Tracker(Home(home), default_uri(Home(home)))


def delete(home: Path) -> None:
    for file in home.glob("mlflow.db*"):
        file.unlink()


def delete_a_run(home: Path) -> None:
    tracker = mine(home)
    tracker.client.delete_run(tracker.search("tags.`gauntlet.kind` = 'pair'")[0].info.run_id)


def delete_the_experiment(home: Path) -> None:
    tracker = mine(home)
    tracker.client.delete_experiment(tracker.experiment)


def lose_runs(home: Path) -> None:
    for file in home.rglob("runs.json"):
        file.unlink()


def lose_origin(home: Path) -> None:
    (home / "origin").unlink()


def break_it(home: Path) -> None:
    (home / "mlflow.db").write_bytes(b"no database at all" * 1000)
    for file in home.glob("mlflow.db-*"):
        file.unlink()


def make_older(home: Path) -> None:
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = '97727af70f4d'")
        database.commit()


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (delete, "had gone from the tracking store"),
        (delete_a_run, "1 run of this home had gone"),
        (delete_the_experiment, ""),
        (lose_runs, ""),
        (lose_origin, ""),
        (break_it, "was broken (file is not a database)"),
        (make_older, "was made by another version of MLflow"),
    ],
)
def test_a_report_fills_it_again(tracked: Path, way: Any, said: str) -> None:
    way(tracked)
    result = call("report", "--home", tracked, "--out", tracked.parent / "out")
    assert result.exit_code == 0, result.output
    assert said in " ".join(result.stderr.split())
    assert_tracked_once(tracked)
    again = call("report", "--home", tracked, "--out", tracked.parent / "out")
    assert (again.exit_code, again.stderr) == (0, "")


def test_deleted_in_mid_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = mlflow.MlflowClient.set_terminated, [1]

    def end(client: Any, *arguments: Any, **named: Any) -> None:
        real(client, *arguments, **named)
        if left:
            left.pop()
            delete(home)  # the first pair is delivered, the others go nowhere

    monkeypatch.setattr(mlflow.MlflowClient, "set_terminated", end)
    result = start(home)
    assert result.exit_code == 0, result.output
    assert not left
    assert_tracked_once(home)


def test_a_broken_store_of_others_says_what_to_do(home: Path, tmp_path: Path) -> None:
    store = tmp_path / "shared.db"
    store.write_bytes(b"no database at all" * 1000)
    line = [*RUN, "--jobs", "1", "--home", home, "--tracking-uri", f"sqlite:///{store}"]
    result = call(*line)
    assert result.exit_code == 3, result.output
    assert "move the file away" in " ".join(result.stderr.split())
    assert len(list((home / "pending").glob("*.json"))) == len(cells(home))
    store.unlink()
    assert call(*line).exit_code == 0
    assert not list((home / "pending").iterdir())


@pytest.mark.long
def test_two_first_uses_of_one_file_at_once(home: Path, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from harness.records.home import Home; "
    code += (
        "from harness.tracking.tracker import Tracker; print(Tracker(Home(Path(sys.argv[1])), sys.argv[2]).experiment)"
    )
    homes = [Path(shutil.copytree(home, tmp_path / str(number))) for number in range(3)]
    uri = f"sqlite:///{tmp_path / 'shared.db'}"
    each = [
        subprocess.Popen([sys.executable, "-c", code, str(one), uri], stdout=subprocess.PIPE, text=True)
        for one in homes
    ]
    assert {process.communicate()[0] for process in each} == {"1\n"}
    assert [path.name for path in tmp_path.glob(".shared*")] == []
