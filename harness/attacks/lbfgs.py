"""The box-constrained L-BFGS attack of Szegedy et al. (2014), on a whole batch of images at once."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.linalg import vector_norm

from ..errors import UserError, unknown
from ..options import check_choices
from ..threat import Norm, Threat
from ..victims.victim import Victim
from ._lbfgsb import minimise
from ._targeted import TargetedLoss, projected
from .base import Attack, Kind, Targeting
from .line_search import shorten

Weight = float | Literal["dataset", "image"]

CLOSE = 1.05
"""Ratio of the bracket of c at which its search ends."""


@dataclass(frozen=True, kw_only=True)
class LBFGS(Attack):
    """Minimise c ||r||_2 + L(x + r, l) subject to x + r in [0, 1]^m.

    L is the cross-entropy towards a wrong class l. Source: Szegedy et al. 2014, section 4.1, in the form of Gu &
    Rigazio 2014, section 2.1 (the norm is not squared). Images that are misclassified as they stand are returned
    unchanged. Where the projected gradient of L at x is no longer than c, r = 0 satisfies the first-order conditions
    and x is returned: that c is too large for that image.

    Attributes:
        c: Weight of the distance, in nats per unit of L2. A number is used as it is. ``"dataset"`` is resolved by
            :meth:`prepare`: one c for all, the largest (that is the least distortion) whose error rate on the given
            images is at least ``error_rate``, as in the papers. ``"image"`` searches c for every image by bisection
            and returns the nearest misclassified point that was met, drawn back along its line to the boundary.
        target: The class l: ``"second"`` most likely, ``"least"`` likely, a ``"random"`` wrong one, or ``"given"``.
        target_class: The class for ``"given"``; an image of that very class gets its second most likely one.
        error_rate: For ``c="dataset"``, the share of images to be misclassified, in (0, 1].
        searches: Most values of c that a search tries.
        search_images: Most images that ``"dataset"`` looks at, from the front.
        memory: Curvature pairs of the solver.
        tol: The solver stops when a step changes the objective by less than this fraction. The default ends 0.3 % below
            the mean objective of SciPy's L-BFGS-B at its own defaults on LeNet, and level with it on an MLP.
        max_evaluations: Most passes an image may take for one value of c.
    """

    name: ClassVar[str] = "lbfgs"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    kind: ClassVar[Kind] = "minimal"

    c: Weight = "image"
    target: Literal["second", "random", "least", "given"] = "second"
    target_class: int | None = None
    error_rate: float = 0.99
    searches: int = 12
    search_images: int = 500
    memory: int = 5
    tol: float = 1e-4
    max_evaluations: int = 500

    def __post_init__(self) -> None:
        if isinstance(self.c, str):
            if self.c not in ("dataset", "image"):
                raise unknown("c", self.c, ("a number > 0", "dataset", "image"))
        elif not (math.isfinite(self.c) and self.c > 0):
            raise UserError(f"c must be a finite number > 0, 'dataset' or 'image', got {self.c}")
        check_choices(self)
        if (self.target == "given") != (self.target_class is not None):
            raise UserError("target='given' and target_class go together")
        if not 0 < self.error_rate <= 1:
            raise UserError(f"error_rate must be in (0, 1], got {self.error_rate}")
        if min(self.searches, self.search_images, self.memory, self.max_evaluations) < 1 or not self.tol > 0:
            raise UserError("searches, search_images, memory, max_evaluations must be >= 1 and tol > 0")

    @property
    def targeting(self) -> Targeting:
        """Towards the target instead of :attr:`target`, unless that is a class or c is to be learned."""
        return "no" if self.prepares or self.target == "given" else "rows"

    @property
    def seeks_the_nearest(self) -> bool:
        """Only with a c for every image; at a given c the answer is the minimiser, whatever lies before it."""
        return self.c == "image"

    @property
    def prepares(self) -> bool:
        """Only to search one c for the whole set."""
        return self.c == "dataset"

    def prepare(self, victim: Victim, x: Tensor, y: Tensor) -> LBFGS:
        """For ``c="dataset"``, a copy with the number found on the given images; otherwise the attack itself.

        If no c reaches the error rate, the smallest that was tried is taken: the strongest pull towards the target.
        """
        if self.c != "dataset":
            return self
        n = self.search_images
        problem = TargetedLoss(victim, x[:n], y[:n], self.target, self.target_class)
        return dataclasses.replace(self, c=self._dataset_weight(problem))

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Propose the minimiser for each image (for ``c="image"``, the nearest adversarial found).

        Raises:
            ValueError: ``c="dataset"`` without :meth:`prepare`.
        """
        if self.c == "dataset":
            raise UserError("LBFGS(c='dataset') has to be prepared on training images before it is called")
        if not len(x):
            return x
        problem = TargetedLoss(victim, x, y, self.target, self.target_class)
        if self.c == "image":
            nearest = problem.track()
            self._image_search(problem)
            return shorten(victim, x, y, nearest.view_as(x))
        out, rows = problem.x.clone(), problem.correct
        out[rows] = self._solve(problem, rows, x.new_full((len(rows),), float(self.c)))
        return out.view_as(x)

    def _solve(self, problem: TargetedLoss, rows: Tensor, c: Tensor, start: Tensor | None = None) -> Tensor:
        """Solutions (n, D) of problems ``rows`` with weights ``c`` (n,), from a first guess where ``start`` is x."""
        points = problem.x[rows].clone()
        value = problem.zero.loss[rows].clone()
        movable = vector_norm(projected(points, problem.zero.grad[rows]), dim=1) > c
        warm = torch.zeros_like(movable) if start is None else movable & (start != points).any(1)
        cold = (movable & ~warm).nonzero().squeeze(1)
        begin, first = problem.first_guess(rows[cold], c[cold])
        order = cold
        if start is not None and warm.any():
            order = torch.cat((cold, warm.nonzero().squeeze(1)))
            begin = torch.cat((begin, start[warm]))
            first = first.joined(problem.evaluate(start[warm], rows[warm]))
        found = minimise(
            problem.of(rows[order]),
            problem.x[rows[order]],
            begin,
            c[order],
            first=first,
            memory=self.memory,
            tol=self.tol,
            max_evaluations=self.max_evaluations,
        )
        better = found.values < value[order]  # r = 0 stays a candidate
        points[order[better]] = found.points[better]
        return points

    def _image_search(self, problem: TargetedLoss) -> None:
        """Bisect log c for every image; ``problem.nearest`` keeps the nearest adversarial point evaluated."""
        rows = problem.correct
        c, last = problem.typical_weight(rows), problem.x[rows]
        low, high = torch.zeros_like(c), torch.full_like(c, math.inf)
        for _ in range(self.searches):
            if not len(rows):
                break
            last = self._solve(problem, rows, c, last)
            success = problem.fooled(rows, last)
            low, high = torch.where(success, c, low), torch.where(success, high, c)
            c = _between(low, high)
            going = high > low * CLOSE
            rows, c, low, high, last = rows[going], c[going], low[going], high[going], last[going]

    def _dataset_weight(self, problem: TargetedLoss) -> float:
        """The largest c with enough errors.

        Success at one c is taken to imply success at every smaller one, so that an image is solved again only while
        its own answer is open.
        """
        rows, total = problem.correct, len(problem.x)
        if not len(rows):
            raise UserError("LBFGS(c='dataset') needs correctly classified images to search on")
        need = math.ceil(self.error_rate * total - 1e-9) - (total - len(rows))
        c, low, high = float(problem.typical_weight(rows).median()), 0.0, math.inf
        works = torch.zeros(len(rows), dtype=torch.float64, device=problem.x.device)
        fails = torch.full_like(works, math.inf)
        for _ in range(self.searches):
            undecided = ((works < c) & (c < fails)).nonzero().squeeze(1)
            if len(undecided):
                weights = problem.x.new_full((len(undecided),), c)
                # from the first guess, as run() will do it
                points = self._solve(problem, rows[undecided], weights)
                success = problem.fooled(rows[undecided], points)
                works[undecided[success]], fails[undecided[~success]] = c, c
            if int((works >= c).sum()) >= need:
                low = c
            else:
                high = c
            if high <= low * CLOSE:
                break
            c = float(_between(torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)))
        return low or high


def _between(low: Tensor, high: Tensor) -> Tensor:
    """Next value of a bisection in the logarithm; an open end is pushed out by a factor of 3."""
    return torch.where(low == 0, high / 3, torch.where(torch.isinf(high), low * 3, (low * high).sqrt()))
