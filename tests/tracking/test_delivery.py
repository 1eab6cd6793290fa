"""Deliveries that go wrong: nothing is doubled, lost or half written, and the command still ends with its report."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import Result
from mlflow.exceptions import MlflowException, RestException

from harness.metrics.pairs import summary
from harness.records.files import is_aside
from harness.records.home import Home
from harness.records.results import read_pair, write_result
from harness.tracking.connection import default_uri
from harness.tracking.tracker import Tracker
from tests.helpers.commands import call, complaint

pytestmark = pytest.mark.slow

RUN = ["run", "quick", "--model", "mlp-8", "--defense", "standard:epochs=1", "--attack", "noise*", "--samples", "10"]


def start(home: Path) -> Result:
    result = call(*RUN, "--jobs", "1", "--home", home)
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("whole") / "home"
    assert start(home).exit_code == 0
    return home


@pytest.fixture
def home(whole: Path, tmp_path: Path) -> Path:
    """A home whose results were never tracked."""
    home = Path(shutil.copytree(whole, tmp_path / "home", ignore=shutil.ignore_patterns("mlflow*", "report")))
    for name in ("runs.json", "closed.json"):
        for file in home.rglob(name):
            file.unlink()
    return home


def cells(home: Path) -> list[str]:
    return sorted(file.parent.name for file in home.glob("cells/*/result.json") if not is_aside(file.parent))


def assert_tracked_once(home: Path) -> None:
    """Every pair, model and command has one run, and it ended well."""
    runs = Tracker(Home(home), default_uri(Home(home))).search("")
    kinds = [(run.data.tags["gauntlet.kind"], run) for run in runs]
    assert sorted(run.data.tags["gauntlet.pair"] for kind, run in kinds if kind == "pair") == cells(home)
    assert Counter(kind for kind, _ in kinds) == {"pair": len(cells(home)), "model": 1, "plan": 1}
    assert {run.info.status for kind, run in kinds if kind == "pair"} == {"FINISHED"}
    assert list((home / "pending").iterdir()) == []


def failing(monkeypatch: pytest.MonkeyPatch, name: str, code: str, calls: range = range(10**6)) -> None:
    """Let a store refuse some calls of MLflow's client."""
    number, real = itertools.count(), getattr(mlflow.MlflowClient, name)

    def call(*arguments: Any, **named: Any) -> Any:
        if next(number) in calls:
            raise RestException({"error_code": code, "message": "none of yours"})
        return real(*arguments, **named)

    monkeypatch.setattr(mlflow.MlflowClient, name, call)


def test_a_delivery_that_failed_half_way_is_not_doubled(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = mlflow.MlflowClient.log_artifact, [OSError(28, "No space left on device")]

    def fill(client: Any, run_id: str, path: str, *more: Any) -> None:
        if Path(path).name == "samples.parquet" and left:  # the run is begun, and half of its files are there
            raise left.pop()
        real(client, run_id, path, *more)

    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", fill)
    result = start(home)
    assert result.exit_code == 1
    assert "cannot track" in result.stderr
    assert "No space left on device" in result.stderr
    (failed,) = (home / "pending").glob("*.failed")
    assert {file.stem for file in (home / "pending").iterdir()} == {failed.stem}
    assert start(home).exit_code == 0
    assert_tracked_once(home)


@pytest.mark.parametrize("said", ["(sqlite3.IntegrityError) UNIQUE constraint failed", "duplicate key value violates"])
def test_another_home_that_makes_the_same_data_set_at_once(
    home: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    real, left = mlflow.MlflowClient.log_inputs, [said]

    def lose(client: Any, *arguments: Any) -> None:
        if left:
            raise MlflowException(left.pop())
        real(client, *arguments)

    monkeypatch.setattr(mlflow.MlflowClient, "log_inputs", lose)
    assert start(home).exit_code == 0
    assert_tracked_once(home)


def test_a_store_that_may_only_be_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        failing(patch, "create_run", "PERMISSION_DENIED")
        result = start(home)
        assert result.exit_code == 3
        said = " ".join(result.stderr.split())
        assert "the tracking store is out of order" in said
        assert "none of yours" in said
        assert f"{len(cells(home))} results wait" in said
        assert (home / "report" / "index.html").exists()
        assert {file.suffix for file in (home / "pending").iterdir()} == {".json"}
    assert start(home).exit_code == 0
    assert_tracked_once(home)


def test_a_report_shows_what_is_tracked_and_says_what_waits(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        failing(patch, "create_run", "PERMISSION_DENIED", range(3, 10**6))  # after a command, a model and a pair
        assert start(home).exit_code == 3
        waiting = len(list((home / "pending").glob("*.json")))
        assert waiting == len(cells(home)) - 1
        result = call("report", "--home", home, "--out", tmp_path / "refused")
        assert result.exit_code == 3
        assert f"{waiting} results wait" in " ".join(result.stderr.split())
        assert (tmp_path / "refused" / "index.html").exists()
    with monkeypatch.context() as patch:
        failing(patch, "log_artifact", "INVALID_PARAMETER_VALUE", range(1))
        result = call("report", "--home", home, "--out", tmp_path / "one")
        assert result.exit_code == 3
        assert "cannot track" in result.stderr
        assert len(list((home / "pending").glob("*.json"))) == 1  # the others are delivered
    assert call("report", "--home", home, "--out", tmp_path / "all").exit_code == 0
    assert_tracked_once(home)


@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "INTERNAL_ERROR"])
def test_summaries_that_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    with monkeypatch.context() as patch:
        failing(patch, "get_run", code)
        result = start(home)
        assert result.exit_code == 3
        assert "none of yours" in result.stderr
        assert (home / "report" / "index.html").exists()
        assert not list(home.glob("plans/*/closed.json"))
    assert "none of yours" not in start(home).stderr
    assert list(home.glob("plans/*/closed.json"))
    assert_tracked_once(home)


@pytest.fixture
def tracked(whole: Path, tmp_path: Path) -> Path:
    """A home with its tracking store."""
    return Path(shutil.copytree(whole, tmp_path / "tracked"))


def halve(file: Path) -> bytes:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    return content


@pytest.mark.parametrize(
    "pattern", ["cells/*/runs.json", "models/*/runs.json", "plans/*/runs.json", "plans/*.json", "plans/*/closed.json"]
)
def test_damage_beside_a_result_is_mended_by_the_next_run(tracked: Path, pattern: str) -> None:
    file = sorted(tracked.glob(pattern))[0]
    content = halve(file)
    if "closed" not in pattern:
        next(tracked.glob("plans/*/closed.json")).unlink()  # else nobody asks for the runs of models and commands
    result = start(tracked)
    assert (result.exit_code, result.stderr) == (0, "")
    assert file.read_bytes() == content
    aside = file.with_name(f"{file.name}.damaged-1")
    assert aside.exists() == ("closed" not in pattern)
    assert_tracked_once(tracked)


def test_a_damaged_card_is_set_aside_and_the_model_trained_again(tracked: Path) -> None:
    (card,) = tracked.glob("models/*/card.json")
    halve(card)
    result = start(tracked)
    assert result.exit_code == 0, result.output
    assert f"{card} is damaged" in result.output
    assert f"kept as {card.parent.name}.damaged-1" in result.output
    assert "is damaged" not in start(tracked).output
    assert_tracked_once(tracked)


@pytest.mark.parametrize("source", ["home", "mlflow"])
def test_home_and_store_that_disagree_are_named(tracked: Path, tmp_path: Path, source: str) -> None:
    """A result that was changed with care, its digests and all, still is not what was tracked."""
    folder = tracked / "cells" / cells(tracked)[0]
    pair = read_pair(folder)
    samples = pair.samples
    samples.loc[0, "l2"] = 0.125
    changed = pair.result.model_copy(update={"summary": summary(samples)})
    write_result(folder, changed, samples, dict(pair.gallery))
    line = complaint(call("report", "--home", tracked, "--from", source, "--out", tmp_path / "out"))
    assert f"{folder}" in line
    assert "says otherwise than" in line
