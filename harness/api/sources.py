"""Images and models that are handed over in Python, as a run knows them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .. import determinism, identity
from ..datasets.registry import ALL, DATASETS, Dataset, DatasetInfo, FileDataset, Split, load_dataset
from ..errors import UserError
from ..external.external import External, bare, digest
from ..planning.specs import ModelSpec
from ..records.files import write_record
from ..records.home import Home
from ..records.plans import model_name
from ..schema.models import Card
from ..trust.inspection import Inspection, fingerprint, inspect
from ..victims.adaptation import Remedy
from ..victims.victim import SURE, Victim
from .inputs import info_of


@dataclass(frozen=True, eq=False)
class Images(Dataset):
    """Images as they are given, floats, in their order, as the test part.

    Attributes:
        learned: Whose training images attacks prepare on; None: on the images themselves.
    """

    learned: Dataset | None = None

    @classmethod
    def of(cls, info: DatasetInfo, x: Tensor, y: Tensor, learned: Dataset | None) -> Images:
        """Images float32 (N, C, H, W) in [0, 1] and labels int64 (N,), as :mod:`.inputs` hands them out."""
        train = (x, y) if learned is None else (learned.x_train, learned.y_train)
        return cls(info, *train, x, y, learned)

    def __post_init__(self) -> None:
        """They have been looked at."""

    def to_float(self, images: Tensor) -> Tensor:
        """Floats as they are."""
        return images.clone() if images.is_floating_point() else super().to_float(images)

    def train_sample(self, n: int, rows: slice = ALL) -> tuple[Tensor, Split]:
        """As the data set has it whose training images they are."""
        return super().train_sample(n, rows) if self.learned is None else self.learned.train_sample(n, rows)

    @cached_property
    def _test_order(self) -> Tensor:
        return torch.arange(len(self.y_test))

    @cached_property
    def _train_order(self) -> Tensor:
        return torch.arange(len(self.y_train))


def published(data: Dataset) -> bool:
    """Whether a data set is one that is known by its name, with the very images that go by it.

    One that is named by a digest of its content is; so is one of the registry as it lies here.
    """
    name = data.info.name
    if isinstance(data, FileDataset) or name == data.digest_name(name.rpartition("@")[0]):
        return True
    if data.info != DATASETS.get(name):
        return False
    try:
        return load_dataset(name).sha256() == data.sha256()
    except UserError:  # it lies elsewhere, and nobody can tell
        return False


@dataclass(frozen=True, eq=False)
class Held:
    """A data set in memory, as the place that it comes from."""

    data: Dataset

    @property
    def name(self) -> str:
        """That of the data set."""
        return self.data.info.name

    def info(self) -> DatasetInfo:
        """Its declaration."""
        return self.data.info

    def load(self) -> Dataset:
        """The data set."""
        return self.data

    def missing(self) -> str:
        """Nothing ever is."""
        return ""


@dataclass(frozen=True)
class Model:
    """A model that was handed over and let in.

    Attributes:
        judged: The module as it is judged, behind its interface.
        info: Of the images that it was looked at with.
        found: What inspection says of it.
        behaviour: Digest of what it answers, by which a change is noticed.
    """

    spec: ModelSpec
    judged: nn.Module
    info: DatasetInfo
    found: Inspection
    behaviour: str

    def register(self, home: Home) -> None:
        """Write its card, which makes it count as a model that is there."""
        card = Card(
            **dict(model_name(self.spec, self.info)),
            sha256=self.behaviour,
            declaration=identity.canonical(self.spec),
            parameters=sum(parameter.numel() for parameter in self.judged.parameters()),
            reference={},
            remedy=str(self.found.remedy),
            inspection=self.found.facts,
        )
        write_record(home.model(self.spec.key) / "card.json", card)


def admitted(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    declared: DatasetInfo | None,
    *,
    device: torch.device,
    name: str,
    remedy: Remedy | None = None,
    batch: int | None = None,
) -> Model:
    """Look at a model as :mod:`harness.trust.admission` looks at one that is named.

    Its weights, and what it answers, are its identity: nobody sees its code.

    Args:
        model: What was handed over.
        x: Images, float32 (N, C, H, W) in [0, 1].
        y: Labels, int64 (N,).
        declared: What is known of the images; None: what can be seen of them.
        device: Where it will run.
        name: What to call it.
        remedy: How attacks are to see it; None finds out.
        batch: Images that it takes at once; None finds out.

    Raises:
        UserError: It is no model, or one that cannot be judged; not of the data set's images and classes.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    wanted = len(declared.classes) if declared is not None else None
    found = inspect(model, x, y, wanted, device, remedy=remedy, batch=batch)
    judged, info = found.interface.around(model), info_of(declared, x, found.classes)
    weights = digest(bare(model))
    try:
        behaviour = fingerprint(judged, info.shape, found.classes)
    except UserError:  # not on the CPU, or not of such images
        behaviour = weights
    behaviour = _answers(behaviour, judged, x, device)
    how: dict[str, Any] = {"remedy": found.remedy, "interface": found.interface}
    defense = External(weights=weights, program=behaviour[:16], **how)
    return Model(ModelSpec(dataset=info.name, architecture=name, defense=defense), judged, info, found, behaviour)


def _answers(known: str, model: nn.Module, x: Tensor, device: torch.device) -> str:
    """SHA-256 of what is known of a model, and of its logits for the images: code may treat these as no others.

    Raises:
        VictimError: A logit is not finite.
    """
    told = hashlib.sha256(known.encode())
    with determinism.isolated(0, device):
        victim = Victim(model, device=device)
        for part in x.split(SURE):  # type: ignore[no-untyped-call]
            told.update(victim.logits(part).float().cpu().contiguous().numpy().tobytes())
    return told.hexdigest()
