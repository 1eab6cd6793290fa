"""Work on models that are handed over in Python: in this process, or in others that get copies of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cloudpickle

from ..errors import UserError, said
from ..victims.victim import VictimError
from .jobs import Context, Job
from .process_pool import Done, Engine, Pool, Task
from .worker import Worker, worker


class Here:
    """Does one task after the other in this process, and lets whatever goes wrong through."""

    def __init__(self, context: Context) -> None:
        self._worker = Worker(context)

    def run(self, take: Callable[[], Task | None], timeout: float = 0.25) -> Iterator[Done | None]:
        """Work until nothing is left; see :meth:`harness.execution.process_pool.Pool.run`."""
        while (task := take()) is not None:
            yield Done(task, self._worker.run(task.payload), None)


class Processes(Pool):
    """A pool whose processes are given the very models, and classes that only this process knows.

    Everything goes there by value (cloudpickle), also what was declared in a notebook or the main script, which is not
    run again: a script needs no ``if __name__ == "__main__"``.

    Raises:
        UserError: A model cannot be copied to another process.
    """

    def __init__(self, jobs: int, context: Context) -> None:
        try:
            carried = cloudpickle.dumps(context)
        except Exception as error:  # whatever a model's own code raises
            raise UserError(f"the model cannot be handed to other processes ({said(error)}): leave out jobs") from error
        super().__init__(jobs, _receive, carried)

    def _send(self, payload: Any) -> Any:
        return cloudpickle.dumps(payload)

    def _start(self) -> Any:
        with _without_main():
            return super()._start()


def _receive(carried: bytes) -> Callable[[bytes], Any]:
    """Set a process up: what runs a job that was sent to it."""
    context: Context = cloudpickle.loads(carried)
    mine = worker(context)

    def run(payload: bytes) -> Any:
        job: Job = cloudpickle.loads(payload)
        return mine.run(job)

    return run


@contextmanager
def _without_main() -> Iterator[None]:
    """Start processes that do not run the main script again."""
    import __main__

    kept: dict[str, Any] = {
        name: vars(__main__).pop(name) for name in ("__file__", "__spec__") if name in vars(__main__)
    }
    vars(__main__)["__spec__"] = None  # what multiprocessing looks at to find out what to run
    try:
        yield
    finally:
        vars(__main__).update(kept)


class Strict:
    """Another engine, whose first failure ends the work; ``keep`` is told what every task returned.

    Raises:
        VictimError: The model, or what else the user brought, is to blame.
        RuntimeError: Something else failed.
    """

    def __init__(self, engine: Engine, keep: Callable[[Job, Any], None]) -> None:
        self._engine, self._keep = engine, keep

    def run(self, take: Callable[[], Task | None], timeout: float = 0.25) -> Iterator[Done | None]:
        """Work until nothing is left, or something fails."""
        for done in self._engine.run(take, timeout):
            if done is not None:
                if done.error is not None:
                    raise VictimError(done.error) if done.fault else RuntimeError(done.detail or done.error)
                self._keep(done.task.payload, done.value)
            yield done
