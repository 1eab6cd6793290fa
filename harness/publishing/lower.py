"""Images of somebody's that lower a number: judged by the referee, attributed, and counted like an attack's.

A submission is a pair of its own in the board's battery, whose attack is who handed it in. Worst cases are minima, so
it can lower them and do nothing else. Images that break nothing leave no trace but a line.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from .. import identity
from ..datasets.registry import Dataset
from ..determinism import full_float32
from ..errors import UserError
from ..judging.referee import Verdict, judge
from ..judging.shard import GALLERY, ShardOutcome
from ..metrics.pairs import DISTANCES, FLAGS, SAMPLE_COLUMNS, Board, limit, reference, worst_case
from ..planning.specs import ModelSpec
from ..records import witnesses
from ..records.checkpoints import card
from ..records.home import Home
from ..records.plans import write_plan
from ..records.provenance import made_of, origin
from ..records.results import pair_from_outcomes, write_result
from ..schema.models import ModelEntry, ModelName
from ..schema.pairs import BatteryPair, Declared, PlannedPair, ShardFacts
from ..schema.plans import PlanRecord
from ..threat import BOX_TOLERANCE, Threat
from .images import Submitted
from .judging import AT_ONCE, referee

VERSION: Final = 1


@dataclass
class Lowered:
    """What came of a submission.

    Attributes:
        refused: Lines, one an image that did nothing.
        counted: Images that break the model within a budget.
        pairs: Plan and cell of each pair that was made.
        moved: Suite, norm and eps with the accuracy before and after, of those that fell.
    """

    refused: list[str] = field(default_factory=list)
    counted: int = 0
    pairs: list[tuple[str, str]] = field(default_factory=list)
    moved: list[tuple[str, str, float, float, float]] = field(default_factory=list)


def lower(
    home: Home,
    boards: Sequence[Board],
    plans: Sequence[PlanRecord],
    spec: ModelSpec,
    entry: ModelEntry,
    data: Dataset,
    given: Sequence[Submitted],
    *,
    by: str,
    source: str = "",
    device: str = "cpu",
    command: str = "",
) -> Lowered:
    """Judge images and let those that break a model count. Only while no other process works on the home.

    Args:
        home: Whose numbers fall.
        boards: What it holds.
        plans: Its plans.
        spec: The model.
        entry: What the plans know of it.
        data: Its data set.
        given: The images.
        by: Who handed them in.
        source: Where they are from, in words.
        device: Where the model is asked.
        command: For the record.

    Raises:
        UserError: The model cannot be loaded, or nothing of it was judged.
    """
    full_float32()
    done = Lowered()
    mine = [board for board in boards if entry.model in board.by_model and entry.dataset in board.budgets]
    if not mine:
        raise UserError(f"nothing of {entry.architecture} {entry.defense} was judged: there is no number to lower")
    n = max(reference(board.by_model[entry.model]).n for board in mine)
    index, (x, y) = data.test_sample(n)
    rows = _valid(given, index, x, done)
    if not rows:
        return done
    victim = referee(home, spec, data.info, device)
    at = torch.tensor([row for row, _ in rows])
    images = torch.stack([image for _, image in rows])
    x, y = x[at], y[at]
    parts = [
        judge(victim, some.to(device), labels.to(device), adv.to(device), Threat("linf"))
        for some, labels, adv in zip(*(torch.split(each, AT_ONCE) for each in (x, y, images)), strict=True)
    ]
    verdict = _joined(parts)
    places = index[at].tolist()
    for place, good, wrong in zip(places, verdict.clean_correct.tolist(), verdict.adversarial.tolist(), strict=True):
        if not good:
            done.refused.append(f"image {place}: the model gets the clean image wrong, which counts as lost already")
        elif not wrong:
            done.refused.append(f"image {place}: the model gives it the true label")
    broken = (verdict.adversarial & verdict.clean_correct).cpu().numpy()
    sizes = {name: verdict.distances[name].cpu().numpy() for name in DISTANCES}
    within: npt.NDArray[np.bool_] = np.zeros(len(rows), bool)
    for board in mine:
        grids = {norm: max(grid) for norm, grid in board.budgets[entry.dataset].items()}
        inside = {norm: broken & (sizes[norm] <= limit(eps)) for norm, eps in grids.items()}
        near = np.logical_or.reduce(list(inside.values()))
        pairs = board.by_model[entry.model]
        judged = reference(pairs).columns
        near &= np.isin(index[at].numpy(), judged["index"][judged["clean_correct"]])
        within |= near
        if not near.any():
            continue
        norm = max(inside, key=lambda name: int((inside[name] & near).sum()))
        made = _Pair(board, entry, norm, by, source, command, index[at].numpy(), x, y, verdict, near)
        plan, cell = made.write(home, spec, plans)
        done.pairs.append((plan, cell))
    done.counted = int(within.sum())
    for at_row in np.flatnonzero(broken & ~within):
        far = ", ".join(f"{norm} {sizes[norm][at_row]:.4g}" for norm in mine[0].budgets[entry.dataset])
        done.refused.append(f"image {places[at_row]}: it lies outside every budget ({far})")
    return done


def _joined(parts: Sequence[Verdict]) -> Verdict:
    """Verdicts of one batch after another as one, on the CPU."""
    fields = [each.name for each in dataclasses.fields(Verdict) if each.name != "distances"]
    whole: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]).cpu() for name in fields}
    distances = {name: torch.cat([part.distances[name] for part in parts]).cpu() for name in parts[0].distances}
    return Verdict(**whole, distances=distances)


def _valid(given: Sequence[Submitted], index: Tensor, x: Tensor, done: Lowered) -> list[tuple[int, Tensor]]:
    """Rows of those images that can be judged, with the images; a line for each of the others."""
    position = {place: row for row, place in enumerate(index.tolist())}
    found: dict[int, Tensor] = {}
    for place, image in given:
        row = position.get(place)
        said = ""
        if row is None:
            said = f"it is none of the {len(index)} images that were judged"
        elif tuple(image.shape) != tuple(x.shape[1:]):
            said = f"its shape is {tuple(image.shape)}, and has to be {tuple(x.shape[1:])}"
        elif image.is_complex():
            said = f"it holds {image.dtype}"
        elif row in found:
            said = "it is given twice; the first counts"
        else:
            plain = image.to(torch.float32) / 255 if image.dtype == torch.uint8 else image.to(torch.float32)
            if not torch.isfinite(plain).all():
                said = "some value is NaN or infinite"
            elif float(plain.min()) < -BOX_TOLERANCE or float(plain.max()) > 1 + BOX_TOLERANCE:
                said = f"its values go from {float(plain.min()):.4g} to {float(plain.max()):.4g}, outside [0, 1]"
            elif torch.equal(plain, x[row]):
                said = "it is the clean image"
            else:
                found[row] = plain
        if said:
            done.refused.append(f"image {place}: {said}")
    return list(found.items())


@dataclass(frozen=True)
class _Pair:
    """A submission as a pair of one board."""

    board: Board
    entry: ModelEntry
    norm: str
    by: str
    source: str
    command: str
    places: npt.NDArray[Any]
    x: Tensor
    y: Tensor
    verdict: Verdict
    near: npt.NDArray[np.bool_]

    @property
    def _digest(self) -> str:
        told = hashlib.sha256(self.places[self.near].astype("<i8").tobytes())
        told.update(self._judged.numpy().astype("<f4").tobytes())
        return told.hexdigest()

    @property
    def _judged(self) -> Tensor:
        return self.verdict.images.cpu()[torch.from_numpy(self.near)]

    def write(self, home: Home, spec: ModelSpec, plans: Sequence[PlanRecord]) -> tuple[str, str]:
        """Write result, witnesses and plan; keys of plan and cell."""
        judged = reference(self.board.by_model[self.entry.model])
        digest = self._digest
        declaration = {
            "is": "submission",
            "version": VERSION,
            "by": self.by,
            "source": self.source,
            "images": digest,
            "model": self.entry.model,
            "norm": self.norm,
            "n": judged.n,
        }
        cell = identity.key_of(declaration)
        pair = PlannedPair(
            **dict(ModelName.of(self.entry)),
            cell=cell,
            model=self.entry.model,
            n=judged.n,
            attack=f"submitted:{self.by} {digest[:8]}",
            norm=self.norm,  # type: ignore[arg-type]
            eps=None,
            source="",
            submitted=True,
            toolkit="submitted",
            access="none",
            kind="minimal",
            family="submitted",
            batch=judged.result.batch,
            levels=judged.result.levels,
            class_names=judged.result.class_names,
            command=self.command,
        )
        made = made_of(home, spec)
        declared = Declared(**dict(pair), **dict(made), **dict(origin()), declaration=declaration)
        outcome = ShardOutcome(self._samples(judged.columns), ShardFacts(seconds=0.0, forwards=0, backwards=0), {})
        found = pair_from_outcomes(declared, [outcome])
        rows = self._witnesses()
        how = {"model": self.entry.model, "weights": card(home, self.entry.model).sha256, "part": "test"}
        witnesses.keep(home, cell, rows, self.board.budgets[self.entry.dataset], **how)
        write_result(home.cell(cell), found.result, found.samples, self._gallery())
        newest = next(plan for plan in reversed(plans) if plan.suite == self.board.suite)
        budgets = {norm: tuple(grid) for norm, grid in self.board.budgets[self.entry.dataset].items()}
        record = PlanRecord(
            plan=identity.key_of("submission", self.board.suite, cell),
            suite=self.board.suite,
            command=self.command,
            budgets={self.entry.dataset: budgets},
            reference=newest.reference,
            models=(self.entry,),
            cells=(pair,),
            battery=(BatteryPair.model_validate(pair.model_dump()),),
            probes=(),
        )
        write_plan(home, record)
        return record.plan, cell

    def _samples(self, judged: Mapping[str, npt.NDArray[Any]]) -> pd.DataFrame:
        n = len(judged["index"])
        row = {place: at for at, place in enumerate(judged["index"].tolist())}
        at = np.array([row[place] for place in self.places[self.near].tolist()], np.int64)

        def spread(values: Tensor, fill: Any, kind: Any) -> npt.NDArray[Any]:
            out = np.full(n, fill, dtype=kind)
            out[at] = values.cpu().numpy()[self.near]
            return out

        there = np.zeros(n, bool)
        there[at] = True
        columns: dict[str, Any] = {name: judged[name] for name in ("index", "label", "clean_pred", "clean_correct")}
        columns |= {"attacked": there, "adversarial": there}
        columns["adv_pred"] = spread(self.verdict.adv_pred, -1, np.int64)
        columns["wrong_share"] = spread(self.verdict.wrong_share, np.nan, np.float32)
        columns["survives_rounding"] = spread(self.verdict.survives_rounding, False, bool)
        columns |= {flag: np.zeros(n, bool) for flag in FLAGS}
        columns |= {name: spread(self.verdict.distances[name], np.nan, np.float64) for name in DISTANCES}
        columns["shard"] = np.zeros(n, np.int32)
        return pd.DataFrame(columns)[list(SAMPLE_COLUMNS)]

    def _witnesses(self) -> witnesses.Rows:
        rows: witnesses.Rows = {"index": self.places[self.near], "place": np.flatnonzero(self.near)}
        rows["batch"] = np.minimum(AT_ONCE, len(self.near) - rows["place"] // AT_ONCE * AT_ONCE)
        rows["place"] = rows["place"] % AT_ONCE
        rows["adv_pred"] = self.verdict.adv_pred.cpu().numpy()[self.near]
        rows |= {name: self.verdict.distances[name].cpu().numpy()[self.near] for name in DISTANCES}
        rows["x_adv"] = self._judged.numpy()
        return rows

    def _gallery(self) -> dict[str, npt.NDArray[Any]]:
        shown = np.flatnonzero(self.near)[:GALLERY]
        labels = self.y.cpu().numpy()[shown]
        return {
            "index": self.places[shown],
            "x": np.ascontiguousarray(self.x.cpu().numpy()[shown]),
            "x_adv": np.ascontiguousarray(self.verdict.images.cpu().numpy()[shown]),
            "label": labels,
            "clean_pred": labels,
            "adv_pred": self.verdict.adv_pred.cpu().numpy()[shown],
        }


def moved(before: Sequence[Board], after: Sequence[Board], model: str) -> list[tuple[str, str, float, float, float]]:
    """Suite, norm, eps, and a model's worst case before and after, where it is another."""
    found = []
    for old, new in zip(before, after, strict=True):
        if model not in old.by_model:
            continue
        dataset = new.by_model[model][0].result.dataset
        for norm, grid in new.budgets[dataset].items():
            for eps in grid:
                was, now = (worst_case(board.by_model[model], norm, eps).accuracy for board in (old, new))
                if was != now:
                    found.append((new.suite, norm, eps, was, now))
    return found
