"""Run the jobs of a plan as tasks of a Ray cluster; only the driver writes.

The one module that imports Ray, and only where it is asked for. Ray places tasks and moves bytes; what it is asked to
repeat is decided here, by the rule of :mod:`harness.execution.process_pool`: a task whose worker or node died is given
again, one that raised is not.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from ... import environment
from ...datasets.registry import DataSource
from ...errors import UserError, describe, first_line
from ..jobs import Context, Source
from ..process_pool import ONE_THREAD, TRIES, Done, Task
from .session import Session, connect, load
from .transfer import needs, unload
from .worker import NODES_GPUS, Carried, Reply, Shared, perform

PATIENCE: Final = 60.0
"""Seconds that a run waits for a node that could take a task, once the last one is gone."""

CARRIED: Final = 2**31
"""Bytes of the largest data set that nodes are given a copy of."""

KEPT: Final = 64
"""Models whose bytes stay in the object store, the latest used."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What is asked of Ray.

    Attributes:
        address: ``HOST:PORT`` of a running cluster, or ``"auto"`` for the one this machine belongs to; None starts one
            of this machine alone, and stops it at the end.
        cpus: CPUs of a task, > 0. What Ray counts with: a task computes with one thread.
        gpus: GPUs of a task: 0, a fraction below 1, or a whole number.
        jobs: Tasks at once; None: as many as the cluster can take.

    Raises:
        UserError: A number out of its range, or an address of Ray's client.
    """

    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    jobs: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.cpus < float("inf"):
            raise UserError(f"--cpus-per-task must be positive, got {self.cpus:g}")
        if not 0 <= self.gpus < float("inf") or (self.gpus > 1 and self.gpus % 1):
            raise UserError(f"--gpus-per-task must be 0, a fraction of 1 or a whole number, got {self.gpus:g}")
        if self.address is not None and self.address.startswith("ray://"):
            raise UserError(
                f"cannot drive a cluster from outside ({self.address}): run the command on one of its nodes, with "
                "--ray-address auto"
            )


class RayEngine:
    """Runs tasks on a Ray cluster; offers what :class:`harness.execution.process_pool.Pool` does.

    Entering it connects to the cluster, or starts one. As with the pool, a run may be left at any moment: results are
    written by this process alone, whole or not at all. Of the home workers see no more than what their task needs.

    Raises:
        UserError: Ray is not installed or not there, or no node could ever take a task.
    """

    def __init__(self, cluster: Cluster, context: Context) -> None:
        self._ray = load(private=cluster.address is None)
        self._cluster, self._context = cluster, context
        self._flight: dict[Any, Task] = {}
        self._tries: dict[str, int] = {}
        self._models: dict[str, Any] = {}
        self._fitting = (0, 0.0)
        self._last_fit = time.monotonic()

    def __enter__(self) -> RayEngine:
        cluster = self._cluster
        self._session: Session = connect(self._ray, cluster.address, cluster.cpus, cluster.gpus)
        options = {"num_cpus": cluster.cpus, "num_gpus": cluster.gpus, "max_retries": 0, "max_calls": 0}
        self._perform = self._ray.remote(**options, runtime_env={"env_vars": ONE_THREAD | NODES_GPUS})(perform)
        self._shared: Any = None
        self._digest = lru_cache(maxsize=4096)(_digest)
        return self

    def __exit__(self, *_: object) -> None:
        self._flight.clear()
        self._session.close()

    def run(self, take: Callable[[], Task | None], timeout: float = 0.25) -> Iterator[Done | None]:
        """Work until nothing is left; see :meth:`harness.execution.process_pool.Pool.run`.

        Raises:
            UserError: A node cannot do what this one can, or none is left that could take a task.
        """
        while True:
            self._feed(take)
            if not self._flight:
                return
            ready, _ = self._ray.wait(list(self._flight), num_returns=1, timeout=timeout, fetch_local=False)
            if ready:  # all that ended meanwhile, not the first alone
                ready, _ = self._ray.wait(
                    list(self._flight), num_returns=len(self._flight), timeout=0, fetch_local=False
                )
            ended = [done for ref in ready if (done := self._receive(ref)) is not None]
            yield from ended
            if not ended:
                yield None

    def _feed(self, take: Callable[[], Task | None]) -> None:
        slots = self._slots()
        while len(self._flight) < slots and (task := take()) is not None:
            self._give(task)

    def _slots(self) -> int:
        """Tasks that may be under way now."""
        now = time.monotonic()
        if now - self._fitting[1] > 1.0:
            self._fitting = (self._session.room(), now)
        if self._fitting[0]:
            self._last_fit = now
        elif now - self._last_fit > PATIENCE:
            raise UserError(f"{self._session.refusal()}; the same command goes on once there is one")
        return self._cluster.jobs or max(1, self._fitting[0])

    def _give(self, task: Task) -> None:
        if self._shared is None:
            self._shared = self._ray.put(self._share())
        files = {}
        for path in needs(self._context.home, task.payload):
            try:
                files[str(path.relative_to(self._context.home.path))] = self._content(path)
            except FileNotFoundError:
                continue
        # references inside a list are not fetched before the task begins, but by the worker, if it wants them
        self._flight[self._perform.remote([self._shared], task.payload, files)] = task

    def _content(self, path: Path) -> Any:
        """A file's bytes; of weights, a reference to where they lie once for all tasks, under their digest."""
        if path.name != "weights.safetensors":
            return path.read_bytes()
        digest = self._digest(path, path.stat().st_mtime_ns)
        if digest not in self._models:
            self._models[digest] = self._ray.put(path.read_bytes())
        self._models[digest] = self._models.pop(digest)  # the latest used is the last
        for old in list(self._models)[:-KEPT]:
            del self._models[old]
        return self._models[digest]

    def _share(self) -> Shared:
        context, local = self._context, self._session.local
        return Shared(
            sources={name: self._carry(source) for name, source in context.sources.items()},
            device=context.device,
            architectures=context.architectures,
            versions=environment.versions(),
            commit=environment.git_commit(),
            progress=context.home.progress.absolute() if local else None,
            scratch=self._session.folder,
        )

    def _carry(self, source: Source) -> Carried:
        """A data set for nodes that may not have it: they ask for the copy only then."""
        copy = None
        if not self._session.local:
            try:
                data = source.load()
                if sum(map(len, (data.y_train, data.y_test))) * math.prod(data.info.shape) > CARRIED:
                    raise UserError("too large to be carried: every node must have it")
                copy = self._ray.put([t.numpy() for t in (data.x_train, data.y_train, data.x_test, data.y_test)])
            except UserError:
                copy = None  # not here; it may be there
        if isinstance(source, DataSource):
            source = replace(source, download=False)  # many processes must not fetch at once
        return Carried(source, source.info(), copy)

    def _receive(self, ref: Any) -> Done | None:
        """How a task ended; None if it is given again."""
        task = self._flight.pop(ref)
        errors = self._ray.exceptions
        try:
            reply: Reply = self._ray.get(ref)
        except errors.RayTaskError as error:  # not the job's: those are in the reply
            raise UserError(f"a node of the cluster cannot run this: {first_line(error.cause or error)}") from None
        except errors.RayError as error:  # what else there is: worker, node or memory lost
            return self._again(task, error)
        if reply.unfit:
            raise UserError(reply.unfit)
        try:
            unload(self._context.home, reply.changes)
        except OSError as error:
            return Done(task, None, describe(error))
        return Done(task, None, reply.error, reply.detail, reply.fault)

    def _again(self, task: Task, error: Exception) -> Done | None:
        self._tries[task.name] = self._tries.get(task.name, 0) + 1
        if self._tries[task.name] < TRIES:
            self._give(task)
            return None
        return Done(task, None, f"the worker process died {TRIES} times ({type(error).__name__})", str(error))


def _digest(path: Path, modified: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
