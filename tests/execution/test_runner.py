"""A run may be killed at any moment: nothing is lost, doubled or changed by it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pandas as pd
import pytest

from harness.execution import fork_server
from harness.metrics.pairs import pair_rows
from harness.records.boards import boards_from_home
from harness.records.files import read_json
from harness.records.home import Home
from harness.tracking.connection import default_uri
from harness.tracking.reading import read_boards
from harness.tracking.tracker import Tracker
from tests.helpers.processes import workers

SCRIPT = Path(__file__).parent / "scripts" / "small_run.py"


pytestmark = pytest.mark.slow


PARTS = {"worker": fork_server.WORKER, "fork server": fork_server.SERVER}
"""What a run's processes beside its driver are called."""


def start(home: Path, jobs: int = 2, *more: str) -> subprocess.Popen[str]:
    root = str(SCRIPT.parents[3])
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(home), str(jobs), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": root},
    )


def finish(home: Path, jobs: int = 2, *more: str) -> str:
    process = start(home, jobs, *more)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def numbers(home: Path) -> pd.DataFrame:
    """``pairs.csv`` without what may differ: times and run ids."""
    (board,) = boards_from_home(Home(home))
    return pair_rows(board).drop(columns=["seconds", "run_id"])


def tracked(home: Path, uri: str | None = None) -> list[tuple[str, str, str]]:
    """Kind, key and status of every run that the tracking store shows."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri or f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("gauntlet")
    rows = []
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        kind = run.data.tags["gauntlet.kind"]
        rows.append((kind, run.data.tags[f"gauntlet.{kind}"], run.info.status))
    return sorted(rows)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("undisturbed")
    assert "failures: 0, waiting: 0" in finish(home)
    return home


def test_records_every_pair_once(undisturbed: Path) -> None:
    plan = read_json(next((undisturbed / "plans").glob("*.json")))
    runs = tracked(undisturbed)
    assert {status for _, _, status in runs} == {"FINISHED"}
    assert sorted(key for kind, key, _ in runs if kind == "pair") == sorted(cell["cell"] for cell in plan["cells"])
    assert sorted(key for kind, key, _ in runs if kind == "model") == sorted(m["model"] for m in plan["models"])
    assert sum(kind == "plan" for kind, _, _ in runs) == 1
    assert not list((undisturbed / "pending").glob("*"))
    frame = numbers(undisturbed)
    assert set(frame["status"]) == {"ok"}
    assert (frame["robust_accuracy"] <= frame["clean_accuracy"]).all()


def test_same_command_again_does_nothing(undisturbed: Path) -> None:
    files = {file: file.stat().st_mtime_ns for file in undisturbed.glob("cells/*/*")}
    runs = tracked(undisturbed)
    finish(undisturbed)
    assert {file: file.stat().st_mtime_ns for file in undisturbed.glob("cells/*/*")} == files
    assert tracked(undisturbed) == runs


def test_worker_count_changes_no_number(undisturbed: Path, tmp_path: Path) -> None:
    finish(tmp_path, 1)
    pd.testing.assert_frame_equal(numbers(tmp_path), numbers(undisturbed), check_exact=True)
    for key in [folder.name for folder in (tmp_path / "cells").iterdir()]:
        ours = pd.read_parquet(tmp_path / "cells" / key / "samples.parquet")
        theirs = pd.read_parquet(undisturbed / "cells" / key / "samples.parquet")
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    for file in tmp_path.glob("models/*/weights.safetensors"):
        assert file.read_bytes() == (undisturbed / file.relative_to(tmp_path)).read_bytes()


def witnessed(home: Path) -> dict[str, str]:
    """Digests of the tables of images that broke the models."""
    files = sorted(home.glob("witnesses/*/*"))
    assert files
    return {str(file.relative_to(home)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def assert_same(home: Path, reference: Path) -> None:
    pd.testing.assert_frame_equal(numbers(home), numbers(reference), check_exact=True)
    assert tracked(home) == tracked(reference)
    assert witnessed(home) == witnessed(reference)
    assert not list(home.rglob("*.part"))
    assert not list((home / "pending").glob("*"))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds workers in /proc")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills_wanted", [1, pytest.param(10, marks=pytest.mark.long)])
def test_killed_at_random_moments(undisturbed: Path, tmp_path: Path, kills_wanted: int) -> None:
    """SIGKILL to the driver, the whole process group, a worker or what forks them; each time the run is resumed."""
    moment = random.Random(1)
    home = tmp_path / "0"
    made = sorted(
        file.stat().st_mtime for file in [*undisturbed.glob("plans/*"), *undisturbed.glob("cells/*/result.json")]
    )
    span = made[-1] - made[0]
    kills = starts = 0
    while kills < kills_wanted:
        process = start(home)
        starts += 1
        assert starts <= 3 * kills_wanted, "runs end before they can be killed"
        whom = ("driver", "worker", "group", "fork server")[kills % 4]
        if whom in PARTS:
            while process.poll() is None and not workers(process.pid, PARTS[whom]):
                time.sleep(0.02)
            time.sleep(moment.uniform(0, 0.4) * span)
        else:
            time.sleep(moment.uniform(0.1, 0.9) * span)
        kills += kill(process, whom, moment)
        output, _ = process.communicate(timeout=240)
        for file in home.glob("cells/*/result.json"):
            read_json(file)  # whole, or not there
        if process.returncode == 0:  # a killed worker is replaced, and the run ends well
            assert "failures: 0, waiting: 0" in output
            assert_same(home, undisturbed)
            home = tmp_path / str(starts)
    finish(home)
    assert_same(home, undisturbed)


def kill(process: subprocess.Popen[str], whom: str, moment: random.Random) -> bool:
    """SIGKILL, if there is still somebody to kill; a run that is done by then must be as good as any other."""
    parts = workers(process.pid, PARTS[whom]) if whom in PARTS else []
    if process.poll() is not None or (whom in PARTS and not parts):
        return False
    with contextlib.suppress(ProcessLookupError):
        if whom == "driver":
            os.kill(process.pid, signal.SIGKILL)
        elif whom == "group":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            os.kill(moment.choice(parts), signal.SIGKILL)
    return True


def test_a_moved_home_and_a_lost_database(undisturbed: Path, tmp_path: Path) -> None:
    home = tmp_path / "elsewhere"
    shutil.copytree(undisturbed, home)
    assert "failures: 0, waiting: 0" in finish(home)
    assert tracked(home) == tracked(undisturbed)
    (board,) = read_boards(Tracker(Home(home), default_uri(Home(home))))  # artifacts are found at the new place
    pd.testing.assert_frame_equal(pair_rows(board).drop(columns=["seconds", "run_id"]), numbers(undisturbed))

    for file in home.glob("mlflow.db*"):
        file.unlink()
    assert "failures: 0, waiting: 0" in finish(home)
    assert tracked(home) == tracked(undisturbed)


def test_a_damaged_result_is_set_aside_and_made_again(undisturbed: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(undisturbed, home)
    cell = sorted(home.glob("cells/*"))[0]
    content = (cell / "samples.parquet").read_bytes()
    (cell / "samples.parquet").write_bytes(content[:100])
    assert "failures: 0, waiting: 0" in finish(home)
    assert (cell.with_name(f"{cell.name}.damaged-1") / "samples.parquet").read_bytes() == content[:100]
    pd.testing.assert_frame_equal(numbers(home), numbers(undisturbed), check_exact=True)
    assert tracked(home) == tracked(undisturbed)


@pytest.mark.timeout(300)
@pytest.mark.long
def test_two_commands_on_one_home_at_once(undisturbed: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    both = [start(home, 1), start(home, 1)]
    outputs = [process.communicate(timeout=240)[0] for process in both]
    assert all(process.returncode == 0 for process in both), outputs
    assert all("failures: 0, waiting: 0" in output for output in outputs)
    pd.testing.assert_frame_equal(numbers(home), numbers(undisturbed), check_exact=True)
    assert tracked(home) == tracked(undisturbed)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_full_disk(undisturbed: Path, tmp_path: Path) -> None:
    """On a file system of its own, which only the superuser can make."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    home = place / "home"
    try:
        process = start(home, 1)
        output, _ = process.communicate(timeout=240)
        assert "No space left" in output, output
        assert not list(home.rglob("*.part"))
        for file in home.glob("cells/*/result.json"):
            read_json(file)
        subprocess.run(["mount", "-o", "remount,size=100m", str(place)], check=True)
        assert "failures: 0, waiting: 0" in finish(home, 1)
        pd.testing.assert_frame_equal(numbers(home), numbers(undisturbed), check_exact=True)
        assert tracked(home) == tracked(undisturbed)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_tracking_server_goes_away_and_comes_back(undisturbed: Path, tmp_path: Path) -> None:
    home, port = tmp_path / "home", free_port()
    uri = f"http://127.0.0.1:{port}"
    server = serve(tmp_path / "server", port)
    try:
        process = start(home, 1, uri)
        deadline = time.monotonic() + 120
        while not list(home.glob("cells/*/runs.json")):  # the first pair was delivered
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
    finally:
        stop(server)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "trouble: " in output
    waiting = len(list((home / "pending").glob("*.json")))
    assert f"waiting: {waiting}" in output
    assert waiting > 0
    pd.testing.assert_frame_equal(numbers(home), numbers(undisturbed), check_exact=True)
    server = serve(tmp_path / "server", port)
    try:
        assert "failures: 0, waiting: 0" in finish(home, 1, uri)
        assert tracked(home, uri) == tracked(undisturbed)
    finally:
        stop(server)
    assert not list((home / "pending").glob("*"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """An MLflow server, ready to answer."""
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
            *("--artifacts-destination", str(folder / "files")),
        ],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server did not start"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                if answer.status == 200:
                    return process
        except OSError:
            time.sleep(0.2)
    stop(process)
    raise AssertionError("the server did not answer")


def stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
