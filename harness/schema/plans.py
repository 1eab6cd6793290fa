"""Records of plans and of pending deliveries."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from .base import Document, Record
from .certificates import CertificateEntry
from .goals import UNTARGETED
from .models import ModelEntry
from .pairs import BatteryPair, PlannedPair


class ProbeEntry(Record):
    """A probe in a plan: its key, that of its model, and its norm."""

    probe: str
    model: str
    norm: str


class PlanRecord(Document):
    """``plans/KEY.json``.

    Attributes:
        budgets: Ascending eps values that each data set's norms are judged at, in pixel units of [0, 1].
        reference: The eps that defenses train at, by data set and norm.
        battery: All pairs of the suite, also those not asked for.
        left_out: Labels of attacks that were left out of the battery on purpose.
        plantings: Tests on planted adversarials, as the probes.
        goal: What the suite's attacks are after.
        notes: A line for each model whose battery has other attacks than the suite declares.
    """

    plan: str
    suite: str
    command: str
    budgets: dict[str, dict[str, tuple[float, ...]]]
    reference: dict[str, dict[str, float]]
    models: tuple[ModelEntry, ...]
    cells: tuple[PlannedPair, ...]
    battery: tuple[BatteryPair, ...]
    probes: tuple[ProbeEntry, ...]
    left_out: tuple[str, ...] = ()
    certificates: tuple[CertificateEntry, ...] = ()
    plantings: tuple[ProbeEntry, ...] = ()
    goal: str = UNTARGETED
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_budgets(self) -> Self:
        for pair in self.battery:
            if not self.budgets.get(pair.dataset, {}).get(pair.norm):
                raise ValueError(f"no budget of {pair.dataset} in {pair.norm}")
        return self


class Marker(Document):
    """``pending/KEY.json``: a result that is to be delivered to the tracking store.

    Attributes:
        plan: Key of the command that asked for it.
        begun: Whether its run may have been created already.
        again: Whether an earlier result may have been delivered, which it replaces.
    """

    plan: str
    cell: str
    begun: bool
    again: bool
