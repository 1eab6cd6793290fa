"""The referee asked again about images that are there, by no attack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..datasets.registry import DatasetInfo
from ..errors import UserError
from ..judging.referee import judge
from ..judging.shard import clean_labels
from ..metrics.pairs import DISTANCES
from ..planning.specs import ModelSpec
from ..records.checkpoints import load_model
from ..records.home import Home
from ..records.results import opened
from ..records.witnesses import Rows
from ..threat import Threat
from ..victims.victim import Victim

LARGEST: Final = 2**31
"""Bytes of a batch that is made as a record says."""

AT_ONCE: Final = 128
"""Images that are judged at once; where that leads to another label than the run's, as many as there."""


def referee(home: Home, spec: ModelSpec, info: DatasetInfo, device: str) -> Victim:
    """A model as the referee of a run sees it.

    Raises:
        UserError: Its weights are missing, damaged, or of another network than the one that is declared.
    """
    if spec.defense.trainable:
        _check_size(home, spec, info)
    model = load_model(home, spec, info)
    return Victim(model, classes=len(info.classes), device=device, own=True, votes=spec.defense.remedy.calls)


def _check_size(home: Home, spec: ModelSpec, info: DatasetInfo) -> None:
    """Look at the sizes that are declared before memory is taken for them: a name may stand for any number of units.

    Raises:
        UserError: The weights have others.
    """
    for part in spec.parents:
        _check_size(home, part, info)
    path = home.model(spec.key) / "weights.safetensors"
    made = _sketch(spec, info)
    if made is None or not path.exists():
        return
    with opened(path) as file:
        there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if {name: tuple(value.shape) for name, value in made.state_dict().items()} != there:
        raise UserError(f"{path} does not fit its declaration ({spec.architecture})")


def _sketch(spec: ModelSpec, info: DatasetInfo) -> nn.Module | None:
    """A model without memory behind it; None where it cannot be made so."""
    if spec.front is not None or not spec.defense.trainable:
        return None
    base = _sketch(spec.base, info) if spec.base is not None else None
    if spec.base is not None and base is None:
        return None
    try:
        with torch.device("meta"):
            return spec.defense.build(spec.architecture, info, base)
    except (RuntimeError, NotImplementedError):  # it computes while it is made
        return None


@dataclass
class Asked:
    """A model that is asked, and how often.

    Attributes:
        images: Images that it was asked about.
    """

    victim: Victim
    images: int = 0
    _clean: dict[tuple[int, int], npt.NDArray[np.int64]] = field(default_factory=dict)

    def clean(self, x: Tensor, y: Tensor, batch: int) -> npt.NDArray[np.int64]:
        """Labels of clean images (N, C, H, W), asked in the batches of a run."""
        key = (len(x), batch)
        if key not in self._clean:
            parts = []
            for some, labels in zip(x.split(batch), y.split(batch), strict=True):  # type: ignore[no-untyped-call]
                here = some.to(self.victim.device), labels.to(self.victim.device)
                parts.append(clean_labels(self.victim, *here).labels.cpu().numpy())
            self.images += len(x) * (1 if self.victim.votes is None else 2 * self.victim.votes)
            self._clean[key] = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        return self._clean[key]

    def judged(self, rows: Rows, x: Tensor, y: Tensor) -> Rows:
        """What the referee says of witnesses: ``adv_pred`` and distances, of those it does not agree to -1 and NaN.

        Args:
            rows: The witnesses (M).
            x: Their clean images (M, C, H, W).
            y: Their labels (M,).
        """
        n = len(y)
        found: Rows = {"adv_pred": np.full(n, -1, np.int64)}
        found |= {name: np.full(n, np.nan) for name in DISTANCES}
        images = torch.from_numpy(np.array(rows["x_adv"]))
        if self.victim.votes is None:  # of one that draws the draws depend on the batch
            for start in range(0, n, AT_ONCE):
                some = np.arange(start, min(start + AT_ONCE, n))
                self._ask(found, some, images[some], x[some], y[some], np.arange(len(some)))
        left = np.flatnonzero(found["adv_pred"] != rows["adv_pred"])
        most = LARGEST // max(1, images[:1].nbytes)
        for some, batch in _together(left, rows["batch"], rows["place"], most):
            fill = torch.zeros(batch, dtype=torch.int64).fill_(int(some[0]))
            fill[rows["place"][some]] = torch.from_numpy(some)
            self._ask(found, some, images[fill], x[fill], y[fill], rows["place"][some])
        return found

    def _ask(
        self, found: Rows, some: npt.NDArray[np.int64], images: Tensor, x: Tensor, y: Tensor, at: npt.NDArray[np.int64]
    ) -> None:
        device = self.victim.device
        x, y = x.to(device), y.to(device)
        # what the clean images are labelled was asked before
        verdict = judge(self.victim, x, y, images.to(device), Threat("linf"), clean_pred=y)
        self.images += 2 * len(y) * (self.victim.votes or 1)
        good = verdict.adversarial.cpu().numpy()[at]
        found["adv_pred"][some] = np.where(good, verdict.adv_pred.cpu().numpy()[at], -1)
        for name in DISTANCES:
            found[name][some] = np.where(good, verdict.distances[name].cpu().numpy()[at], np.nan)


def _together(
    left: npt.NDArray[np.int64], batch: npt.NDArray[np.int64], place: npt.NDArray[np.int64], most: int
) -> Iterator[tuple[npt.NDArray[np.int64], int]]:
    """Rows that can be judged in one batch of a run: of one size, ``most`` at most, at different places."""
    bins: dict[int, list[dict[int, int]]] = {}
    for row in left.tolist():
        size, at = int(batch[row]), int(place[row])
        if not 0 <= at < size <= most:
            continue
        known: Sequence[dict[int, int]] = bins.setdefault(size, [])
        free = next((each for each in known if at not in each), None)
        if free is None:
            bins[size].append(free := {})
        free[at] = row
    for size, each in bins.items():
        for taken in each:
            yield np.array(sorted(taken.values()), np.int64), size
