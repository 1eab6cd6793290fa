"""Accuracy between two bounds: what is proved to stand from below, what no attack broke from above.

An image of which it is proved that none within eps is misclassified, and that an attack broke within eps, contradicts
the proof or the judgement: a bug of ours, whichever it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..schema.certificates import CertificateFacts
from ..schema.eps import limit
from .pairs import Pair, reach


@dataclass(frozen=True)
class Witness:
    """An image that is certified and was broken.

    Attributes:
        index: Its position in the test set.
        margin: What the certificate says is left.
        attack: Label of the pair that broke it, with the norm and eps it was asked for.
        cell: Key of that pair.
        run_id: Its MLflow run, "" if it was not tracked.
    """

    index: int
    margin: float
    attack: str
    cell: str
    run_id: str

    def __str__(self) -> str:
        run = f", run {self.run_id[:8]}" if self.run_id else ""
        return f"image {self.index} with margin {self.margin:.3g} by {self.attack} (pair {self.cell}{run})"


@dataclass(frozen=True)
class Band:
    """Bounds of one model's robust accuracy at (norm, eps), on the images that a certificate was asked for.

    Attributes:
        certified: Share that is proved to stand, in [0, 1]; NaN where there is no bound or no image.
        attacked: Share of the same images that no attack broke; NaN likewise.
        n: Those images; they are the first of those that the model is judged on.
        asked: Images that were to be certified: more than ``n`` where that would have cost too much.
        uncovered: The operation that there is no bound for, "" if there is one.
        alpha: Probability that the certificate of an image does not hold; None for a proof without chance.
        broken: Images that are certified and were broken, each by one attack.
    """

    norm: str
    eps: float
    certified: float
    attacked: float
    n: int
    asked: int
    uncovered: str = ""
    alpha: float | None = None
    broken: tuple[Witness, ...] = ()

    @property
    def contradiction(self) -> str:
        """Why the model can have no rank, in one line; "" if nothing contradicts itself.

        What holds with a probability, of a classifier with infinitely many votes, is not contradicted by votes that
        were counted.
        """
        if not self.broken or self.alpha is not None:
            return ""
        more = f" and {len(self.broken) - 1} more" if len(self.broken) > 1 else ""
        where = f"{self.norm} {self.eps:g}"
        return f"certified and broken in {where}: {self.broken[0]}{more}; a bug of gauntlet's own, please report it"

    @property
    def remark(self) -> str:
        """What has to be said beside the two numbers; "" if nothing has to be."""
        if self.uncovered:
            return f"no bound: {self.uncovered}"
        if not self.n:
            return "not certified: bounds of one image would cost more than attacks on all" if self.asked else ""
        if self.alpha is None:
            return ""
        said = f"of the ideal vote, for each image with probability {1 - self.alpha:g}"
        if self.broken:
            said += f"; finitely many votes were wrong on {len(self.broken)} of the certified"
        return said


def band(facts: CertificateFacts, pairs: Sequence[Pair], norm: str, eps: float) -> Band | None:
    """The band of a model with these pairs; None where no certificate was asked for at that eps."""
    level = facts.at(eps)
    if level is None:
        return None
    index, proved = np.asarray(facts.index, int), np.asarray(level.certified, bool)
    broken: dict[int, Witness] = {}
    stands = np.ones(len(index), bool)
    for pair in pairs:
        lost = reach(pair, index, norm) <= limit(eps)
        stands &= ~lost
        for at in (lost & proved).nonzero()[0].tolist():
            label = f"{pair.result.attack} ({pair.result.threat})"
            broken.setdefault(
                at, Witness(int(index[at]), float(level.margins[at]), label, pair.result.cell, pair.run_id)
            )
    known = bool(len(index)) and not facts.uncovered
    return Band(
        norm=norm,
        eps=eps,
        certified=float(proved.mean()) if known else np.nan,
        attacked=float(stands.mean()) if known else np.nan,
        n=len(index),
        asked=facts.n,
        uncovered=facts.uncovered,
        alpha=facts.alpha,
        broken=tuple(broken[at] for at in sorted(broken)),
    )
