"""The L1 half of Auto-PGD: exact projection onto ball and box, and sparse steps (Croce & Hein 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..threat import per_sample
from ._apgd_state import Front, Rows
from .per_image_rng import Draws


def project_l1_box(x: Tensor, points: Tensor, eps: Tensor) -> Tensor:
    """Euclidean projection onto the L1 ball around each image intersected with the box [0, 1].

    Clipping after a projection onto the ball alone leaves part of the budget unused. In the exact projection pixel i
    moves towards its point by max(0, min(|d_i| - s, room_i)), where room_i is its way to the box and s >= 0 is the
    smallest shrinkage that keeps the budget (Croce & Hein 2021, proposition 2.1). The length is piecewise linear in s,
    with knots at |d_i| and |d_i| - room_i: s is found exactly by sorting them, in float64. Images (N, C, H, W) lie in
    [0, 1], radii (N,) are >= 0.
    """
    clean, delta = x.flatten(1), (points - x).flatten(1)
    size, room = delta.abs(), torch.where(delta > 0, 1 - clean, clean)
    move = torch.minimum(size, room)
    over = (move.sum(1) > eps).nonzero().squeeze(1)
    if len(over):
        far, free = size[over].double(), room[over].double()
        knots, order = torch.cat((far, (far - free).clamp_min(0)), 1).sort(dim=1, descending=True)
        # as s falls past |d_i| pixel i starts to move, past |d_i| - room_i it has arrived
        moving = torch.where(order < far.shape[1], 1.0, -1.0).to(far).cumsum(1)
        gained = (knots[:, :-1] - knots[:, 1:]) * moving[:, :-1]
        length = torch.cat((torch.zeros_like(knots[:, :1]), gained.cumsum(1)), 1)
        # the knot at which the budget is used up for the first time, and the way back from there
        radius = eps[over].double().unsqueeze(1)
        knot = (length < radius).sum(1, keepdim=True).clamp_max(knots.shape[1] - 1)
        slope = moving.gather(1, (knot - 1).clamp_min(0)).clamp_min(1)
        shrinkage = knots.gather(1, knot) + (length.gather(1, knot) - radius) / slope
        move[over] = torch.minimum((far - shrinkage).clamp_min(0), free).to(move)
    return (clean + delta.sign() * move).clamp(0, 1).view_as(x)


@dataclass
class Sparse(Rows):
    """Radius, step and sparsity of every image; see :class:`.apgd.APGD`.

    Attributes:
        factor: Present radius of each image as a multiple of eps: 3, 2 or 1, (N,).
        size: Length of its steps, (N,).
        sparsity: Pixels that a step moves, (N,), rounded down.
        support: Pixels in which its best point differed from x at the last checkpoint, (N,).
        entered: Images that have just changed to a smaller ball, bool (N,).
    """

    eps: float
    steps: int
    factor: Tensor
    size: Tensor
    sparsity: Tensor
    support: Tensor
    entered: Tensor

    @classmethod
    def begin(cls, x: Tensor, eps: float, steps: int) -> Self:
        """All images at the largest radius, with steps of that length over a fifth of the pixels."""
        pixels = x.new_full((len(x),), float(x[0].numel()))
        factor = torch.full_like(pixels, 3.0)
        entered = torch.zeros_like(pixels, dtype=torch.bool)
        return cls(eps, steps, factor, factor * eps, pixels / 5, pixels, entered)

    @property
    def valid(self) -> Tensor:
        """Which images are within the threat's own radius, bool (N,)."""
        return self.factor == 1

    def start(self, x: Tensor, draws: Draws) -> Tensor:
        """Projected Gaussian noise."""
        return project_l1_box(x, x + draws.normal(*x.shape[1:]), self.factor * self.eps)

    def review(self, number: int, front: Front, hit: Tensor) -> None:
        """Shrink balls that are due or ``hit``, and at checkpoints set sparsity and step from the best points."""
        due = 3.0 - (number >= int(0.3 * self.steps)) - (number >= int(0.6 * self.steps))
        factor = torch.where(hit, self.factor - 1, self.factor).clamp(1, due)
        self.entered = factor < self.factor
        self.factor = factor
        radius = factor * self.eps
        checkpoint = number > 0 and number % max(int(0.04 * self.steps), 1) == 0
        if not checkpoint and not self.entered.any():
            return
        smaller = self.entered.nonzero().squeeze(1)
        front.forget(smaller, project_l1_box(front.x[smaller], front.best[smaller], radius[smaller]))
        support = (front.best != front.x).flatten(1).sum(1).to(self.support)
        fewer = support < 0.95 * self.support
        size = torch.where(fewer, radius, torch.maximum(self.size / 1.5, radius / 10))
        changed = self.entered | checkpoint
        self.size = torch.where(self.entered, radius, torch.where(changed, size, self.size))
        self.sparsity = torch.where(changed, support / 1.5, self.sparsity)
        self.support = torch.where(changed, support, self.support)
        front.back(fewer & changed & ~self.entered)

    def move(self, front: Front) -> Tensor:
        """The next points, like ``x``: equal steps along the largest components; where the ball shrank, the best."""
        grad = front.grad.flatten(1)
        size = grad.abs()
        count = self.sparsity.long().clamp(1, grad.shape[1])
        least = size.topk(int(count.max()), dim=1).values.gather(1, (count - 1).unsqueeze(1))
        step = grad.sign() * (size >= least)
        step = step * (self.size / step.abs().sum(1).clamp_min(1)).unsqueeze(1)
        moved = project_l1_box(front.x, front.now + step.view_as(front.now), self.factor * self.eps)
        return torch.where(per_sample(self.entered, moved), front.best, moved)
