"""Square Attack: random search in square windows, by scores alone (Andriushchenko et al. 2020; Croce & Hein 2021)."""

from __future__ import annotations

import bisect
import dataclasses
import math
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import count
from typing import ClassVar, Final, Self

import torch
from torch import Tensor

from ..errors import UserError
from ..threat import Norm, Threat, magnitude, per_sample
from ..victims.victim import Victim
from ._apgd_state import Rows
from .base import Access, Attack, Targeting
from .line_search import CHUNK, CLEAR, label_and_rival, largest_unmasked
from .per_image_rng import Draws, as_integers, as_signs

AGAIN: Final = 3
"""Of a near miss: how many runs more it meets, from the best point found,"""

LONGER: Final = 5
"""and with how many times the queries."""

SMALLER: Final = 0.05
"""Of one that insists and whose first run broke none: windows cover at first this share of the image, at most,"""

CLOSER: Final = 2
"""when it goes on from what came close with so many times the queries."""

INSISTENT: Final = 3
"""Runs of one that insists, at most,"""

NEAREST: Final = 0.1
"""and the share of what stands that it calls near misses, where no other are declared."""

IDLE: Final = 3
"""It ends once so many searches in a row, of all that stands or of near misses, broke nothing."""

HOPELESS: Final = 0.3
"""Share of the queries of a run after which one that gives up looks at how far it came."""

_AHEAD: Final = 16
"""Queries whose changes are drawn together, at most,"""

_VALUES: Final = 2**18
"""and values of these."""

_HALVINGS: Final = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of the queries after which the window's area is halved: the schedule published for 10000, scaled."""


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Change a random square window of the image, and keep the change if the margin does not fall.

    Source: Andriushchenko et al. 2020, algorithms 1, 2 (L-infinity) and 3 (L2); Croce & Hein 2021, section 4 (L1). In
    L-infinity every pixel is at a corner of the ball, from random vertical stripes on, and a window is set to one
    corner. In L2 and L1 a window gets a pair of opposite bumps and the budget of a second one, which is emptied.

    Where this departs from the papers:

    * The margin is that of logits over their standard deviation, so that neither their scale matters nor a factor that
      varies over image space. On a digits MLP whose logits are multiplied by such a factor, the plain margin left
      77 % standing, this one 47 %, and 45 % without the factor. On honest models both are alike.
    * Windows reach the last row and column, and every image has its own. A change that would leave the image as it
      is takes the opposite sign: on one channel, that is half of the queries with windows of one pixel.
    * A change that leaves the margin as it was is kept: plateaus can be crossed.
    * In L2 and L1 the smallest window is a quarter of the image, at most 3 pixels: with 3 pixels throughout, 1 to 4 %
      fewer of 8 x 8 images were broken. What clipping to the box took from the budget is given back to the pixels
      that have room (in L1 that broke up to a fifth more images).

    An image that is clearly fooled is returned at once and costs nothing more; not so on a stochastic victim (a remedy
    of several draws), where one success may be luck. Images never fooled come back at the largest margin seen.
    Random numbers belong to the image, so that the batch does not matter.

    Attributes:
        queries: Forward passes per image of each run.
        p_init: Share of the image that the first windows cover, in (0, 1].
        restarts: Runs; the later ones see only what still stands.
        near: An image that still stands and whose margin, in standard deviations of its logits, came above minus this
            meets three runs more from the best point found, each with five times the queries. Not on a stochastic
            victim. None: none does.
        insist: As long as this breaks images of the batch, near misses (without ``near`` the nearest tenth of what
            stands) meet theirs, then all that stand a new run, and so on, up to three runs. In a cascade, where
            gradients were followed first, the first run rarely breaks any: there it costs nothing, and goes on where
            random search finds what gradients do not.
        close: One that insists and whose first run breaks none goes on from the best point of what has less than this
            share of its first margin left, in (0, 1), with twice the queries and small windows, and insists where that
            breaks any. None: it ends.
        give_up: A run ends for an image that after three tenths of the queries has more than this share of its first
            margin left, in (0, 1); not on a stochastic victim, and only in the first run where it insists. None: never.

    Raises:
        UserError: A field out of range.
    """

    name: ClassVar[str] = "square"
    version: ClassVar[int] = 2
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "scores"
    targeting: ClassVar[Targeting] = "rows"
    ends_early: ClassVar[bool] = True

    queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1
    near: float | None = field(default=None, metadata={"identity": "set"})
    insist: bool = field(default=False, metadata={"identity": "set"})
    close: float | None = field(default=None, metadata={"identity": "set"})
    give_up: float | None = field(default=None, metadata={"identity": "set"})

    def __post_init__(self) -> None:
        if min(self.queries, self.restarts) < 1:
            raise UserError(f"queries and restarts must be >= 1, got {self.queries} and {self.restarts}")
        if not 0 < self.p_init <= 1:
            raise UserError(f"p_init must be in (0, 1], got {self.p_init}")
        if self.near is not None and not self.near > 0:
            raise UserError(f"near must be above 0, got {self.near}")
        for name, share in (("close", self.close), ("give_up", self.give_up)):
            if share is not None and not 0 < share < 1:
                raise UserError(f"{name} must be in (0, 1), got {share}")

    def in_cascade(self) -> Attack:
        """Insisting, and giving up what is hopeless.

        Of AutoAttack's own MNIST network (200 images, L-infinity 0.3) 178 stand after APGD on both losses, 176 after
        one run of 1000 queries, 173 after AutoAttack and after this, at 3,800 queries an image. One run of 5000 for all
        that stand in the place of short ones left 174 at 6,400. Whether the first run breaks any is luck once cheaper
        attacks took the easy ones; of 349 of its images that stand then, 5,000 queries more break four, three of them
        among the five that had less than a tenth of their first margin left. Of 1,148 images that stand in nine such
        batches on LeNets (plain, fast-gradient, PGD) two had.

        Going on from the best point beats beginning anew: of 42 images of two LeNets (fast-gradient in L2 at 1.5 and
        2.0, PGD in L-infinity at 0.2) that a run of 1000 left at less than a tenth of their first margin, a new run of
        2000 breaks 30 and one from the best point 39, at half the passes. Of three digits models that mask their
        gradients (L-infinity and L2) it breaks 561 images where new runs broke 556, at 0.90 of the passes.

        Of 262 images that Square breaks after 300 of 1000 queries (three LeNets of MNIST, L-infinity and L2, whatever
        gradients do to them) none had more than 0.6 of its first margin left by then; of 1,300 that stand after
        gradients the runs cost 0.52. On AutoAttack's network in L2 at 2.0, where 35 of 169 that stand after APGD fall
        to Square, it would lose 3 of them, did it not insist. Of thirty digits models that hide how weak they are and
        do not draw it left as much, and of one (k-winners) one image of 54 more.
        """
        return dataclasses.replace(self, insist=True, close=0.1, give_up=0.6)

    @property
    def draws_as(self) -> Attack:
        """Whether it insists or gives up, or not."""
        return dataclasses.replace(self, insist=False, close=None, give_up=None)

    @torch.no_grad()
    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Propose one image for each, within eps and the box."""
        if not len(x):
            return x
        out, score = x.clone(), x.new_full((len(x),), -math.inf)
        first = score.clone()
        draws, left, forks = Draws(x), torch.arange(len(x), device=x.device), count()

        def search(attack: Square, rows: Tensor, start: Tensor | None = None) -> Tensor:
            """One run of images ``rows``, anew or from ``start``; which of them still stand."""
            if not len(rows):
                return rows
            streams = draws.fork(next(forks)).of(rows)
            best, margin, began = attack._search(victim.of(rows), x[rows], y[rows], threat, streams, start)
            if start is None:
                first[rows] = began
            better = margin > score[rows]
            out[rows[better]], score[rows[better]] = best[better], margin[better]
            return rows[margin < math.inf]

        def search_near(rows: Tensor) -> Tensor:
            """Long runs of the near misses among images ``rows``; which of all still stand."""
            if self.near is not None:
                left = rows[score[rows] > -self.near]
            else:
                left = rows[score[rows].topk(math.ceil(NEAREST * len(rows))).indices]
            for _ in range(AGAIN):
                met, left = len(left), search(longer, left, out[left])
                if self.insist and len(left) == met:
                    break
            return rows[score[rows] < math.inf]

        whole = dataclasses.replace(self, give_up=None)
        longer = dataclasses.replace(whole, queries=LONGER * self.queries)
        closer = dataclasses.replace(whole, queries=CLOSER * self.queries, p_init=min(self.p_init, SMALLER))
        for _ in range(self.restarts):
            left = search(self, left)
        if not self.insist:
            if self.near is not None and not victim.remedy.stochastic:
                search_near(left)
            return out
        if self.close and len(left) == len(x) and not victim.remedy.stochastic:
            close = left[score[left] > self.close * first[left]]
            search(closer, close, out[close])
            left = left[score[left] < math.inf]
        broke = [len(x) - len(left)]  # 0 of a stochastic victim, whose images never leave
        for step in (search_near, *(partial(search, whole), search_near) * (INSISTENT - 1)):
            if not any(broke[-IDLE:]):
                break
            still = step(left)
            broke.append(len(left) - len(still))
            left = still
        return out

    def _search(
        self, victim: Victim, x: Tensor, y: Tensor, threat: Threat, draws: Draws, start: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One run, anew or from points ``start`` like ``x``.

        Returns:
            The best images, their margins (N,), infinite where one left as fooled, and the margins that it began with.
        """
        out, score = x.clone(), x.new_full((len(x),), math.inf)
        rows, sure = torch.arange(len(x), device=x.device), not victim.remedy.stochastic
        smallest = 1 if threat.norm == "linf" else max(1, min(3, min(x.shape[2:]) // 4))
        best = _start(x, threat, smallest, draws) if start is None else start
        margin, hit = _ask(victim, best, y)
        began, first, enough = margin, margin, math.ceil(HOPELESS * self.queries)
        view, best, changes, turn = victim, best.flatten(2), None, 0
        for query in range(1, self.queries):
            gone = hit if sure else None
            if gone is not None and self.give_up is not None and query == enough:
                hopeless = ~hit & (margin < self.give_up * first)
                score[rows[hopeless]] = margin[hopeless]
                gone = gone | hopeless
            if gone is not None and gone.any():
                out[rows[gone]] = best[gone].view(-1, *x.shape[1:])
                left = (~gone).nonzero().squeeze(1)
                rows, x, y, best, margin, first, hit = (part[left] for part in (rows, x, y, best, margin, first, hit))
                draws, view, changes = draws.of(left), victim.of(rows), changes and changes.of(left)
            if not len(rows):
                break
            if changes is None or turn == changes.rounds:
                changes, turn = self._changes(x, threat, query, smallest, draws), 0
            trial = changes.made(x, best, turn)
            new, hit = _ask(view, trial.view_as(x), y)
            better = (new >= margin) | hit
            best, margin = torch.where(per_sample(better, best), trial, best), torch.where(better, new, margin)
            turn += 1
        out[rows] = best.view(-1, *x.shape[1:])
        standing = ~hit if sure else torch.ones_like(hit)
        score[rows[standing]] = margin[standing]
        return out, score, began

    def _changes(self, x: Tensor, threat: Threat, query: int, smallest: int, draws: Draws) -> _Flips | _Moves:
        """Changes of the queries from one on, as many as have windows of its size."""
        height, width = x.shape[2:]
        side, end = self._side(query, height, width, smallest), query + 1
        most = min(self.queries, query + max(1, min(_AHEAD, _VALUES // (x.shape[0] * x.shape[1] * side**2))))
        while end < most and self._side(end, height, width, smallest) == side:
            end += 1
        return (_Flips if threat.norm == "linf" else _Moves).drawn(x, threat, side, draws, end - query)

    def _side(self, query: int, height: int, width: int, smallest: int) -> int:
        """Side of the window at one query, in pixels."""
        share = self.p_init / 2 ** bisect.bisect_left(_HALVINGS, query / self.queries)
        return min(max(round(math.sqrt(share * height * width)), smallest), height, width)


def stretch(x: Tensor, delta: Tensor, norm: Norm, length: Tensor) -> Tensor:
    """Points of the box along ``delta``, like ``x``, at the given distances (N,) as far as there is room.

    What a pixel loses at the end of the box goes to the others in proportion, in a few rounds that approach the
    distance from below.
    """
    for _ in range(1 if norm == "linf" else 4):
        size = magnitude(delta, norm).clamp_min(1e-12)
        delta = (delta * per_sample(length / size, x)).add_(x).clamp_(0, 1).sub_(x)
    return delta.add_(x)


def unscaled(logits: Tensor) -> Tensor:
    """Logits (N, K) over their standard deviation: a factor that differs by image or point hides nothing.

    Two logits are returned as they are: nothing but the sign of their difference would be left.
    """
    return logits / _scale(logits).unsqueeze(1)


def _scale(logits: Tensor) -> Tensor:
    """What logits (N, K) are divided by, (N,)."""
    if logits.shape[1] < 3:
        return logits.new_ones(len(logits))
    spread = logits.std(1)
    return torch.where(spread > 0, spread, 1)


def _ask(victim: Victim, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Unscaled margins over the label (N,), and who is clearly fooled, bool (N,); one pass each."""
    if len(x) <= CHUNK:
        logits = victim(x)
    else:
        parts = zip(victim.split(x, CHUNK), torch.split(x, CHUNK), strict=True)
        logits = torch.cat([view(part) for view, part in parts])
    own, other = label_and_rival(logits, y)
    scale = _scale(logits)
    # a model may answer in float64
    return (other / scale - own / scale).to(x), other - own > CLEAR * largest_unmasked(logits, own, other)


def _start(x: Tensor, threat: Threat, smallest: int, draws: Draws) -> Tensor:
    """Vertical stripes, or in L2 and L1 a grid of about five by five bumps, of random signs in every channel."""
    assert threat.eps is not None
    _, channels, height, width = x.shape
    if threat.norm == "linf":
        return (x + threat.eps * draws.signs(channels, 1, width)).clamp(0, 1)
    tile = max(min(height, width) // 5, smallest)
    row = torch.arange(height, device=x.device).unsqueeze(1)
    column = torch.arange(width, device=x.device)
    signs = draws.signs(channels, math.ceil(height / tile), math.ceil(width / tile))
    grid = signs[:, :, row // tile, column // tile] * _bump(tile, tile).to(x)[row % tile, column % tile]
    return stretch(x, grid, threat.norm, x.new_full((len(x),), threat.eps))


def _windows(bits: Tensor, x: Tensor, side: int) -> Tensor:
    """Random windows as positions in the flattened pixels, (N, rounds, 1, side * side), of bits (N, rounds, 2)."""
    height, width = x.shape[2:]
    corner = as_integers(bits[..., 0], height - side + 1) * width + as_integers(bits[..., 1], width - side + 1)
    return (corner.unsqueeze(2) + _inside(side, width, x.device)).unsqueeze(2)


@lru_cache
def _inside(side: int, width: int, device: torch.device) -> Tensor:
    """Positions of a window's pixels from its corner, (side * side,)."""
    step = torch.arange(side, device=device)
    return (step.unsqueeze(1) * width + step).flatten()


@dataclass
class _Flips(Rows):
    """Changes in L-infinity: a window set to one corner of the ball, of random sign in every channel.

    Attributes:
        window: Positions in the flattened pixels, (N, rounds, 1, S).
        corner: Their values there, (N, rounds, C, S).
        opposite: And at the opposite corner, for what would leave the image as it is.
    """

    window: Tensor
    corner: Tensor
    opposite: Tensor

    @classmethod
    def drawn(cls, x: Tensor, threat: Threat, side: int, draws: Draws, rounds: int) -> Self:
        """The next ones of images (N, C, H, W)."""
        assert threat.eps is not None
        bits = draws.bits(rounds, 2 + x.shape[1])
        window, shift = _windows(bits, x, side), threat.eps * as_signs(bits[..., 2:]).unsqueeze(3)
        clean = x.flatten(2).gather(2, window.transpose(1, 2).expand(-1, x.shape[1], -1, -1).flatten(2))
        clean = clean.view(*clean.shape[:2], rounds, -1).transpose(1, 2)
        return cls(window, (clean + shift).clamp(0, 1), (clean - shift).clamp(0, 1))

    @property
    def rounds(self) -> int:
        """Number of changes of each image."""
        return self.window.shape[1]

    def made(self, x: Tensor, best: Tensor, number: int) -> Tensor:
        """One of them made in ``best``, flattened like images (N, C, H * W)."""
        window = self.window[:, number].expand(-1, best.shape[1], -1)
        new, old = self.corner[:, number], best.gather(2, window)
        same = (new == old).flatten(1).all(1)
        return best.scatter(2, window, torch.where(per_sample(same, new), self.opposite[:, number], new))


@dataclass
class _Moves(Rows):
    """Changes in L2 and L1: a window emptied in favour of another, which gets a pair of bumps on top of what it holds.

    Attributes:
        target: Positions in the flattened pixels of what gets the bumps, (N, rounds, 1, S).
        source: And of what is emptied.
        bumps: Of length 1 in every channel, (N, rounds, C, S).
    """

    threat: Threat
    target: Tensor
    source: Tensor
    bumps: Tensor

    @classmethod
    def drawn(cls, x: Tensor, threat: Threat, side: int, draws: Draws, rounds: int) -> Self:
        """The next ones of images (N, C, H, W)."""
        bits, pair = draws.bits(rounds, 5 + x.shape[1]), _pair(side).to(x)
        upright, signs = as_signs(bits[..., 4:5]).unsqueeze(3) > 0, as_signs(bits[..., 5:]).unsqueeze(3)
        bumps = torch.where(upright, pair.flatten(), pair.t().flatten()) * signs
        target, source = _windows(bits[..., :2], x, side), _windows(bits[..., 2:4], x, side)
        return cls(threat, target, source, _unit(bumps, threat.norm))

    @property
    def rounds(self) -> int:
        """Number of changes of each image."""
        return self.target.shape[1]

    def made(self, x: Tensor, best: Tensor, number: int) -> Tensor:
        """One of them made in ``best``, flattened like images (N, C, H * W)."""
        assert self.threat.eps is not None
        norm, channels, x = self.threat.norm, x.shape[1], x.flatten(2)
        target, source = (part[:, number].expand(-1, channels, -1) for part in (self.target, self.source))
        delta = best - x
        rest = delta.scatter(2, target, 0.0).scatter(2, source, 0.0)
        held = _mass(delta, norm)
        spare = (self.threat.eps ** _POWER[norm] - held.sum(1, keepdim=True)).clamp_min(0) / channels
        budget = (spare + held - _mass(rest, norm)).clamp_min(0).pow(1 / _POWER[norm])
        new = _unit(self.bumps[:, number] + _unit(delta.gather(2, target), norm), norm) * budget
        return stretch(x, rest.scatter(2, target, new), norm, x.new_full((len(x),), self.threat.eps))


_POWER: Final = {"l2": 2, "l1": 1}


def _mass(delta: Tensor, norm: Norm) -> Tensor:
    """What values (..., S) take of the budget, (..., 1)."""
    return (delta.square() if norm == "l2" else delta.abs()).sum(-1, keepdim=True)


def _unit(delta: Tensor, norm: Norm) -> Tensor:
    """Values (..., S) at length 1."""
    return delta / _mass(delta, norm).pow(1 / _POWER[norm]).clamp_min(1e-12)


def _pair(side: int) -> Tensor:
    """Two opposite bumps that fill a square, (side, side); a single one for one pixel."""
    half = side // 2
    return torch.cat([_bump(half, side), -_bump(side - half, side)])


def _bump(height: int, width: int) -> Tensor:
    """Rectangles around the middle, the k-th from inside of height 1 / k^2, summed up; (height, width)."""
    row, column = torch.arange(height).unsqueeze(1), torch.arange(width)
    ring = torch.maximum((row - height // 2).abs(), (column - width // 2).abs())
    count = max(height, width) // 2 + 1
    heights = torch.arange(1, count + 1, dtype=torch.float32) ** -2.0
    return heights.flip(0).cumsum(0).flip(0)[ring]
