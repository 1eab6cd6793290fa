"""A box-constrained limited-memory BFGS that solves a batch of independent problems at once.

Every problem is ``min c ||v - x||_2 + loss(v)`` over v in [0, 1]^D. One round costs one evaluation of the whole
active batch, yet each problem has its own curvature memory, set of free variables and step length, and leaves the
batch as soon as it has converged.

Written for the memory bandwidth of a CPU: flat (N, D) tensors, masks held as floats (``torch.where`` on a boolean of
that size was measured at 20 times the time of a multiplication), in-place updates, history stored (memory, N, D).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

SUFFICIENT: Final = 1e-4
"""Share of the predicted decrease that a step must deliver (the Armijo constant)."""

SHORTEST: Final = 1e-4
"""Step length at which a problem is given up: nothing is left that float32 could measure."""

CURVED: Final = 1e-6
"""A pair counts only if this share of its curvature s^T y lies in the free variables."""


class Evaluation(NamedTuple):
    """A loss at one point of each of n problems.

    Attributes:
        loss: Shape (n,).
        grad: Its gradient, (n, D).
        curvature: Weights w >= 0, (n,), such that w grad grad^T is a fair guess at the Hessian of the loss; zeros
            where nothing is known of it.
    """

    loss: Tensor
    grad: Tensor
    curvature: Tensor

    def rows(self, index: Tensor) -> Evaluation:
        """The evaluation of some of the problems."""
        return Evaluation(*(part[index] for part in self))

    def joined(self, other: Evaluation) -> Evaluation:
        """The evaluation of these problems followed by others."""
        return Evaluation(*(torch.cat(pair) for pair in zip(self, other, strict=True)))


Evaluate = Callable[[Tensor, Tensor], Evaluation]
"""Called as ``evaluate(points (n, D), index (n,))``; ``index`` says which problems they belong to."""


class Solution(NamedTuple):
    """Best point (N, D) of each problem, its objective (N,), and the evaluations it took, int64 (N,)."""

    points: Tensor
    values: Tensor
    evaluations: Tensor


@torch.no_grad()
def minimise(
    evaluate: Evaluate,
    x: Tensor,
    start: Tensor,
    c: Tensor,
    *,
    first: Evaluation | None = None,
    memory: int = 5,
    tol: float = 1e-4,
    max_evaluations: int = 500,
) -> Solution:
    """Minimise ``c ||v - x||_2 + loss(v)`` over the box [0, 1]^D for every problem.

    The direction is the two-loop recursion (Nocedal & Wright 2006, algorithm 7.4) restricted to the free variables:
    those not held at a bound by the sign of their gradient. Its initial matrix is what is known of the Hessian in
    closed form, (c / ||r||) I from the norm and w grad grad^T from the loss. Steps are projected on the box. A step
    that fails to lower the objective still leaves its curvature pair behind, so that the next attempt takes half the
    step in a better direction, not in the same one; a success doubles the step, up to one.

    Args:
        evaluate: The loss; called without gradient tracking, with points inside the box.
        x: Anchors of the norm, (N, D) in [0, 1].
        start: First points, (N, D) in [0, 1], none equal to its anchor: the norm has no gradient there.
        c: Weight of the norm, positive, (N,).
        first: The evaluation at ``start``, if known already.
        memory: Curvature pairs kept.
        tol: Converged when a step lowers the objective, or predicts to lower it, by at most this fraction of it.
        max_evaluations: Most evaluations of one problem.

    Returns:
        The last accepted point of each problem, which is its best.
    """
    index = torch.arange(len(x), device=x.device)
    evaluations = torch.full((len(x),), int(first is None), device=x.device)
    batch = _Batch(x, start, c, index, evaluate(start, index) if first is None else first, memory)
    points, values = start.clone(), batch.value.clone()
    for _ in range(max_evaluations - int(first is None)):
        if not len(batch.index):
            break
        evaluations[batch.index] += 1
        done = batch.round(evaluate, tol)
        if done.any():
            ended = batch.index[done]
            points[ended], values[ended] = batch.point[done], batch.value[done]
            batch.keep((~done).nonzero().squeeze(1))
    points[batch.index], values[batch.index] = batch.point, batch.value
    return Solution(points, values, evaluations)


class _Batch:
    """The problems still running; row i of every tensor belongs to problem ``index[i]``."""

    ROWS = ("index", "x", "c", "point", "value", "slope", "norm", "grad", "curvature", "step")

    def __init__(self, x: Tensor, point: Tensor, c: Tensor, index: Tensor, first: Evaluation, memory: int) -> None:
        self.index, self.x, self.c = index, x, c
        self.point, self.grad, self.curvature = point.clone(), first.grad.clone(), first.curvature.clone()
        self.value, self.slope, self.norm = self.objective(point, first)
        self.step = torch.ones_like(self.value)
        # ring buffers: a problem without a usable pair in some round holds zeros there, which the recursion skips
        self.s = x.new_zeros(memory, *x.shape)
        self.y = torch.zeros_like(self.s)
        self.sy = x.new_zeros(memory, len(x))
        self.stored = 0

    def objective(self, point: Tensor, at: Evaluation) -> tuple[Tensor, Tensor, Tensor]:
        """Value (n,) and gradient (n, D) of the objective, and ||r|| (n,)."""
        r = point - self.x
        norm = vector_norm(r, dim=1).clamp_min_(1e-12)
        value = torch.addcmul(at.loss, self.c, norm)
        return value, torch.addcmul(at.grad, r, (self.c / norm).unsqueeze(1)), norm

    def keep(self, rows: Tensor) -> None:
        for name in self.ROWS:
            setattr(self, name, getattr(self, name)[rows])
        self.s, self.y, self.sy = self.s[:, rows], self.y[:, rows], self.sy[:, rows]

    def round(self, evaluate: Evaluate, tol: float) -> Tensor:
        """Try one step of every problem; returns which have converged, bool (n,)."""
        memory = len(self.s)
        slot = self.stored % memory
        trial = torch.addcmul(self.point, self.direction(), self.step.unsqueeze(1)).clamp_(0, 1)
        s, y = self.s[slot], self.y[slot]  # the oldest pair makes room
        torch.sub(trial, self.point, out=s)
        predicted = vecdot(self.slope, s)
        at = evaluate(trial, self.index)
        value, slope, norm = self.objective(trial, at)
        torch.sub(slope, self.slope, out=y)
        sy = vecdot(s, y)
        usable = sy > 0
        self.sy[slot] = sy * usable
        self.stored += 1

        accepted = (value <= self.value + SUFFICIENT * predicted) & (predicted < 0)
        gained = torch.where(accepted, self.value - value, predicted.abs())
        done = gained <= tol * self.value
        weight = accepted.to(value.dtype)
        row = weight.unsqueeze(1)
        # lerp with weights of exactly 0 or 1 copies rows without rounding, at the speed of an addition
        self.point.lerp_(trial, row)
        self.slope.lerp_(slope, row)
        self.grad.lerp_(at.grad, row)
        self.curvature.lerp_(at.curvature, weight)
        self.value.lerp_(value, weight)
        self.norm.lerp_(norm, weight)
        self.step *= 0.5 + 1.5 * weight
        self.step.clamp_(max=1)
        return done | (self.step < SHORTEST)

    def direction(self) -> Tensor:
        """Quasi-Newton direction in the free variables, zero in the others, (n, D)."""
        # free variables are those that a projected gradient step would move
        free = torch.sub(self.point, self.slope).clamp_(0, 1).sub_(self.point).sign_().abs_()
        memory = len(self.s)
        slots = [(self.stored - 1 - back) % memory for back in range(min(self.stored, memory))]
        q = self.slope * free
        masked, inverse, taken = [], [], []
        for slot in slots:
            y = self.y[slot] * free
            sy = vecdot(self.s[slot], y)
            inv = (sy > CURVED * self.sy[slot]) / sy.clamp_min(1e-30) * (self.sy[slot] > 0)
            a = vecdot(self.s[slot], q) * inv
            q.addcmul_(y, a.unsqueeze(1), value=-1)
            masked.append(y)
            inverse.append(inv)
            taken.append(a)
        # (b I + w g g^T)^-1 q by Sherman and Morrison; b is c / ||r||, and more while steps are being refused: there
        # must be steep directions then that no pair knows of
        b = self.c / (self.norm * self.step)
        g = self.grad * free
        shrink = self.curvature * vecdot(g, q) / torch.addcmul(b, self.curvature, vecdot(g, g))
        q.addcmul_(g, shrink.unsqueeze(1), value=-1).div_(b.unsqueeze(1))
        for slot, y, inv, a in zip(reversed(slots), reversed(masked), reversed(inverse), reversed(taken), strict=True):
            q.addcmul_(self.s[slot], (a - vecdot(y, q) * inv).unsqueeze(1))
        return q.mul_(free).neg_()
