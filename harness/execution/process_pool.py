"""A pool of worker processes that survives the death of any of them.

Each worker has a pipe of its own: a worker that is killed at any moment holds no lock and takes only its own
task down, which is given to its successor. A worker whose parent dies exits at once.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Final, NamedTuple, Protocol

from ..errors import UserError, describe
from . import fork_server
from .fork_server import Forked, Load

TRIES: Final = 3
"""How often a task may take its worker down before it counts as failed."""

ONE_THREAD: Final = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
"""Environment in which numerical libraries start with one thread: a sum split over threads rounds differently."""


class Task(NamedTuple):
    """A unit of work: ``name`` is unique, ``payload`` goes to the worker's function."""

    name: str
    payload: Any


class Done(NamedTuple):
    """How a task ended: ``error`` is None, or one line (``detail`` has the traceback)."""

    task: Task
    value: Any
    error: str | None
    detail: str = ""
    fault: bool = False
    """True if the user's input is to blame (a :class:`UserError`)."""


class Engine(Protocol):
    """What spreads tasks over workers: a :class:`Pool`, or :class:`harness.execution.ray.engine.RayEngine`."""

    def run(self, take: Callable[[], Task | None], timeout: float = 0.25) -> Iterator[Done | None]:
        """Work until nothing is left; see :meth:`Pool.run`."""
        ...


@dataclass
class _Worker:
    process: SpawnProcess | Forked
    pipe: Connection
    task: Task | None = None


class Pool:
    """Worker processes of one thread each.

    ``setup``, importable by name, is called once in each with ``context``, and returns the function that runs a
    payload. With ``loads``, functions that import what workers need, they are forked from a process that has called
    them (:mod:`harness.execution.fork_server`); where there is none to be had, or without, each is a new interpreter.
    """

    def __init__(
        self,
        jobs: int,
        setup: Callable[[Any], Callable[[Any], Any]],
        context: Any,
        loads: Sequence[Load] | None = None,
    ) -> None:
        self._spawn = multiprocessing.get_context("spawn")
        self._loads = loads if fork_server.AVAILABLE else None
        self._setup = setup
        self._context = context
        self._workers: list[_Worker] = []
        self._jobs = jobs
        self._tries: dict[str, int] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop(patience=5.0 if kind is None else 0.0)

    def run(self, take: Callable[[], Task | None], timeout: float = 0.25) -> Iterator[Done | None]:
        """Work until nothing is left: ``take``, asked at every end of a task, gives the next that may start, or None.

        Yields:
            A :class:`Done` for every task, and None whenever ``timeout`` passed without one.
        """
        while True:
            self._feed(take)
            busy = [worker for worker in self._workers if worker.task is not None]
            if not busy:
                return
            ready = wait([w.pipe for w in busy] + [w.process.sentinel for w in busy], timeout)
            ended: list[Done] = []
            for worker in busy:
                if worker.pipe in ready:
                    ended += self._receive(worker)
                elif worker.process.sentinel in ready and not worker.process.is_alive():
                    ended += self._bury(worker)
            yield from ended
            if not ended:
                yield None

    def _feed(self, take: Callable[[], Task | None]) -> None:
        for slot in range(self._jobs):
            if slot < len(self._workers) and self._workers[slot].task is not None:
                continue
            task = take()
            if task is None:
                return
            if slot >= len(self._workers):
                self._workers.append(self._start())
            self._give(self._workers[slot], task)

    def _give(self, worker: _Worker, task: Task) -> None:
        worker.task = task
        # if it has just died, its sentinel will say so, and the task goes to its successor
        with suppress(OSError):
            worker.pipe.send(self._send(task.payload))

    def _send(self, payload: Any) -> Any:
        """A payload as it goes through the pipe."""
        return payload

    def _receive(self, worker: _Worker) -> list[Done]:
        try:
            value, error, detail, fault = worker.pipe.recv()
        except (EOFError, OSError):
            return self._bury(worker)
        task, worker.task = worker.task, None
        assert task is not None
        return [Done(task, value, error, detail, fault)]

    def _bury(self, worker: _Worker) -> list[Done]:
        """Replace a dead worker and give its task to the successor, unless it has killed too many."""
        worker.process.join()
        worker.pipe.close()
        task, code = worker.task, worker.process.exitcode
        assert task is not None
        fresh = self._start()
        worker.process, worker.pipe, worker.task = fresh.process, fresh.pipe, None
        self._tries[task.name] = self._tries.get(task.name, 0) + 1
        if self._tries[task.name] < TRIES:
            self._give(worker, task)
            return []
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return [Done(task, None, f"the worker process died {TRIES} times ({how})")]

    def _start(self) -> _Worker:
        ours, theirs = self._spawn.Pipe()
        with theirs, _single_threaded(), _deaf():
            process = self._process(theirs)
        # a worker reads it when it watches its driver already: torch, which it names, takes seconds to be imported
        with suppress(OSError):
            ours.send_bytes(reduction.ForkingPickler.dumps((self._setup, self._context)))
        return _Worker(process, ours)

    def _process(self, pipe: Connection) -> SpawnProcess | Forked:
        if self._loads is not None:
            return fork_server.fork(self._loads, _work, pipe)
        process = self._spawn.Process(target=_work, args=(pipe, os.getpid()), daemon=True)
        process.start()
        return process

    def stop(self, patience: float = 0.0) -> None:
        """End all workers, within ``patience`` seconds by themselves. Writes are atomic: nothing is left half done."""
        for worker in self._workers:
            worker.pipe.close()  # an idle worker reads the end of its pipe and leaves
        deadline = time.monotonic() + patience
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.process.kill()
            worker.process.join()
        self._workers.clear()


@contextmanager
def _single_threaded() -> Iterator[None]:
    """:data:`ONE_THREAD` for the children that are started meanwhile."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _deaf() -> Iterator[None]:
    """Children that are started meanwhile hear no Ctrl-C from their first moment on: it is the driver's business."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # one that came meanwhile is heard now


def _work(pipe: Connection, parent: int) -> None:
    """Main function of a worker: its pipe brings setup and that one's context first, and then payloads."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        fork_server.end_with(parent, fork_server.WORKER)
    threading.Thread(target=_die_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    try:
        setup, context = pickle.loads(pipe.recv_bytes())
    except EOFError:
        return
    function = setup(context)
    while True:
        try:
            payload = pipe.recv()
        except EOFError:
            return
        except UserError as error:  # a plug-in's class is loaded when what was declared with it is read
            pipe.send((None, str(error), "", True))
            continue
        try:
            pipe.send(outcome(function, payload))
        except BrokenPipeError:  # the driver has ended
            return


def outcome(function: Callable[[Any], Any], payload: Any) -> tuple[Any, str | None, str, bool]:
    """Call a function; returns value, error, detail and fault as in :class:`Done`."""
    try:
        return function(payload), None, "", False
    except UserError as error:
        return None, str(error), "", True
    except Exception as error:
        return None, describe(error), traceback.format_exc(), False


def _die_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
