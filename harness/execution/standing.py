"""Which images of a shard a cascade still shows to an attack, given what came before it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from ..metrics.pairs import broken
from ..records.files import read_record
from ..records.home import Home
from ..records.results import shard_samples
from ..schema.certificates import CertificateFacts, CertificateRecord
from .jobs import Judge

Bools = npt.NDArray[np.bool_]


def standing(home: Home, job: Judge, index: npt.NDArray[np.int64]) -> Bools:
    """Whether each image of a shard is still worth an attack, bool (N,).

    Not where an earlier attack broke it at the cell's floor, nor where it provably stands at every eps that the cell
    serves and it has not fallen at. Below a ceiling neither where it stands at that larger eps after the whole battery
    there; unless something at a smaller eps broke an image of the shard that stood at the larger one: then the larger
    eps is not the stronger attack here, and every image that stands is shown.

    Args:
        home: Where the cells before this one have their results.
        job: The shard of the cell.
        index: Positions of the shard's images in the test set (N,).

    Raises:
        UserError: What came before is damaged.
    """
    cell = job.cell
    assert cell.floor is not None
    frames = {key: shard_samples(home.cell(key), job.shard) for key in job.before}

    def stands(eps: float, without: Collection[str] = ()) -> Bools:
        left = np.ones(len(index), bool)
        for key, frame in frames.items():
            if key not in without:
                left &= ~broken(frame, cell.threat.norm, eps)
        return left

    shown = stands(cell.floor)
    if cell.ceiling is not None:
        after_all, after_larger = stands(cell.ceiling), stands(cell.ceiling, job.below)
        if np.array_equal(after_all, after_larger):
            shown &= ~after_all
    if cell.screen is not None:
        proofs = [
            read_record(home.certificate(cell.screen.key, part), CertificateRecord, "the certificate").facts
            for part in cell.screen.covering(cell.shard_slice(job.shard))
        ]
        open_at = np.zeros(len(index), bool)
        for eps in cell.screen.grid if cell.threat.eps is None else (cell.threat.eps,):
            proved = [at for facts in proofs for at in _certified(facts, eps)]
            open_at |= stands(eps) & ~np.isin(index, proved)
        shown &= open_at
    return shown


def _certified(facts: CertificateFacts, eps: float) -> list[int]:
    """Positions in the test set of the images that provably stand at an eps."""
    level = facts.at(eps)
    flags = level.certified if level is not None else ()
    return [at for at, sure in zip(facts.index, flags, strict=False) if sure]
