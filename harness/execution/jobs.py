"""Jobs that a worker can run, and their context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn

from ..datasets.registry import Dataset, DatasetInfo
from ..planning.specs import Cell, Certification, ModelSpec, Planting, Probe
from ..records.home import Home
from ..user_code.plugins import Architecture, architectures


class Source(Protocol):
    """Where a data set comes from: :class:`harness.datasets.registry.DataSource`, a plug-in, another machine's copy."""

    @property
    def name(self) -> str:
        """How it is named on the command line."""
        ...

    def info(self) -> DatasetInfo:
        """Its declaration."""
        ...

    def load(self) -> Dataset:
        """The data set; asked for by every task, so it is to be kept."""
        ...

    def missing(self) -> str:
        """Why it cannot be read, as far as files that are not there tell; "" if nothing does."""
        ...


@dataclass(frozen=True)
class Context:
    """What every task needs to know.

    Attributes:
        architectures: Networks of users' files and packages, by which models are built.
        models: Models that were handed over, by key, as they are judged; others are in the home.
        keep: Whether judging returns the adversarial images that count.
    """

    home: Home
    sources: Mapping[str, Source]
    device: str = "cpu"
    architectures: tuple[Architecture, ...] = field(default_factory=architectures)
    models: Mapping[str, nn.Module] = field(default_factory=dict)
    keep: bool = False


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
class Sampling:
    """What decides whether a cell meets the rest.

    Attributes:
        grid: Values of eps at which images of a tenth count, ascending.
        tenths: The cells before it that met a tenth in the same norm, by key, with the number of their shards.
        probe: Key of the model's probe in that norm; None if it has none.
        planting: Key of its planting, likewise.
    """

    grid: tuple[float, ...]
    tenths: Mapping[str, int]
    probe: str | None
    planting: str | None


@dataclass(frozen=True)
class Judge:
    """Attack and judge one shard of a cell.

    Attributes:
        before: In a cascade, the keys of every cell before this one.
        below: Those of them at an eps of the same norm below the cell's ceiling.
        sampling: In a sampled cascade, of a cell that meets a share.
        sources: Models that images of the cells before it are crafted on.
    """

    cell: Cell
    shard: int
    before: tuple[str, ...] = ()
    below: tuple[str, ...] = ()
    sampling: Sampling | None = None
    sources: tuple[ModelSpec, ...] = ()


@dataclass(frozen=True)
class Examine:
    """Measure on a model what its trust grade needs."""

    probe: Probe


@dataclass(frozen=True)
class Certify:
    """Prove what can be proved of one shard of a model's images.

    Attributes:
        certifications: Of one model, in several norms.
    """

    certifications: tuple[Certification, ...]
    shard: int


@dataclass(frozen=True)
class Plant:
    """Plant adversarials in a model and see which the suite's attacks find."""

    planting: Planting


Job = Train | Prepare | Craft | Judge | Examine | Certify | Plant
