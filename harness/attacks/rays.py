"""RayS: the nearest decision boundary along rays to the corners of the box, asking for labels alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from ..attack import Access, Attack, Kind
from ..errors import UserError
from ..threat import Norm, Threat, per_sample
from ..victim import Victim
from .draws import Draws
from .line import CHUNK

_RESOLUTION: Final = 2e-3
"""Share of the radius at which bisection stops."""


@dataclass(frozen=True, kw_only=True)
class RayS(Attack):
    """Search over sign vectors d for the shortest r at which x + r d, clipped to the box, changes its label.

    Source: Chen & Gu 2020, algorithms 1 to 3. An L-infinity perturbation loses nothing by lying at a corner of its
    ball, so the search is over 2^D directions. The sign of one block of pixels after another is turned around, in
    halves, quarters, eighths ... of the image; a turn is kept if the label has changed at the radius reached so far
    (one query), and the radius is then bisected anew. Gradients, logits and losses are never asked for, so that a
    victim which hides them is as weak as it is.

    Departures: the first direction is the better of a bright and a dark one, by the radius it reaches; blocks are runs
    of pixels in row-major order as in the paper. Whatever is returned was seen misclassified a little beyond the
    boundary, because the last bits of the logits depend on the batch.

    Attributes:
        queries: Upper bound of forward passes an image.

    Raises:
        UserError: Fewer than 20 queries.
    """

    name: ClassVar[str] = "rays"
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)

    queries: int = 1000

    def __post_init__(self) -> None:
        if self.queries < 20:
            raise UserError(f"queries must be >= 20, got {self.queries}")

    @property
    def kind(self) -> Kind:
        """It looks for the nearest."""
        return "minimal"

    @property
    def access(self) -> Access:
        """Labels alone."""
        return "decisions"

    @torch.no_grad()
    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Propose one image for each; the image itself where it is misclassified already or no ray is found."""
        if not len(x):
            return x
        search = _Search(victim, x, y, self.queries)
        search.begin(Draws(x))
        pixels, pieces = x[0].numel(), 1
        while pieces < pixels and search.goes_on:
            pieces = min(2 * pieces, pixels)
            edges = [round(pixels * number / pieces) for number in range(pieces + 1)]
            for start, stop in zip(edges, edges[1:], strict=False):
                if not search.goes_on:
                    break
                search.turn(start, stop)
        return search.result()


class _Search:
    """The state of every image: its direction, the radius reached, and the queries it has spent."""

    def __init__(self, victim: Victim, x: Tensor, y: Tensor, queries: int) -> None:
        self._victim, self._x, self._y, self._queries = victim, x, y, queries
        self._signs = torch.ones_like(x).flatten(1)
        self._radius = x.new_ones(len(x))  # no image lies farther away
        self._found = torch.zeros_like(y, dtype=torch.bool)
        self._spent = torch.zeros_like(y)
        self._open = self._changed(torch.arange(len(x), device=x.device), x.flatten(1)).logical_not()

    @property
    def goes_on(self) -> bool:
        """Whether some image has queries left."""
        return bool(self._active().any())

    def _active(self) -> Tensor:
        # room for one more turn, its bisection and the last look
        return self._open & (self._spent + 14 <= self._queries)

    def _changed(self, rows: Tensor, images: Tensor) -> Tensor:
        """Whether images, flat (M, D), of the samples ``rows`` get another label; a query each."""
        self._spent[rows] += 1
        parts = zip(rows.split(CHUNK), images.view(-1, *self._x.shape[1:]).split(CHUNK), strict=True)  # type: ignore[no-untyped-call]
        found = [self._victim(part).argmax(1) != self._y[index] for index, part in parts]
        return torch.cat(found) if found else torch.zeros_like(rows, dtype=torch.bool)

    def _at(self, rows: Tensor, signs: Tensor, radius: Tensor) -> Tensor:
        return (self._x[rows].flatten(1) + radius.unsqueeze(1) * signs).clamp(0, 1)

    def begin(self, draws: Draws) -> None:
        """Take the first direction: all brighter, all darker, or at random where both keep the label."""
        for signs in (self._signs, -self._signs, draws.signs(self._signs.shape[1])):
            rows = self._open.nonzero().squeeze(1)
            self._try(rows, signs[rows])

    def turn(self, start: int, stop: int) -> None:
        """Turn the signs of one block of pixels around, and keep that where it brings the boundary nearer."""
        rows = self._active().nonzero().squeeze(1)
        signs = self._signs[rows].clone()
        signs[:, start:stop] *= -1
        self._try(rows, signs)

    def _try(self, rows: Tensor, signs: Tensor) -> None:
        hit = self._changed(rows, self._at(rows, signs, self._radius[rows]))
        rows, signs = rows[hit], signs[hit]
        if not len(rows):
            return
        self._signs[rows], self._found[rows] = signs, True
        low, high = torch.zeros_like(self._radius[rows]), self._radius[rows].clone()
        for _ in range(9):
            coarse = (high - low > _RESOLUTION * high).nonzero().squeeze(1)
            if not len(coarse):
                break
            middle = (low[coarse] + high[coarse]) / 2
            inside = self._changed(rows[coarse], self._at(rows[coarse], signs[coarse], middle))
            high[coarse] = torch.where(inside, middle, high[coarse])
            low[coarse] = torch.where(inside, low[coarse], middle)
        self._radius[rows] = high

    def result(self) -> Tensor:
        """The nearest images found, a little beyond the boundary where that is still another label."""
        out = self._x.clone()
        rows = (self._found & self._open).nonzero().squeeze(1)
        near = self._at(rows, self._signs[rows], self._radius[rows])
        beyond = self._at(rows, self._signs[rows], self._radius[rows] * (1 + _RESOLUTION / 2))
        clear = self._changed(rows, beyond)
        out[rows] = torch.where(per_sample(clear, near), beyond, near).view(-1, *self._x.shape[1:])
        return out
