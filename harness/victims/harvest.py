"""What an attack meets on its way and may not return: the nearest misclassified point of each image."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from ..goal import reached
from ..schema.eps import limit
from ..threat import BOX_TOLERANCE, Threat, magnitude

HELD: Final = 2**18
"""Values of misclassified points that are put by before their distances are looked at: what a processor has close.

Those of an image count 64 at least: what is known by its place is held against all images."""


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
    those are picked out, and where the nearest is kept the distances are taken of several passes at once: of few small
    images a call costs more than its work. On a GPU all rows are compared, so that nothing waits for the device.

    Args:
        x: The clean images, float32 (N, C, H, W) in [0, 1]; nobody may change them meanwhile.
        y: Their true labels, int64 (N,).
        threat: What the attack is allowed.
        draws: Whether the victim draws at random.
        target: Classes (N,) that images have to be taken for; None: any but their own.

    Attributes:
        whole: Whether all rows of a batch are compared, or those that are wrong picked out first: the same is kept.
        everyone: Positions of all images, int64 (N,).
    """

    def __init__(
        self, x: Tensor, y: Tensor, threat: Threat, *, draws: bool = False, target: Tensor | None = None
    ) -> None:
        self.x, self.y, self.threat, self.draws, self.target = x, y, threat, draws, target
        self.nearest = threat.eps is None and not draws
        self.whole = x.is_cuda
        self.everyone = torch.arange(len(x), device=x.device)
        self._shape = x.shape[1:]
        self._kept: Tensor | None = None  # with a last row for whatever is not, and so has the bar
        self._held: list[tuple[Tensor, Tensor, Tensor]] = []
        self._values = 0  # of the images that are held
        self._by_place = False  # whether what is held is known by its place alone
        # what a point has to fall below to be kept: a distance, or minus a margin
        self._bar = x.new_full((len(x) + 1,), torch.inf)
        self._strange = 0
        self._astray = torch.zeros((), dtype=torch.int64, device=x.device)

    @property
    def points(self) -> Tensor | None:
        """What was kept, like ``x``, NaN for images of which nothing was; None if nothing was at all."""
        self._look()
        return None if self._kept is None else self._kept[:-1]

    @property
    def unattributed(self) -> int:
        """Rows that belong to no image: of batches of another size, or wrong and not near the image of their place."""
        self._look()
        return self._strange + int(self._astray)

    def note(self, x: Tensor, logits: Tensor, rows: Tensor | None = None) -> None:
        """Look at a batch (M, C, H, W) of any values and the logits (M, K) that a forward pass gave; both detached.

        ``rows`` are the positions (M,) of the images that they belong to; None: by their places.
        """
        count = len(self.everyone) if rows is None else len(rows)
        # inside a transform of torch.func values cannot be looked at
        if len(x) != count or x.shape[1:] != self._shape or is_functorch_wrapped_tensor(logits):
            self._strange += len(x)
            return
        y, target = self.y, self.target
        if rows is not None:
            y, target = y.index_select(0, rows), None if target is None else target.index_select(0, rows)
        wrong = reached(logits.argmax(1), y, target)
        whose = self.everyone if rows is None else rows
        if not self.whole:
            hits = wrong.nonzero().squeeze(1)
            if not len(hits):
                return
            whose = whose.index_select(0, hits)
            if not self.nearest and not self.draws:
                # of the others there is one already
                still = (self._bar.index_select(0, whose) > 0).nonzero().squeeze(1)
                if not len(still):
                    return
                hits, whose = hits.index_select(0, still), whose.index_select(0, still)
            x, logits = x.index_select(0, hits), logits.index_select(0, hits)
            if self.nearest:
                self._hold(x, logits, whose, rows is None)
                return
            wrong = torch.ones_like(whose, dtype=torch.bool)
        self._compare(x, logits, whose, wrong, rows is None)

    def _hold(self, x: Tensor, logits: Tensor, rows: Tensor, by_place: bool) -> None:
        """Put misclassified points by, until there are enough to look at."""
        if by_place != self._by_place:
            self._look()
            self._by_place = by_place
        self._held.append((x, logits, rows))
        self._values += len(x) * max(64, x[0].numel())
        if self._values >= HELD:
            self._look()

    def _look(self) -> None:
        """Look at what was put by."""
        if self._held:
            x, logits, rows = (torch.cat(parts) for parts in zip(*self._held, strict=True))
            self._held, self._values = [], 0
            self._compare(x, logits, rows, torch.ones_like(rows, dtype=torch.bool), self._by_place)

    def _compare(self, x: Tensor, logits: Tensor, rows: Tensor, wrong: Tensor, by_place: bool) -> None:
        """Keep of some points, those that are wrong, what is better than what there is."""
        value = self._value(x, logits, rows)
        better = wrong & (value < self._bar.index_select(0, rows))  # false for NaN
        x, logits, rows, value, better = self._picked(better, x, logits, rows, value)
        if len(rows):
            self._keep(x, logits, rows, value, better, by_place)

    def _picked(self, mask: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        """The rows of some tensors that a mask (M,) holds, and what is left of it; all where all are compared."""
        if self.whole:
            return *parts, mask
        rows = mask.nonzero().squeeze(1)
        if len(rows) == len(mask):
            return *parts, mask
        return tuple(part.index_select(0, rows) for part in (*parts, mask))

    def _keep(self, x: Tensor, logits: Tensor, rows: Tensor, value: Tensor, better: Tensor, by_place: bool) -> None:
        """Keep of some points those that are valid."""
        flat = x.flatten(1)
        better = better & (flat.amin(1) >= -BOX_TOLERANCE) & (flat.amax(1) <= 1 + BOX_TOLERANCE)
        better &= logits.abs().amax(1) < torch.inf
        if self.nearest:
            better &= value > 0
        astray = None
        if self.threat.eps is not None or by_place:
            mine = self._near(x, rows)
            astray = (better & ~mine, rows, value) if by_place else None
            better &= mine
        x, rows, value, better = self._picked(better, x, rows, value)
        first = _least_of_each(torch.where(better, value, torch.inf), rows)
        x, rows, value, better = self._picked(better & first, x, rows, value)
        if self._kept is None:
            with torch.inference_mode(False):  # an attack may be in it, and the last look comes after the attack
                self._kept = torch.full_like(self.x[:1], torch.nan).repeat(len(self.x) + 1, 1, 1, 1)
        if self.whole:
            rows = torch.where(better, rows, len(self.x))
        self._kept[rows], self._bar[rows] = x, value
        if astray is not None:  # and nearer than what is kept now
            strange, whose, size = astray
            self._astray += (strange & (size < self._bar.index_select(0, whose))).sum()

    def _value(self, x: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        """What is compared, (M,): the smaller, the better."""
        if self.nearest:
            return magnitude(x - self.x.index_select(0, rows), self.threat.norm)
        if self.draws:
            aim = (self.y if self.target is None else self.target)[rows].unsqueeze(1)
            own = logits.gather(1, aim).squeeze(1)
            margin = own - logits.amax(1) if self.target is None else logits.scatter(1, aim, -torch.inf).amax(1) - own
            return margin.to(self._bar.dtype)
        return self._bar.new_zeros(len(rows))

    def _near(self, x: Tensor, rows: Tensor) -> Tensor:
        """Which points are in the ball of the images that they are said to belong to, bool (M,)."""
        if self.threat.eps is not None:
            # half the slack of the referee, who measures in float64: that takes twice as long
            most = (self.threat.eps + limit(self.threat.eps)) / 2
            return magnitude(x - self.x.index_select(0, rows), self.threat.norm) <= most
        distances = torch.cdist(x.flatten(1), self.x.flatten(1))
        return distances.gather(1, rows.unsqueeze(1)).squeeze(1) <= distances.amin(1)


def _least_of_each(value: Tensor, rows: Tensor) -> Tensor:
    """Which of some values (M,) is the least, or the first of equal ones, of its image in ``rows`` (M,); bool (M,)."""
    order = value.argsort(stable=True)
    order = order[rows[order].argsort(stable=True)]
    owner = rows[order]
    first = torch.cat([torch.ones_like(owner[:1], dtype=torch.bool), owner[1:] != owner[:-1]])
    return torch.zeros_like(first).index_copy(0, order, first)
