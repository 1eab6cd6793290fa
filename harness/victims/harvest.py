"""What an attack meets on its way and may not return: the nearest misclassified point of each image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from ..goal import reached
from ..schema.eps import TOLERANCE, limit
from ..threat import BOX_TOLERANCE, Threat, magnitude, per_sample


class Harvest:
    """Keeps, for every image under attack, one misclassified point of the threat's ball out of all forward passes.

    That is the nearest for a threat without an eps, and for a budget the first within eps. Where the victim draws at
    random it is the one that was wrong by the largest margin: the first and the nearest are a matter of luck there.
    Nothing here is a success: the referee asks its own copy of the model about what was kept.

    A row of a batch belongs to an image by what the attack says (:meth:`.victim.Victim.of`), or else by its place where
    the batch has as many rows as there are images. Whatever lies in the ball and has another label than the image is an
    adversarial of it, whoever was looking for it: a mistaken place makes nothing up. All the same, a point known by its
    place alone, without an eps, must be nearer in L2 to its image than to the others: where places have lost their
    meaning, far-off images would be reported as finds.

    A pass costs an argmax over logits that are there, a comparison, and a distance for rows that are wrong. On a CPU
    those are picked out; on a GPU all rows are compared, so that nothing waits for the device.

    Args:
        x: The clean images, float32 (N, C, H, W) in [0, 1]; nobody may change them meanwhile.
        y: Their true labels, int64 (N,).
        threat: What the attack is allowed.
        draws: Whether the victim draws at random.
        target: Classes (N,) that images have to be taken for; None: any but their own.

    Attributes:
        whole: Whether all rows of a batch are compared, or those that are wrong picked out first: the same is kept.
        everyone: Positions of all images, int64 (N,).
        points: What was kept, like ``x``, NaN for images of which nothing was; None if nothing was at all.
    """

    def __init__(
        self, x: Tensor, y: Tensor, threat: Threat, *, draws: bool = False, target: Tensor | None = None
    ) -> None:
        self.x, self.y, self.threat, self.draws, self.target = x, y, threat, draws, target
        self.nearest = threat.eps is None and not draws
        self.whole = x.is_cuda
        self.everyone = torch.arange(len(x), device=x.device)
        self.points: Tensor | None = None
        # what a point has to fall below to be kept: a distance, or minus a margin
        self._bar = x.new_full((len(x),), torch.inf)
        self._strange = 0
        self._astray = torch.zeros((), dtype=torch.int64, device=x.device)

    @property
    def unattributed(self) -> int:
        """Rows that belong to no image: of batches of another size, or wrong and not near the image of their place."""
        return self._strange + int(self._astray)

    def note(self, x: Tensor, logits: Tensor, rows: Tensor | None = None) -> None:
        """Look at a batch (M, C, H, W) of any values and the logits (M, K) that a forward pass gave; both detached.

        ``rows`` are the positions (M,) of the images that they belong to, each at most once; None: by their places.
        """
        count = len(self.x) if rows is None else len(rows)
        # inside a transform of torch.func values cannot be looked at
        if x.shape != (count, *self.x.shape[1:]) or is_functorch_wrapped_tensor(logits):
            self._strange += len(x)
            return
        by_place = rows is None
        whose = slice(None) if rows is None else rows
        wrong = reached(logits.argmax(1), self.y[whose], None if self.target is None else self.target[whose])
        if not self.whole:
            hits = wrong.nonzero().squeeze(1)
            if not len(hits):
                return
            rows = hits if rows is None else rows[hits]
            if not self.nearest and not self.draws:
                still = (self._bar[rows] > 0).nonzero().squeeze(1)  # of the others there is one already
                if not len(still):
                    return
                hits, rows = hits[still], rows[still]
            x, logits, wrong = x[hits], logits[hits], wrong[hits]
        self._keep(x, logits, wrong, self.everyone if rows is None else rows, by_place)

    def _keep(self, x: Tensor, logits: Tensor, wrong: Tensor, rows: Tensor, by_place: bool) -> None:
        """Keep of some points those that are valid and better than what is there."""
        value, bar = self._value(x, logits, rows), self._bar[rows]
        better = wrong & (value < bar)  # false for NaN
        if not self.whole:
            pick = better.nonzero().squeeze(1)
            if not len(pick):
                return
            x, logits, better, rows, value, bar = (part[pick] for part in (x, logits, better, rows, value, bar))
        flat = x.flatten(1)
        better = better & logits.isfinite().all(1)
        better &= (flat.amin(1) >= -BOX_TOLERANCE) & (flat.amax(1) <= 1 + BOX_TOLERANCE)
        mine = self._near(x, rows, by_place)
        if by_place:
            self._astray += (better & ~mine).sum()
        better &= mine
        if self.points is None:
            self.points = torch.full_like(self.x, torch.nan)
        self.points[rows] = torch.where(per_sample(better, x), x, self.points[rows])
        # no nearer than by the slack that distances are compared with is no nearer
        self._bar[rows] = torch.where(better, value * (1 - TOLERANCE) if self.nearest else value, bar)

    def _value(self, x: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        """What is compared, (M,): the smaller, the better."""
        if self.nearest:
            distance = magnitude(x - self.x[rows], self.threat.norm)
            return torch.where(distance > 0, distance, torch.inf)
        if self.draws:
            aim = (self.y if self.target is None else self.target)[rows].unsqueeze(1)
            own = logits.gather(1, aim).squeeze(1)
            margin = own - logits.amax(1) if self.target is None else logits.scatter(1, aim, -torch.inf).amax(1) - own
            return margin.to(self._bar.dtype)
        return torch.zeros_like(self._bar[rows])

    def _near(self, x: Tensor, rows: Tensor, by_place: bool) -> Tensor:
        """Which points are in the ball of the images that they are said to belong to, bool (M,)."""
        if self.threat.eps is not None:
            # half the slack of the referee, who measures in float64: that takes twice as long
            most = (self.threat.eps + limit(self.threat.eps)) / 2
            return magnitude(x - self.x[rows], self.threat.norm) <= most
        if not by_place:
            return torch.ones_like(rows, dtype=torch.bool)
        distances = torch.cdist(x.flatten(1), self.x.flatten(1))
        return distances.gather(1, rows.unsqueeze(1)).squeeze(1) <= distances.amin(1)
