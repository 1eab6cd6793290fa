"""Deliveries that go wrong: nothing is doubled, lost or half written, and the command still ends with its report."""

from __future__ import annotations

import runpy
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import Result

from harness.store import Home
from harness.tracking import Tracker, default_uri

CLI = runpy.run_path(str(Path(__file__).parent / "commands.py"))
call = CLI["call"]

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
    return sorted(file.parent.name for file in home.glob("cells/*/result.json"))


def assert_tracked_once(home: Path) -> None:
    """Every pair, model and command has one run, and it ended well."""
    runs = Tracker(Home(home), default_uri(Home(home)))._search("")
    kinds = [(run.data.tags["gauntlet.kind"], run) for run in runs]
    assert sorted(run.data.tags["gauntlet.pair"] for kind, run in kinds if kind == "pair") == cells(home)
    assert Counter(kind for kind, _ in kinds) == {"pair": len(cells(home)), "model": 1, "plan": 1}
    assert {run.info.status for kind, run in kinds if kind == "pair"} == {"FINISHED"}
    assert list((home / "pending").iterdir()) == []


def failing(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception, times: int = 10**6) -> None:
    """Let a call of MLflow's client fail the first times it is made."""
    left, real = iter(range(times)), getattr(mlflow.MlflowClient, name)

    def call(*arguments: Any, **named: Any) -> Any:
        if next(left, None) is not None:
            raise error
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
    (failed,) = (home / "pending").iterdir()
    assert failed.suffix == ".failed"
    assert start(home).exit_code == 0
    assert_tracked_once(home)
