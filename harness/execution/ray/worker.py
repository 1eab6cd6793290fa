"""A Ray task: run one job in a temporary home that holds the files it needs."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from ... import environment
from ...datasets.registry import Dataset, DatasetInfo
from ...errors import UserError
from ...records.home import Home
from ...user_code.plugins import Architecture
from ..jobs import Context, Job, Source
from ..process_pool import outcome
from ..worker import Worker, worker
from .session import load
from .transfer import Changes, Hold

NODES_GPUS: Final = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
"""Environment in which a worker sees all GPUs of its node, of which each task is told its own: torch looks once, so
that a worker which Ray shows another one for another task would go on with the first."""


@dataclass(frozen=True)
class Carried:
    """A data set on whatever machine: read there if it is there, else as the driver has it.

    Attributes:
        copy: Reference to its arrays in the object store; None if every node sees the driver's files.
    """

    source: Source
    declared: DatasetInfo
    copy: Any

    @property
    def name(self) -> str:
        """How it is named on the command line."""
        return self.source.name

    def info(self) -> DatasetInfo:
        """Its declaration: the driver's."""
        return self.declared

    def missing(self) -> str:
        """Nothing: it is here, or is fetched."""
        return ""

    def load(self) -> Dataset:
        """The data set, read once a process.

        Raises:
            UserError: It is neither here nor with the driver.
        """
        return self._data

    @cached_property
    def _data(self) -> Dataset:
        try:
            if self.source.info() == self.declared:  # else a user's folder of the same name holds other images
                return self.source.load()
        except (UserError, OSError):
            if self.copy is None:
                raise
        if self.copy is None:
            raise UserError(f"the data set {self.declared.name} is another one on {platform.node()}")
        # copied: what the store hands out is read-only
        arrays = [torch.from_numpy(np.array(array)) for array in load().get(self.copy)]
        return Dataset(self.declared, *arrays)


@dataclass(frozen=True)
class Shared:
    """What every task needs to know.

    Attributes:
        architectures: As in :class:`harness.execution.jobs.Context`.
        versions: Of the driver's packages: with others the numbers would be others.
        progress: Folder that workers may write their progress to; None if they do not share the driver's disk.
        scratch: Folder for the files of a task; None for the node's own.
    """

    sources: Mapping[str, Carried]
    device: str
    versions: Mapping[str, str]
    commit: str
    progress: Path | None
    scratch: Path | None
    architectures: tuple[Architecture, ...] = ()


@dataclass(frozen=True)
class Reply:
    """What came of a task.

    Attributes:
        changes: Files it left, also if it failed.
        error: None, or what the job raised, in one line.
        fault: Whether the user's input is to blame.
        unfit: Why this node cannot be relied on; "" if it can.
    """

    changes: Changes = field(default_factory=list)
    error: str | None = None
    detail: str = ""
    fault: bool = False
    unfit: str = ""


def perform(shared: list[Any], job: Job, files: Mapping[str, Any]) -> Reply:
    """Do a job, with the files it needs by path below the home: bytes, or references to bytes.

    The reference to the :class:`Shared` comes in a list: Ray would resolve it.
    """
    known, hand, unfit = _crew(shared[0], _gpu())
    if unfit:
        return Reply(unfit=unfit)
    with tempfile.TemporaryDirectory(prefix="gauntlet-", dir=known.scratch) as folder:
        home = Home(Path(folder))
        hold = Hold(home, {name: _bytes(content) for name, content in files.items()})
        if known.progress is not None:
            known.progress.mkdir(parents=True, exist_ok=True)
            home.progress.symlink_to(known.progress)
        hand.move(home)
        _, error, detail, fault = outcome(hand.run, job)
        return Reply(hold.changes(), error, detail, fault)


def _bytes(content: Any) -> bytes:
    return content if isinstance(content, bytes) else bytes(load().get(content))


def _gpu() -> int | None:
    """Number, for torch, of the first GPU that Ray lends this task; None if it lends none."""
    lent = load().get_gpu_ids()
    if not lent:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")  # the node's: see NODES_GPUS
    return visible.split(",").index(str(lent[0])) if visible else int(lent[0])


_crews: dict[tuple[Any, int | None], tuple[Shared, Worker, str]] = {}
"""The one of the last task: models and data stay in memory until another GPU is lent."""


def _crew(shared: Any, gpu: int | None) -> tuple[Shared, Worker, str]:
    if (shared, gpu) not in _crews:
        _crews.clear()
        torch.cuda.empty_cache()  # the GPU lent before is somebody else's now
        known: Shared = load().get(shared)
        device = known.device if gpu is None else f"{known.device}:{gpu}"
        if gpu is not None and torch.cuda.is_available():
            torch.cuda.set_device(gpu)  # a user's code may know "the" GPU only
        _crews[shared, gpu] = (
            known,
            worker(Context(Home(Path()), known.sources, device, known.architectures)),
            _unfit(known),
        )
    return _crews[shared, gpu]


def _unfit(known: Shared) -> str:
    """Why numbers from here would not be the driver's."""
    mine = {**environment.versions(), "commit": environment.git_commit()}
    theirs = {**known.versions, "commit": known.commit}
    for name, version in theirs.items():
        if mine.get(name) != version:
            return (
                f"node {platform.node()} has {name} {mine.get(name) or 'unknown'}, the driver has "
                f"{version or 'unknown'}: install the same everywhere"
            )
    return ""
