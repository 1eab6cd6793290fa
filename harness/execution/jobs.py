"""Jobs that a worker can run, and their context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ..datasets.registry import Dataset, DatasetInfo
from ..planning.specs import Cell, ModelSpec, Planting, Probe
from ..records.home import Home


class Source(Protocol):
    """Where a data set comes from: :class:`harness.datasets.registry.DataSource`, or a copy on another machine."""

    def info(self) -> DatasetInfo:
        """Its declaration."""
        ...

    def load(self) -> Dataset:
        """The data set; asked for by every task, so it is to be kept."""
        ...


@dataclass(frozen=True)
class Context:
    """What every task needs to know."""

    home: Home
    sources: Mapping[str, Source]
    device: str = "cpu"


@dataclass(frozen=True)
class Train:
    """Train a model."""

    spec: ModelSpec


@dataclass(frozen=True)
class Prepare:
    """Let a cell's attack look at training data once, for all cells that share that look."""

    cell: Cell


@dataclass(frozen=True)
class Craft:
    """Craft one shard of images on a source model, for all cells that share it."""

    cell: Cell
    shard: int


@dataclass(frozen=True)
class Judge:
    """Attack and judge one shard of a cell.

    Attributes:
        before: In a cascade, the keys of every cell before this one.
    """

    cell: Cell
    shard: int
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class Examine:
    """Measure on a model what its trust grade needs."""

    probe: Probe


@dataclass(frozen=True)
class Plant:
    """Plant adversarials in a model and see which the suite's attacks find."""

    planting: Planting


Job = Train | Prepare | Craft | Judge | Examine | Plant
