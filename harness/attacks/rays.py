"""RayS: search for the direction with the nearest boundary, by predicted labels alone (Chen & Gu 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from ..errors import UserError
from ..threat import Norm, Threat, magnitude, per_sample
from ..victims.victim import Victim
from .base import Access, Attack, Kind, Targeting
from .fmn import always_wrong, settle
from .line_search import CHUNK, diameter
from .per_image_rng import Draws
from .square import stretch

CLOSE: Final = 1e-3
"""Relative improvement below which a direction is no better, and relative width at which the search along it ends."""

CHANGES: Final[dict[str, tuple[tuple[float, float], ...]]] = {
    "linf": ((-1, 0),),
    "l2": ((-1, 0), (0.5, 0), (2, 0)),
    "l1": ((-1, 1), (0, -1)),
}
"""What is tried on a block of the direction, in turn: what it is multiplied by, and what an empty one is set to."""


@dataclass(frozen=True, kw_only=True)
class RayS(Attack):
    """Flip blocks of a direction's signs, and keep what brings the boundary nearer.

    Source: Chen & Gu 2020, algorithms 1 to 3. The direction is cut into 1, 2, 4, ... blocks. A flip is tried with one
    query just inside the present radius; only where that fools the victim is the new radius searched. Nothing but
    the predicted label is looked at: a masked gradient, or flat scores, are no defense.

    Where this departs from the paper:

    * Blocks follow the Z-order of the pixels (all channels of one together), so that they are squares or halves of
      squares, not strips of rows. The new radius is searched from above in doubling steps before it is bisected, since
      most flips gain little. On an MLP on MNIST (2000 queries, median) this led to 0.060, strips and bisection from
      zero to 0.064.
    * L2 and L1: the same search over directions with amplitudes, measured in the norm. A block is also halved and
      doubled (L2), or dropped and taken back (L1, where few pixels matter). Points on a ray are clipped to the box and
      scaled back to their length.
    * A run starts from random signs at the end of the box, in blocks of every size in turn until one of them fools the
      victim. Where a whole round of single pixels brings nothing, another run starts, and the best of all is kept.
    * The result is moved outward by a thousandth of its distance, past the boundary, if a last query confirms it; on a
      stochastic victim farther, until it is no matter of luck (:func:`.fmn.settle`).

    Images that are misclassified as they stand, and images for which nothing is found, come back as they are. Random
    numbers belong to the image, so that the batch does not matter.

    Attributes:
        queries: Forward passes per image at most, the first for the clean image; >= 3. (A stochastic victim is asked
            some times more, in the beginning and in the end.)

    Raises:
        UserError: A field out of range.
    """

    name: ClassVar[str] = "rays"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    kind: ClassVar[Kind] = "minimal"
    access: ClassVar[Access] = "decisions"
    targeting: ClassVar[Targeting] = "rows"

    queries: int = 2000

    def __post_init__(self) -> None:
        if self.queries < 3:
            raise UserError(f"queries must be >= 3, got {self.queries}")

    @torch.no_grad()
    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Propose the nearest adversarial found for each image."""
        if not len(x):
            return x
        out, draws = x.clone(), Draws(x)
        for rows in torch.arange(len(x), device=x.device).split(CHUNK):  # type: ignore[no-untyped-call]
            rows = rows[~always_wrong(victim.of(rows), x[rows], y[rows])]
            if len(rows):
                view = victim.of(rows)
                best = self._search(view, x[rows], y[rows], threat.norm, draws.of(rows))
                outward = (x[rows] + (1 + CLOSE) * (best - x[rows])).clamp(0, 1)
                across = _wrong(view, outward, y[rows])
                best = torch.where(per_sample(across, best), outward, best)
                out[rows] = settle(view, x[rows], y[rows], best)
        return out

    def _search(self, victim: Victim, x: Tensor, y: Tensor, norm: Norm, draws: Draws) -> Tensor:
        """Nearest images found beyond the boundary, ``x`` itself where there is none."""
        blocks = _Blocks(x, CHANGES[norm])
        longest, nothing = diameter(x, norm), x.new_full((len(x),), math.inf)
        best, least = x.clone(), nothing
        # of the present run: its direction, the radius along it, the next turn, and single pixels tried in vain
        ray, radius = torch.ones_like(x, memory_format=torch.contiguous_format), nothing
        turn = idle = torch.zeros_like(y)
        # of the search along a changed direction: the last steps that failed (0: none) and fooled
        low, high, gap = torch.zeros_like(radius), nothing, nothing
        searching = torch.zeros_like(y, dtype=torch.bool)
        for query in range(self.queries - 2):
            new, fresh = ~searching & radius.isinf(), ~searching & radius.isfinite()
            rows = new.nonzero().squeeze(1)
            if len(rows):
                ray[rows] = blocks.signs(draws.of(rows).fork(query), query)
            place, owner = blocks.places(fresh, turn)
            before = ray.view(-1)[place]
            ray.view(-1)[place] = blocks.changed(before, owner, turn)
            inward = torch.where(low > 0, (low + high) / 2, high - gap)
            goal = torch.where(new, longest, torch.where(fresh, radius * (1 - CLOSE), inward))
            point = stretch(x, ray, norm, goal)
            hit, size = _wrong(victim, point, y), nothing.clone()
            ray.view(-1)[place] = torch.where(hit[owner], ray.view(-1)[place], before)
            rows = hit.nonzero().squeeze(1)
            size[rows] = magnitude(point[rows] - x[rows], norm)
            nearer = size < least
            rows = nearer.nonzero().squeeze(1)
            best[rows], least = point[rows], torch.where(nearer, size, least)

            low = torch.where(searching, torch.where(hit, low, goal), 0)
            high = torch.where(hit, size, high)
            first = torch.where(new, size / 2, size * CLOSE)
            gap = torch.minimum(torch.where(searching, torch.where(hit, 2 * gap, gap), first), high / 2)
            searching = searching | hit
            idle = torch.where(hit, 0, idle + (fresh & (turn >= blocks.singles)))
            turn = turn + fresh
            turn = torch.where(turn == len(blocks), blocks.singles, turn)

            found = searching & (low > 0) & (high - low <= CLOSE * high)
            radius, searching = torch.where(found, high, radius), searching & ~found
            stuck = ~searching & (idle == len(blocks) - blocks.singles)
            radius, turn, idle = torch.where(stuck, math.inf, radius), turn * ~stuck, idle * ~stuck
        return best


class _Blocks:
    """The blocks of a direction, coarse to fine, and what is done to them; every change is a turn of its own.

    Attributes:
        singles: First turn at which blocks are single components.
    """

    def __init__(self, x: Tensor, changes: tuple[tuple[float, float], ...]) -> None:
        self._place, self._total = _z_order(x), x[0].numel()
        self._order = self._place.flatten().argsort()
        self._levels = math.ceil(math.log2(self._total)) + 1
        sizes = [math.ceil(self._total / 2**level) for level in range(self._levels)]
        starts = [torch.arange(0, self._total, size, device=x.device) for size in sizes]
        ends = [start + size for start, size in zip(starts, sizes, strict=True)]
        count = sum(map(len, starts))
        self.singles = (count - self._total) * len(changes)
        self._start, end = (torch.cat(part).repeat_interleave(len(changes)) for part in (starts, ends))
        self._size = end.clamp(max=self._total) - self._start
        self._factor, self._instead = torch.tensor(changes, device=x.device).repeat(count, 1).unbind(1)

    def __len__(self) -> int:
        return len(self._start)

    def places(self, rows: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        """Where the block of each image's ``turn`` (N,) lies, of the images in ``rows`` (bool, N).

        Returns:
            Places (M,) in the flattened directions of all images, and the image (M,) that each belongs to.
        """
        images = rows.nonzero().squeeze(1)
        size = self._size[turn[images]]
        which = torch.arange(len(images), device=rows.device).repeat_interleave(size)
        owner = images[which]
        nth = torch.arange(len(owner), device=rows.device) - (size.cumsum(0) - size)[which]
        return owner * self._total + self._order[self._start[turn[owner]] + nth], owner

    def changed(self, values: Tensor, owner: Tensor, turn: Tensor) -> Tensor:
        """What becomes of the values (M,) at those places."""
        filled = torch.zeros_like(turn, dtype=values.dtype).index_add(0, owner, (values != 0).to(values.dtype))
        change = turn[owner]
        return torch.where(filled[owner] > 0, self._factor[change] * values, self._instead[change])

    def signs(self, draws: Draws, number: int) -> Tensor:
        """Random signs, in as many blocks as the ``number``-th try has, (N, C, H, W)."""
        count = 2 ** (number % self._levels)
        return draws.signs(count)[:, self._place * count // self._total]


def _z_order(x: Tensor) -> Tensor:
    """Place of each component along the Z-order curve of the pixels, the channels of one side by side; (C, H, W)."""
    _, channels, height, width = x.shape
    row, column = torch.arange(height).unsqueeze(1), torch.arange(width)
    key = torch.zeros(height, width, dtype=torch.int64)
    for bit in range(max(height, width).bit_length()):
        key |= (row >> bit & 1) << (2 * bit + 1) | (column >> bit & 1) << (2 * bit)
    place = key.flatten().argsort().argsort().view(height, width)
    return (place * channels + torch.arange(channels).view(-1, 1, 1)).to(x.device)


def _wrong(victim: Victim, x: Tensor, y: Tensor) -> Tensor:
    """Whose predicted label is not theirs, bool (N,): the one thing this attack asks."""
    wrong: Tensor = victim(x).argmax(1) != y
    return wrong
