"""Tasks on Ray: equal numbers, and what is refused. Ray itself runs where nothing outside can reach it."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from defenses.standard import Standard
from harness import environment
from harness.attacks.learned_generator import Generator
from harness.cli.parsing import parse_engine
from harness.datasets.registry import Dataset, DatasetInfo, DataSource
from harness.errors import UserError
from harness.execution.jobs import Context, Prepare, Train
from harness.execution.ray import worker
from harness.execution.ray.engine import Cluster
from harness.execution.ray.session import refusal, tasks
from harness.execution.ray.transfer import Hold, unload
from harness.execution.ray.worker import Carried, Shared
from harness.execution.worker import Worker
from harness.planning.plan import plan, specs
from harness.planning.suite import Suite
from harness.records.files import write_bytes, write_json
from harness.records.home import Home

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent / "scripts"
REFUSED = 77

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


def python(*words: str, isolated: bool = True, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    if isolated:
        command = [sys.executable, str(SCRIPTS / "isolated.py"), *command]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ, timeout=280, cwd=folder)
    if isolated and done.returncode == REFUSED:
        pytest.skip(done.stdout.strip())
    return done


def content(home: Path) -> dict[str, bytes]:
    """Every file that says what was measured, without those that hold times."""
    kinds = ("cells/*/samples.parquet", "cells/*/gallery.safetensors", "models/*/*", "prepared/*.safetensors")
    files = [file for kind in kinds for file in home.glob(kind) if file.name != "card.json"]
    return {str(file.relative_to(home)): file.read_bytes() for file in files}


def names(home: Path) -> set[str]:
    folders = ("cells", "models", "prepared", "crafted", "health", "plans")
    return {str(file.relative_to(home)) for folder in folders for file in (home / folder).rglob("*") if file.is_file()}


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_kind_of_job_leaves_what_it_leaves_with_the_local_engine(tmp_path: Path) -> None:
    found: dict[str, tuple[Any, ...]] = {}
    for engine in ("local", "ray"):
        home = tmp_path / engine
        # a relative home, as most are
        done = python(str(SCRIPTS / "ray_run.py"), engine, engine, isolated=engine == "ray", folder=tmp_path)
        assert done.returncode == 0, done.stderr
        lines = re.sub(r" \(\d+ pairs? .*?\)|/local/|/ray/", "", done.stdout).splitlines()
        assert not list(home.rglob("*.part"))
        assert list((home / "progress").glob("train-*.json")), "nobody could see how training goes"
        found[engine] = (lines, names(home), content(home))
    lines, files, _ = found["local"]
    assert len(lines) == 4
    assert any("raises" in line and line.endswith("RuntimeError: first line") for line in lines)
    assert any("Diverged: standard" in line for line in lines)
    assert any("mnist is not in" in line for line in lines)
    for kind in ("cells/", "prepared/", "crafted/", "health/"):
        assert any(name.startswith(kind) for name in files), kind
    assert any(name.endswith("failed.json") for name in files)
    assert found["ray"] == found["local"]


@needs_ray
def test_a_task_is_told_the_gpu_that_ray_lends_it(tmp_path: Path) -> None:
    done = python(str(SCRIPTS / "ray_gpus.py"), str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"RuntimeError: cuda:{i} of [{i}], visible: None" for i in (0, 1)]


@needs_ray
def test_a_request_larger_than_the_cluster_is_refused(tmp_path: Path) -> None:
    words = ["-m", "harness.cli.main", "run", "quick", "--engine", "ray", "--home", str(tmp_path / "home")]
    done = python(*words, "--cpus-per-task", "1000")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("gauntlet: ")]
    assert re.search(r"no node of the cluster can take a task of CPU 1000, GPU 0 .* 1 with CPU \d+, GPU 0$", line)
    assert not (tmp_path / "home" / "plans").exists()


@needs_ray
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="looks in /proc")
def test_a_cluster_of_our_own_listens_on_127_0_0_1_alone() -> None:
    """Not where only the loopback device is: Ray would have no other address to take."""
    done = python(str(SCRIPTS / "listening.py"), isolated=False)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("listening:")]
    assert len(line.split()) > 1
    assert all(address.endswith("0100007F") for address in line.split()[1:]), line


@needs_ray
def test_an_address_where_nobody_answers(tmp_path: Path) -> None:
    words = ["-m", "harness.cli.main", "run", "quick", "--engine", "ray", "--ray-address", "127.0.0.1:6379"]
    done = python(*words, "--home", str(tmp_path / "home"))
    assert done.returncode == 2
    assert "gauntlet: cannot attach to the Ray cluster at 127.0.0.1:6379 (" in done.stderr
    assert "refused" in done.stderr


def test_without_ray_one_line_names_the_extra(tmp_path: Path) -> None:
    code = "import sys; sys.modules['ray'] = None; from harness.cli.main import main; main()"
    done = python("-c", code, "run", "quick", "--engine", "ray", "--home", str(tmp_path / "home"), isolated=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("gauntlet: --engine ray needs Ray")
    assert line.endswith("pip install -c constraints.txt -e '.[ray]'")


def test_nothing_imports_ray_by_itself() -> None:
    files = [file.relative_to(ROOT).with_suffix("") for file in (ROOT / "harness").rglob("*.py")]
    modules = [".".join(file.parts) for file in files if file.stem not in ("__init__", "__main__")]
    code = f"import sys, importlib\nfor name in {modules}: importlib.import_module(name)\n"
    done = python("-c", code + "assert 'ray' not in sys.modules", isolated=False)
    assert done.returncode == 0, done.stderr
    knowing = set()
    for file in [
        file for folder in ("harness", "defenses", "suites", "reports") for file in ROOT.glob(f"{folder}/**/*.py")
    ]:
        for node in ast.walk(ast.parse(file.read_text())):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(name.split(".")[0] == "ray" for name in found):
                knowing.add(file.relative_to(ROOT).as_posix())
    assert knowing == {"harness/execution/ray/session.py"}


@pytest.mark.parametrize(
    ("node", "cpus", "gpus", "fit"),
    [
        ({"CPU": 4.0}, 1, 0, 4),
        ({"CPU": 1.0}, 0.1, 0, 10),
        ({"CPU": 4.0}, 1.5, 0, 2),
        ({"CPU": 4.0}, 8, 0, 0),
        ({"CPU": 4.0}, 1, 1, 0),
        ({"CPU": 16.0, "GPU": 2.0}, 1, 0.3, 6),
        ({"CPU": 16.0, "GPU": 3.0}, 1, 2, 1),
        ({"CPU": 2.0, "GPU": 4.0}, 1, 1, 2),
        ({"GPU": 4.0}, 1, 1, 0),
    ],
)
def test_tasks_of_a_node(node: dict[str, float], cpus: float, gpus: float, fit: int) -> None:
    assert tasks(node, cpus, gpus) == fit


def test_a_refusal_says_what_there_is() -> None:
    line = refusal([{"CPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}], 16, 0.5)
    assert "CPU 16, GPU 0.5" in line
    assert line.endswith("its nodes: 2 with CPU 4, GPU 0; 1 with CPU 8, GPU 2")
    assert refusal([], 1, 0).endswith("its nodes: none")


def ask(**options: Any) -> Cluster | None:
    asked = {"engine": "ray", "address": None, "cpus": 1.0, "gpus": None, "device": "cpu", "jobs": None, **options}
    return parse_engine(asked.pop("engine"), **asked)


def test_what_is_asked_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ask(engine="local") is None
    assert ask() == Cluster()
    assert ask(device="cuda") == Cluster(gpus=1.0)
    assert ask(device="cuda", gpus=0.25, cpus=2.0, jobs=3) == Cluster(gpus=0.25, cpus=2.0, jobs=3)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert ask() == Cluster(address="10.0.0.1:6379")
    assert ask(address="auto") == Cluster(address="auto")
    assert ask(engine="local") is None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"engine": "local", "address": "auto"}, "add --engine ray"),
        ({"engine": "local", "cpus": 2.0}, "add --engine ray"),
        ({"device": "cuda:1"}, "Ray hands out the GPUs: --device cuda"),
        ({"gpus": 1.0}, "contradict each other"),
        ({"device": "cuda", "gpus": 0.0}, "contradict each other"),
        ({"cpus": 0.0}, "must be positive"),
        ({"cpus": float("nan")}, "must be positive"),
        ({"device": "cuda", "gpus": 1.5}, "a fraction of 1 or a whole number"),
        ({"device": "cuda", "gpus": -1.0}, "a fraction of 1 or a whole number"),
        ({"address": "ray://head:10001"}, "run the command on one of its nodes"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        ask(**options)


def test_a_hold_knows_what_its_job_left(tmp_path: Path) -> None:
    given = {"models/a/card.json": b"{}", "models/a/failed.json": b"{}", "models/b/weights.safetensors": b"b"}
    there, here = Home(tmp_path / "there").create(), Home(tmp_path / "here").create()
    for name, value in given.items():
        write_bytes(here.path / name, value)
    hold = Hold(there, given)
    assert hold.changes() == []
    (there.model("a") / "failed.json").unlink()
    write_json(there.model("a") / "card.json", {})  # the same bytes or not: it was written
    write_bytes(there.model("a") / "weights.safetensors", b"a")
    write_bytes(there.progress / "train-a.json", b"no result")
    changes = hold.changes()
    assert [name for name, _ in changes] == [
        "models/a/failed.json",
        "models/a/weights.safetensors",
        "models/a/card.json",
    ]
    unload(here, changes)
    unload(here, changes)  # a task that ran twice does no harm
    assert {str(file.relative_to(here.path)) for file in here.path.rglob("*") if file.is_file()} == {
        "models/a/card.json",
        "models/a/weights.safetensors",
        "models/b/weights.safetensors",
    }
    assert (here.model("a") / "weights.safetensors").read_bytes() == b"a"


def test_a_node_without_the_data_asks_for_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = DataSource("digits").load()
    arrays = [t.numpy() for t in (digits.x_train, digits.y_train, digits.x_test, digits.y_test)]
    for array in arrays:
        array.flags.writeable = False  # as the object store hands them out
    monkeypatch.setattr(worker, "load", lambda: SimpleNamespace(get=lambda reference: {"copy": arrays}[reference]))
    absent = DataSource("mnist", root=tmp_path)

    class Missing:
        """On a node without the files of a set that it knows by name."""

        def info(self) -> DatasetInfo:
            return digits.info

        def load(self) -> Dataset:
            raise UserError("no such files here")

    assert np.array_equal(Carried(Missing(), digits.info, "copy").load().x_train.numpy(), arrays[0])
    with pytest.raises(UserError, match="no such files here"):
        Carried(Missing(), digits.info, None).load()
    carried = Carried(absent, digits.info, "copy")  # a folder of that name holds other images here
    assert carried.info() == digits.info
    assert np.array_equal(carried.load().x_test.numpy(), arrays[2])
    assert carried.load() is carried.load()
    with pytest.raises(UserError, match="mnist is not in"):
        Carried(absent, absent.info(), None).load()
    with pytest.raises(UserError, match="is another one on"):
        Carried(DataSource("digits"), absent.info(), None).load()


@pytest.mark.parametrize(
    ("lent", "visible", "number"),
    [
        ([], None, None),
        ([], "", None),
        ([1], None, 1),
        (["3"], "2,3", 1),
        (["2", "3"], "2,3", 0),
        (["GPU-b"], "GPU-a,GPU-b", 1),
    ],
)
def test_a_lent_gpu_has_a_number_among_those_of_the_node(
    lent: list[Any], visible: str | None, number: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "load", lambda: SimpleNamespace(get_gpu_ids=lambda: lent))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert worker._gpu() == number


def test_a_worker_keeps_its_models_until_another_gpu_is_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Shared(sources={}, device="cuda", versions={}, commit="", progress=None, scratch=None)
    monkeypatch.setattr(worker, "load", lambda: SimpleNamespace(get=lambda _: shared))
    monkeypatch.setattr(worker, "_crews", {})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    first, same, other, none = (worker._crew("shared", gpu)[1] for gpu in (0, 0, 1, None))
    assert first is same
    assert [hand.context.device for hand in (first, other, none)] == ["cuda:0", "cuda:1", "cuda"]
    assert len(worker._crews) == 1


def test_a_node_with_other_versions_is_not_relied_on() -> None:
    def shared(**versions: str) -> Shared:
        mine = environment.versions() | versions
        return Shared(
            sources={}, device="cpu", versions=mine, commit=environment.git_commit(), progress=None, scratch=None
        )

    assert worker._unfit(shared()) == ""
    assert re.search(r"has torch \S+, the driver has 1\.0: install the same", worker._unfit(shared(torch="1.0")))


def test_preparation_draws_the_same_from_a_model_just_loaded_and_one_in_memory(tmp_path: Path) -> None:
    """Which of the two a worker has depends on the engine and on who was faster."""
    source = DataSource("digits")
    info = source.info()
    suite = Suite(name="one", summary="", attacks={"l2": (Generator(images=60, epochs=1),)}, budgets={"l2": (0.5,)})
    (cell,) = plan(suite, specs([info], ["mlp-8"], [Standard(epochs=1)], [0]), {info.name: info}, samples=20).cells
    home = Home(tmp_path).create()
    hand = Worker(Context(home, {info.name: source}))
    hand.run(Train(cell.victim))
    made = []
    for _ in range(2):
        hand.run(Prepare(cell))
        made.append({file.name: file.read_bytes() for file in home.path.glob("prepared/*.safetensors")})
    assert made[0]
    assert made[0] == made[1]
