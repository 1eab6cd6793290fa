"""A process that has the libraries imported and forks workers, in milliseconds where a new interpreter takes seconds.

One serves all pools of a program, one after the other: it begins with the first, loads what later ones need besides,
and ends with the program, or after :data:`IDLE` seconds without a worker. It computes nothing, has one thread, and
imports what is ours and the toolkits alone, never a user's code, which may change between two runs.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import reduction
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final

AVAILABLE: Final = sys.platform == "linux"
"""Elsewhere libraries of the system do not bear a fork, or children cannot be made to end with their parent."""

SERVER: Final = "gauntlet-forks"
WORKER: Final = "gauntlet-worker"
"""What the system calls the server and a worker, in 15 letters at most."""

IDLE: Final = 600.0
"""Seconds after which a server that has nothing to do gives its memory back."""

Load = Callable[[], None]
"""A function of a module, which imports what workers will need."""


class Forked:
    """A forked worker, with as much of :class:`multiprocessing.Process` as a pool needs.

    ``sentinel`` has something to say when the worker has begun, and when it has ended.
    """

    def __init__(self, sentinel: Connection) -> None:
        self.sentinel = sentinel
        self._pid: int | None = None
        self._code: int | None = None

    @property
    def pid(self) -> int | None:
        """Its number; None as long as the server has not come to it."""
        self._hear(0.0)
        return self._pid

    @property
    def exitcode(self) -> int | None:
        """As that of a process; a worker that went down with its server was killed."""
        self._hear(0.0)
        return self._code

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self.exitcode is None

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._code is None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._hear(left):
                return

    def kill(self) -> None:
        """End it. One that has not begun is given up: it ends with its pipe."""
        if not self.is_alive():
            return
        if self._pid is None:
            self._code = -signal.SIGKILL
            return
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def _hear(self, timeout: float | None) -> bool:
        """Read one message, if one comes in time."""
        if self._code is not None or not self.sentinel.poll(timeout):
            return False
        try:
            said = self.sentinel.recv()
        except (EOFError, OSError):
            said = -signal.SIGKILL
            self._pid = self._pid or 0
        if self._pid is None:
            self._pid = said
        else:
            self._code = said
        return True


class ForkServer:
    """The server, as its driver sees it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._control, theirs = context.Pipe()
        self._owner = os.getpid()
        self._loaded: set[Load] = set()
        self._process = context.Process(target=_serve, args=(theirs, self._owner), daemon=True)
        self._process.start()
        theirs.close()

    def is_alive(self) -> bool:
        """Whether it can be asked, by this process."""
        return self._owner == os.getpid() and self._process.is_alive()

    def load(self, loads: Sequence[Load]) -> None:
        """Let it import what is not there yet, before the workers that are asked for next. Does not wait."""
        new = [load for load in dict.fromkeys(loads) if load not in self._loaded]
        if new:
            self._control.send(new)
            self._loaded.update(new)

    def fork(self, target: Callable[[Connection, int], None], pipe: Connection) -> Forked:
        """A worker that calls a function with its end of a pipe and its parent's number. Does not wait.

        Raises:
            OSError: The server has ended.
        """
        ours, theirs = multiprocessing.Pipe(duplex=False)
        surroundings = (dict(os.environ), list(sys.path), list(sys.argv), str(Path.cwd()))
        with theirs:
            self._control.send((target, surroundings))
            for one in (pipe, theirs):
                reduction.send_handle(self._control, one.fileno(), self._process.pid)
        return Forked(ours)


_lock = threading.Lock()
_server: ForkServer | None = None


def fork(loads: Sequence[Load], target: Callable[[Connection, int], None], pipe: Connection) -> Forked:
    """A worker of this program's server, which is started where there is none, and has loaded ``loads``."""
    global _server
    with _lock:
        for _ in range(2):
            if _server is None or not _server.is_alive():
                _server = ForkServer()
            with suppress(OSError):  # it has just ended, of idleness or by another's hand
                _server.load(loads)
                return _server.fork(target, pipe)
            _server = None
    raise OSError("the process that forks workers ends as soon as it is started")


def end_with(parent: int, name: str) -> None:
    """Let this process be killed by Linux when its parent ends, whatever it is doing, and be found by a name.

    Imports of C libraries hold Python's lock, so that no thread of it could see to that.

    Args:
        parent: Its number: a process whose parent has ended already ends here.
        name: What ``ps`` and ``top`` call it, 15 letters at most.
    """
    with suppress(OSError, AttributeError):
        system = ctypes.CDLL(None)
        system.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        system.prctl(15, name.encode(), 0, 0, 0)  # PR_SET_NAME
        if os.getppid() != parent:
            os._exit(1)


def _serve(control: Connection, driver: int) -> None:
    """Main function of the server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(driver, SERVER)
    rung, ring = os.pipe()
    for end in (rung, ring):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(ring)
    children: dict[int, Connection] = {}
    while True:
        ready = wait([control, rung], None if children else IDLE)
        if not ready:
            return
        if rung in ready:
            with suppress(BlockingIOError):
                os.read(rung, 4096)
            _reap(children)
        if control not in ready:
            continue
        try:
            asked = control.recv()
        except EOFError:
            return
        if isinstance(asked, list):
            for load in asked:
                with suppress(Exception):  # a worker meets it again, and says so
                    load()
            gc.freeze()  # what all share is written to by no collection
            continue
        pipe, status = (Connection(reduction.recv_handle(control)) for _ in range(2))
        pid = os.fork()
        if pid == 0:
            for mine in (control, status, *children.values()):
                mine.close()
            _become_worker(pipe, (rung, ring), *asked)
        pipe.close()
        children[pid] = status
        with suppress(OSError):
            status.send(pid)


def _reap(children: dict[int, Connection]) -> None:
    for pid, status in list(children.items()):
        ended, how = os.waitpid(pid, os.WNOHANG)
        if ended:
            with suppress(OSError), children.pop(pid):
                status.send(os.waitstatus_to_exitcode(how))


def _become_worker(
    pipe: Connection, bell: tuple[int, int], target: Callable[[Connection, int], None], surroundings: Any
) -> None:
    """Be what a new interpreter would be: of the driver's environment, path, arguments and folder. Does not return."""
    code = 1
    try:
        parent = os.getppid()
        end_with(parent, WORKER)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for end in bell:
            os.close(end)
        environment, path, arguments, folder = surroundings
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:], sys.argv[:] = path, arguments
        os.chdir(folder)
        target(pipe, parent)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
