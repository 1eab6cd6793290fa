from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.execution.process_pool import TRIES, Done, Pool, Task


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


def run(folder: Path, payloads: list[tuple[str, int]], jobs: int = 2) -> dict[str, Done]:
    waiting = deque(Task(str(number), payload) for number, payload in enumerate(payloads))
    with Pool(jobs, setup, folder) as pool:
        ended = [done for done in pool.run(lambda: waiting.popleft() if waiting else None) if done is not None]
    assert len(ended) == len({done.task.name for done in ended}), "a task ended twice"
    return {done.task.name: done for done in ended}


def test_every_end_of_a_task(tmp_path: Path) -> None:
    kinds = ["work", "die once", "raise", "work", "blame", "die", "work", "die once"]
    ended = run(tmp_path, [(kind, number) for number, kind in enumerate(kinds)])
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


def test_workers_leave_with_the_pool(tmp_path: Path) -> None:
    waiting = deque([Task("0", ("work", 2))])
    with Pool(1, setup, tmp_path) as pool:
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
with Pool(1, Named(), None) as pool:
    for _ in pool.run(lambda: next(tasks)):
        pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system sees to it on Linux")
def test_a_worker_ends_with_its_driver_also_while_it_imports(tmp_path: Path) -> None:
    (tmp_path / "slow_setup.py").write_text(SLOW)
    root = str(Path(__file__).parents[2])
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], start_new_session=True, cwd=root)
    while not (tmp_path / "importing").exists():
        assert driver.poll() is None
        time.sleep(0.02)
    numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    workers = [pid for pid in numbers if _is_worker(pid, driver.pid)]
    assert workers
    driver.kill()
    driver.wait()
    while any(_is_worker(pid, driver.pid) for pid in workers):  # the test's own limit of time is the measure
        time.sleep(0.02)


def _is_worker(pid: int, session: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        command = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False
    return int(fields[3]) == session and fields[0] not in "ZX" and "spawn_main" in command
