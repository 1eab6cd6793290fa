"""Admission of users' models: load, inspect, refuse or register."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .. import identity
from ..datasets.registry import Dataset
from ..determinism import as_a_worker, full_float32, isolated
from ..errors import UserError
from ..external import external
from ..external.reference import parse
from ..planning.specs import ModelSpec
from ..records.files import write_record
from ..records.home import Home
from ..schema.models import Card
from ..victims.adaptation import Remedy
from ..victims.victim import OtherClasses
from . import inspection
from .inspection import LOOK

PLACED: Final = "for a user's own set, --classes FILE or --classes imagenet says which outputs its classes are"


@dataclass(frozen=True)
class AdmittedModel:
    """A model that was let in.

    Attributes:
        card: Facts for people, and the fingerprint by which a change is noticed.
        notes: Lines that its owner should read.
    """

    spec: ModelSpec
    card: Card
    notes: tuple[str, ...]

    @property
    def passes(self) -> int:
        """Passes of an image that looking at it took."""
        return self.card.inspection.passes if self.card.inspection is not None else 0

    def register(self, home: Home) -> None:
        """Write its card, which makes it count as a model that is there."""
        write_record(home.model(self.spec.key) / "card.json", self.card)


def admit(
    text: str,
    data: Dataset,
    *,
    called: str = "",
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    remedy: Remedy | None = None,
    stand_ins: Sequence[tuple[str, str]] = (),
    batch: int | None = None,
    device: str = "cpu",
    thorough: bool = True,
    fetched: Path,
    tracking_uri: str | None = None,
) -> AdmittedModel:
    """Load a model, look at it, and find out how attacks must see it.

    See :func:`harness.external.reference.parse` for what names it, and :func:`harness.trust.inspection.inspect` for the
    rest. ``called`` is what people know it by. Per channel, ``mean`` is subtracted and ``std`` divided by before the
    model sees an image.

    Raises:
        UserError: It cannot be loaded, or cannot be judged; one line says why.
    """
    reference = parse(text, mean=tuple(mean), std=tuple(std), fetched=fetched, tracking_uri=tracking_uri)
    with as_a_worker(device), isolated(0, device):
        model = external.load(reference)
        full_float32()  # whatever its code has just asked for
        _, (x, y) = data.test_sample(min(LOOK, len(data.y_test)))
        classes = len(data.info.classes)
        try:
            found = inspection.inspect(
                model, x, y, classes, device, remedy=remedy, stand_ins=stand_ins, batch=batch, thorough=thorough
            )
        except OtherClasses as error:
            raise UserError(f"{error}: {PLACED}") from None
        described = external.describe_model(model, reference, found.remedy, found.interface)
        defense = dataclasses.replace(described, called=called)
        behaviour = inspection.fingerprint(found.interface.around(model), data.info.shape, classes)
    spec = ModelSpec(dataset=data.info.name, architecture=reference.name, defense=defense, seed=0)
    card = Card(
        dataset=spec.dataset,
        architecture=spec.architecture,
        defense=defense.label(data.info),
        seed=spec.seed,
        parameters=sum(p.numel() for p in model.parameters()),
        reference=reference.to_json(),
        remedy=str(found.remedy),
        inspection=found.facts,
        sha256=behaviour,
        declaration=identity.canonical(spec),
    )
    notes = [*external.remarks(model, data.info.shape), *found.notes]
    return AdmittedModel(spec, card, tuple(f"{reference.text}: {note}" for note in notes))
