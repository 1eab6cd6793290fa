"""Which images of a shard a cascade still shows to an attack, given what came before it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from .. import identity
from ..metrics.pairs import broken, lost_at, stands
from ..planning.cascade import SAMPLE
from ..planning.specs import Cell
from ..records.boards import planted_facts, probe_facts
from ..records.files import read_record
from ..records.home import Home
from ..records.results import shard_facts, shard_samples
from ..schema.certificates import CertificateFacts, CertificateRecord
from ..schema.eps import limit
from ..trust.probe_checks import suspicious
from .jobs import Judge, Sampling

Bools = npt.NDArray[np.bool_]
Frames = Mapping[str, pd.DataFrame]
"""Samples of one shard in several cells, by their keys."""


class Shown(NamedTuple):
    """Images of a shard that an attack meets, bool (N,), and how many it does not for having met a tenth alone."""

    images: Bools
    withheld: int = 0


def before(home: Home, job: Judge) -> Frames:
    """What the cells before one judged in its shard.

    Raises:
        UserError: It is damaged.
    """
    return {key: shard_samples(home.cell(key), job.shard) for key in job.before}


def shown(home: Home, job: Judge, frames: Frames, index: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> Shown:
    """The images of a shard that are still worth an attack, and in a sampled cascade the share of them.

    Not worth one is what an earlier attack broke at the cell's floor, and what provably stands at every eps that the
    cell serves and has not fallen at. Below a ceiling neither what stands at that larger eps after the whole battery
    there; unless something at a smaller eps broke an image of the shard that stood at the larger one: then the larger
    eps is not the stronger attack here, and every image that stands is shown.

    Args:
        home: Where certificates lie, and what decides about the rest.
        job: The shard of the cell.
        frames: See :func:`before`.
        index: Positions of the shard's images in the test set (N,).
        labels: Their labels (N,).

    Raises:
        UserError: What is read is damaged.
    """
    cell = job.cell
    left = _standing(home, job, index, frames)
    if cell.share == "tenth":
        return Shown(_tenth(cell, job.shard, left, labels))
    if cell.share == "rest":
        assert job.sampling is not None
        left &= ~frames[cell.twin]["attacked"].to_numpy(bool)
        if not _opened(home, job.sampling):
            return Shown(np.zeros_like(left), int(left.sum()))
    return Shown(left)


def fallen(job: Judge, frames: Frames, samples: pd.DataFrame) -> int:
    """Images of a tenth that fell at an eps at which they had stood before, by the samples of its shard."""
    cell = job.cell
    assert job.sampling is not None
    lost = np.zeros(len(samples), bool)
    reach = _reach(cell, frames, len(samples))
    for eps in job.sampling.grid if cell.threat.eps is None else (cell.threat.eps,):
        lost |= broken(samples, cell.threat.norm, eps) & (reach > limit(eps))
    return int(lost.sum())


def _reach(cell: Cell, frames: Frames, n: int, without: Collection[str] = ()) -> npt.NDArray[np.float64]:
    """How near to each of n images some cells, all but those without, broke it (N,); infinite where none did."""
    found = np.full(n, math.inf)
    for key, frame in frames.items():
        if key not in without:
            found = np.minimum(found, lost_at(frame, cell.threat.norm, stands(frame)))
    return found


def _standing(home: Home, job: Judge, index: npt.NDArray[np.int64], frames: Frames) -> Bools:
    cell, n = job.cell, len(index)
    assert cell.floor is not None
    reach = _reach(cell, frames, n)
    left = reach > limit(cell.floor)
    if cell.ceiling is not None:
        after_all = reach > limit(cell.ceiling)
        if np.array_equal(after_all, _reach(cell, frames, n, job.below) > limit(cell.ceiling)):
            left &= ~after_all
    if cell.screen is not None:
        proofs = [
            read_record(home.certificate(cell.screen.key, part), CertificateRecord, "the certificate").facts
            for part in cell.screen.covering(cell.shard_slice(job.shard))
        ]
        open_at = np.zeros(n, bool)
        for eps in cell.screen.grid if cell.threat.eps is None else (cell.threat.eps,):
            proved = [at for facts in proofs for at in _certified(facts, eps)]
            open_at |= (reach > limit(eps)) & ~np.isin(index, proved)
        left &= open_at
    return left


def _tenth(cell: Cell, shard: int, left: Bools, labels: npt.NDArray[np.int64]) -> Bools:
    """One in :data:`SAMPLE` of what is left, at least one: the first of a random order of the shard.

    Any stretch of that order holds every class in its proportion. It depends on model and shard alone, so that of two
    tenths, of more images and of fewer, one holds all that the other has of what both were taken from.
    """
    rng = np.random.default_rng(identity.derive_seed("tenth", cell.victim.nameless, shard))
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, first, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    turn = (np.arange(len(labels)) - np.repeat(first - rng.random(len(first)), counts)) / np.repeat(counts, counts)
    order = by_class[np.argsort(turn, kind="stable")]
    standing = order[left[order]]
    taken = np.zeros_like(left)
    taken[standing[: math.ceil(len(standing) / SAMPLE)]] = True
    return taken


def _opened(home: Home, sampling: Sampling) -> bool:
    """Whether attacks that met a tenth are to meet every image.

    They are if one broke an image of its tenth, in any shard; if what is known of the model's gradients is suspicious;
    and if nothing is known of them.
    """
    if any(shard_facts(home.cell(key), part).fallen for key, parts in sampling.tenths.items() for part in range(parts)):
        return True
    facts = probe_facts(home, sampling.probe) if sampling.probe is not None else None
    if facts is None:
        return True
    planted = planted_facts(home, sampling.planting) if sampling.planting is not None else None
    if planted is None and sampling.planting is not None:
        return True
    return suspicious(facts.model_copy(update={"planted": planted}))


def _certified(facts: CertificateFacts, eps: float) -> list[int]:
    """Positions in the test set of the images that provably stand at an eps."""
    level = facts.at(eps)
    flags = level.certified if level is not None else ()
    return [at for at, sure in zip(facts.index, flags, strict=False) if sure]
