from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.execution import fork_server
from harness.execution.fork_server import AVAILABLE, SERVER, Load
from harness.execution.process_pool import TRIES, Done, Pool, Task
from tests.helpers.processes import workers

FORKED = pytest.param((), marks=pytest.mark.skipif(not AVAILABLE, reason="workers are forked on Linux alone"))
"""What a pool that forks its workers loads: nothing."""

LOADS = [pytest.param(None, id="spawned"), pytest.param(*FORKED.values, marks=FORKED.marks, id="forked")]


def setup(context: Path) -> Callable[[Any], Any]:
    def work(payload: tuple[str, int]) -> Any:
        what, value = payload
        if what == "die once":
            mark = context / f"died-{value}"
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        elif what == "die":
            os._exit(3)
        elif what == "raise":
            raise RuntimeError("first line\nsecond line")
        elif what == "blame":
            raise UserError("no such thing")
        return value * value

    return work


def run(
    folder: Path, payloads: list[tuple[str, int]], jobs: int = 2, loads: Sequence[Load] | None = None
) -> dict[str, Done]:
    waiting = deque(Task(str(number), payload) for number, payload in enumerate(payloads))
    with Pool(jobs, setup, folder, loads) as pool:
        ended = [done for done in pool.run(lambda: waiting.popleft() if waiting else None) if done is not None]
    assert len(ended) == len({done.task.name for done in ended}), "a task ended twice"
    return {done.task.name: done for done in ended}


@pytest.mark.parametrize("loads", LOADS)
def test_every_end_of_a_task(tmp_path: Path, loads: Sequence[Load] | None) -> None:
    kinds = ["work", "die once", "raise", "work", "blame", "die", "work", "die once"]
    ended = run(tmp_path, [(kind, number) for number, kind in enumerate(kinds)], loads=loads)
    assert len(ended) == len(kinds)
    for number, kind in enumerate(kinds):
        done = ended[str(number)]
        if kind in ("work", "die once"):
            assert (done.value, done.error) == (number**2, None)
        elif kind == "raise":
            assert done.error == "RuntimeError: first line"
            assert "second line" in done.detail
            assert not done.fault
        elif kind == "blame":
            assert done.error == "no such thing"
            assert done.fault
        else:
            assert done.error == f"the worker process died {TRIES} times (exit code 3)"


def test_no_task_no_worker(tmp_path: Path) -> None:
    assert run(tmp_path, []) == {}


@pytest.mark.parametrize("loads", LOADS)
def test_workers_leave_with_the_pool(tmp_path: Path, loads: Sequence[Load] | None) -> None:
    waiting = deque([Task("0", ("work", 2))])
    with Pool(1, setup, tmp_path, loads) as pool:
        for _ in pool.run(lambda: waiting.popleft() if waiting else None):
            (pid,) = [worker.process.pid for worker in pool._workers]
    assert not Path(f"/proc/{pid}").exists() or not Path("/proc").is_dir()


SLOW = """
import time
from pathlib import Path
(Path(__file__).parent / "importing").touch()
time.sleep(600)
setup = None
"""

DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
from harness.execution.process_pool import Pool, Task
class Named:  # pickled by its name alone, so that only the worker imports it
    def __reduce__(self):
        return (__import__, ("slow_setup",))
tasks = iter([Task("0", 0), None])
with Pool(1, Named(), None, eval(sys.argv[2])) as pool:
    for _ in pool.run(lambda: next(tasks)):
        pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system sees to it on Linux")
@pytest.mark.parametrize("loads", LOADS)
def test_a_worker_ends_with_its_driver_also_while_it_imports(tmp_path: Path, loads: Sequence[Load] | None) -> None:
    (tmp_path / "slow_setup.py").write_text(SLOW)
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", DRIVER, str(tmp_path), repr(loads)]
    driver = subprocess.Popen(command, start_new_session=True, cwd=root)
    while not (tmp_path / "importing").exists():
        assert driver.poll() is None
        time.sleep(0.02)
    assert workers(driver.pid)
    driver.kill()
    driver.wait()
    while workers(driver.pid) or workers(driver.pid, SERVER):  # the test's own limit of time is the measure
        time.sleep(0.02)


def asked(context: str) -> Callable[[Any], Any]:
    """What a worker finds: a module of the context's name, its folder, its environment and its parent."""
    made = importlib.import_module(context)

    def answer(what: str) -> Any:
        if what == "sleep":
            time.sleep(600)
        return made.SAYS, str(Path.cwd()), os.environ.get("GAUNTLET_TEST"), os.environ["OMP_NUM_THREADS"], os.getppid()

    return answer


def first(pool: Pool, what: str = "") -> Any:
    tasks = iter([Task(what, what), None])
    (done,) = (done for done in pool.run(lambda: next(tasks)) if done is not None)
    assert done.error is None
    return done.value


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test's own server."""
    monkeypatch.setattr(fork_server, "_server", None)
    yield
    assert fork_server._server is not None
    fork_server._server._process.kill()


@pytest.mark.skipif(not AVAILABLE, reason="workers are forked on Linux alone")
@pytest.mark.usefixtures("server")
def test_one_server_forks_what_finds_the_driver_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parents = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "changing.py").write_text(f"SAYS = {number}")
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("GAUNTLET_TEST", str(number))
        with Pool(1, asked, "changing", ()) as pool:
            says, where, told, threads, parent = first(pool)
        assert (says, where, told, threads) == (number, str(folder), str(number), "1")
        parents.append(parent)
    assert parents[0] == parents[1] != os.getpid()


@pytest.mark.skipif(not AVAILABLE, reason="workers are forked on Linux alone")
@pytest.mark.usefixtures("server")
def test_a_server_that_is_gone_has_a_successor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "changing.py").write_text("SAYS = 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    with Pool(1, asked, "changing", ()) as pool:
        *_, before = first(pool)
        os.kill(before, signal.SIGKILL)
        assert pool._workers[0].pipe.poll(60)  # a worker goes with its server: its end of the pipe is closed then
        *_, after = first(pool)
        assert after != before
        os.kill(after, signal.SIGKILL)
    with Pool(1, asked, "changing", ()) as pool:
        *_, last = first(pool)
    assert last not in (before, after)


@pytest.mark.skipif(not AVAILABLE, reason="workers are forked on Linux alone")
@pytest.mark.usefixtures("server")
def test_nobody_waits_for_what_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = time.monotonic()
    pool = Pool(1, asked, "none", (_load_for_long,))
    tasks = iter([Task("0", "sleep"), None])
    assert next(pool.run(lambda: next(tasks), timeout=0.01)) is None
    pool.stop()
    assert time.monotonic() - begun < 60


def _load_for_long() -> None:
    time.sleep(600)
