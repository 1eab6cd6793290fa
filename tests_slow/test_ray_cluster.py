"""A Ray cluster of two nodes on one machine loses a worker, then a node, then its driver's patience: no number changes.

Ray's ports are open to whoever reaches the machine, so this file runs itself again in a network namespace of its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from defenses.fast_gradient import FastGradient
from defenses.gaussian_noise import GaussianNoise
from defenses.pgd import Pgd
from defenses.standard import Standard
from harness.attacks.apgd import APGD
from harness.attacks.fast_gradient import Gradient
from harness.attacks.noise import Noise
from harness.attacks.transfer import Transfer
from harness.datasets.registry import DataSource
from harness.execution.jobs import Context
from harness.execution.ray.engine import Cluster, RayEngine
from harness.execution.runner import Report, Watch, run
from harness.planning.plan import Plan, plan, specs
from harness.planning.suite import Suite
from harness.records.files import read_json
from harness.records.home import Home
from harness.tracking.connection import default_uri
from harness.tracking.tracker import Tracker

ROOT = Path(__file__).parents[1]
INSIDE = "GAUNTLET_TEST_NAMESPACE"
REFUSED = 77

inside = os.environ.get(INSIDE) == "1"
outer = pytest.mark.skipif(inside, reason="runs the others in a namespace")
inner = pytest.mark.skipif(not inside, reason="run by the test above, in a namespace")

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.timeout(1500),
]

SUITE = Suite(
    name="forty",
    summary="for tests",
    attacks={
        "linf": (
            Noise(),
            Gradient(),
            APGD(steps=40),
            Transfer(attack=Gradient(), defense=Standard(epochs=3), seed_offset=7),
        ),
        "l2": (Noise(), Gradient(mode="minimal"), APGD(steps=40), APGD(steps=40, loss="dlr")),
    },
    budgets={"linf": (0.1,), "l2": (0.5,)},
    samples=120,
    batch=40,
)


def forty_cells() -> tuple[Plan, dict[str, DataSource]]:
    source = DataSource("digits")
    info = source.info()
    defenses = [Standard(epochs=3), GaussianNoise(epochs=3), FastGradient(epochs=3), Pgd(epochs=3)]
    models = specs([info], ["mlp-16"], defenses, [0]) + specs([info], ["mlp-32"], defenses[:1], [0])
    made = plan(SUITE, models, {info.name: info})
    assert len(made.cells) == 40
    return made, {info.name: source}


@outer
@pytest.mark.parametrize("name", ["test_a_worker_and_a_node_die_in_mid_run", "test_ctrl_c_leaves_a_clean_store"])
def test_in_a_namespace(name: str) -> None:
    again = [sys.executable, "-m", "pytest", f"{__file__}::{name}", "-q", "-n0", "-s", "-p", "no:cacheprovider"]
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "execution" / "scripts" / "isolated.py"), *again],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**environ, INSIDE: "1", "RAY_USAGE_STATS_ENABLED": "0"},
    )
    if done.returncode == REFUSED:
        pytest.skip(done.stdout.strip())
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def carry_out(folder: Path, engine: Callable[[Context], Any], observe: Callable[[Watch], None]) -> Report:
    home = Home(folder).create()
    made, sources = forty_cells()
    context = Context(home, sources)
    tracker = Tracker(home, default_uri(home))
    with engine(context) as workers:
        return run(made, context, jobs=2, command="forty", tracker=tracker, observe=observe, engine=workers)


def local(context: Context) -> contextlib.nullcontext[None]:
    """The processes of this machine."""
    return contextlib.nullcontext()


def ignore(watch: Watch) -> None:
    """Nobody looks."""


def pairs(home: Path) -> list[str]:
    """Keys of the pairs that the tracking store shows, once for every run."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=default_uri(Home(home)))
    runs = client.search_runs([client.get_experiment_by_name("gauntlet").experiment_id], max_results=1000)
    assert {one.info.status for one in runs} == {"FINISHED"}
    return sorted(one.data.tags["gauntlet.pair"] for one in runs if one.data.tags["gauntlet.kind"] == "pair")


def assert_equal(home: Path, reference: Path) -> None:
    keys = sorted(folder.name for folder in (reference / "cells").iterdir())
    assert len(keys) == 40
    assert sorted(folder.name for folder in (home / "cells").iterdir()) == keys
    for key in keys:
        ours, theirs = (pd.read_parquet(where / "cells" / key / "samples.parquet") for where in (home, reference))
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
        ours, theirs = (read_json(where / "cells" / key / "result.json") for where in (home, reference))
        assert (ours["summary"], ours["weights"]) == (theirs["summary"], theirs["weights"])
        assert (ours["status"], ours["forwards"]) == (theirs["status"], theirs["forwards"])
    for file in reference.glob("models/*/weights.safetensors"):
        assert file.read_bytes() == (home / file.relative_to(reference)).read_bytes()
    assert pairs(home) == pairs(reference) == keys
    assert not list(home.rglob("*.part"))
    assert not list((home / "pending").glob("*"))


def busy(raylet: int) -> list[int]:
    """Processes of a node that are at a task of ours."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == raylet and (entry / "cmdline").read_text().startswith("ray::perform"):
                found.append(int(entry.name))
    return found


def caught(node: Any) -> list[int]:
    """The same, stopped in the midst of it: what they are at has not been answered for, nor will it be."""
    raylet = node.all_processes["raylet"][0].process.pid
    pids = busy(raylet)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    still = [pid for pid in busy(raylet) if pid in pids]
    for pid in set(pids) - set(still):
        os.kill(pid, signal.SIGCONT)
    return still


@inner
def test_a_worker_and_a_node_die_in_mid_run(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster as Machines

    reference = tmp_path / "local"
    assert carry_out(reference, local, ignore).failures == ()
    machines = Machines(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = machines.add_node(num_cpus=1)
    machines.wait_for_nodes()
    lost: dict[str, int] = {}
    engines: list[RayEngine] = []

    def disturb(watch: Watch) -> None:
        done = watch.shards_done
        if done >= 20 and "worker" not in lost:
            for pid in caught(machines.head_node)[:1]:
                os.kill(pid, signal.SIGKILL)
                lost["worker"] = done
        if done >= 50 and "node" not in lost and (pids := caught(second)):
            machines.remove_node(second, allow_graceful=False)
            lost["node"] = done
            for pid in pids:  # with their node they would have died by themselves, had they not been stopped
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def engine(context: Context) -> RayEngine:
        engines.append(RayEngine(Cluster(address=machines.address), context))
        return engines[0]

    home = tmp_path / "ray"
    try:
        ended = carry_out(home, engine, disturb)
    finally:
        machines.shutdown()
    assert ended == Report((), 0, "")
    assert set(lost) == {"worker", "node"}, "neither was at work when it should have died"
    again = engines[0]._tries
    print(f"\ndied after so many of 120 shards: {lost}; given again: {sorted(again)}")
    assert sum(again.values()) == 2
    assert_equal(home, reference)


def main() -> None:
    """The run that Ctrl-C ends, also where this process was started in the background, deaf to it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    carry_out(Path(sys.argv[1]), lambda context: RayEngine(Cluster(cpus=0.5), context), ignore)


@inner
def test_ctrl_c_leaves_a_clean_store(tmp_path: Path) -> None:
    home = tmp_path / "ray"
    before = {*Path("/tmp").glob("ray-*")}
    process = subprocess.Popen(
        [sys.executable, __file__, str(home)],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    deadline = time.monotonic() + 300
    while len(list(home.glob("cells/*/result.json"))) < 5:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    pressed = time.monotonic()
    process.wait(timeout=60)
    print(f"\nended {time.monotonic() - pressed:.1f} s after Ctrl-C")
    said = process.communicate()[1]
    assert "KeyboardInterrupt" in said
    assert process.returncode != 0
    assert {*Path("/tmp").glob("ray-*")} == before
    assert not list(home.rglob("*.part"))
    finished = {file: file.stat().st_mtime_ns for file in home.glob("cells/*/result.json")}
    assert 5 <= len(finished) < 40
    assert carry_out(home, local, ignore).failures == ()
    assert all(file.stat().st_mtime_ns == when for file, when in finished.items())
    reference = tmp_path / "local"
    assert carry_out(reference, local, ignore).failures == ()
    assert_equal(home, reference)


if __name__ == "__main__":
    main()
