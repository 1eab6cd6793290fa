"""Somebody's images as a pair of a board: its result, its witnesses, and the plan that asks for it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from .. import identity
from ..judging.referee import Verdict
from ..judging.shard import GALLERY, ShardOutcome
from ..metrics.pairs import DISTANCES, FLAGS, SAMPLE_COLUMNS, Board, reference
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
from .judging import AT_ONCE

VERSION: Final = 1


@dataclass(frozen=True)
class Submission:
    """A submission as a pair of one board.

    Attributes:
        norm: Which the pair is listed under.
        by: Who handed it in.
        source: Where it is from.
        places: Positions (M,) of the images in the test set.
        x: Clean images (M, C, H, W).
        y: Their labels (M,).
        verdict: The referee's, of all M.
        near: Which of them count on this board, bool (M,).
    """

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
        columns: dict[str, Any] = {
            name: judged[name] for name in ("index", "label", "target", "clean_pred", "clean_correct")
        }
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
