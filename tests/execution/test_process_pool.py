from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
