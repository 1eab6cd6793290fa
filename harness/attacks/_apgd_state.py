"""Per-image state of an Auto-PGD run: current and best iterates, step sizes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..threat import per_sample
from .per_image_rng import Draws


@dataclass
class Rows:
    """Base of dataclasses whose tensors have a row for each image."""

    def of(self, rows: Tensor) -> Self:
        """The same for some of the images: positions (M,), or a mask (N,)."""
        rows = rows.nonzero().squeeze(1) if rows.dtype == torch.bool else rows
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: v[rows] for name, v in values.items() if isinstance(v, Tensor)})


@dataclass
class Front(Rows):
    """The images of a run that still stand.

    Attributes:
        rows: Their positions among the images that the run began with, (N,).
        target: Classes aimed at (N,), or None.
        now: Present points, like ``x``.
        grad: Ascent directions there, like ``x``.
        loss: What is climbed, at the present points, (N,).
        placed: Images that did not get to where they are by their last step, bool (N,).
        best: Points of the highest loss so far, like ``x``.
        best_grad: Ascent directions there.
        best_loss: That loss, (N,).
        best_score: The untargeted loss there, (N,).
    """

    rows: Tensor
    x: Tensor
    y: Tensor
    target: Tensor | None
    now: Tensor
    grad: Tensor
    loss: Tensor
    placed: Tensor
    best: Tensor
    best_grad: Tensor
    best_loss: Tensor
    best_score: Tensor

    @classmethod
    def at(cls, x: Tensor, y: Tensor, target: Tensor | None, start: Tensor) -> Self:
        """Images that have not been looked at yet, at the points ``start``."""
        lowest = x.new_full((len(x),), -math.inf)
        return cls(
            rows=torch.arange(len(x), device=x.device),
            x=x,
            y=y,
            target=target,
            now=start,
            grad=torch.zeros_like(x),
            loss=lowest,
            placed=torch.ones_like(lowest, dtype=torch.bool),
            best=start.clone(),
            best_grad=torch.zeros_like(x),
            best_loss=lowest.clone(),
            best_score=lowest.clone(),
        )

    def note(self, loss: Tensor, score: Tensor, grad: Tensor) -> None:
        """Take down what was found at the present points, and keep the best; losses (N,), ``score`` untargeted."""
        grad = grad.nan_to_num(0.0, 0.0, 0.0)
        outwards = torch.where(grad > 0, self.now >= 1, self.now <= 0)
        self.grad = grad.masked_fill_(outwards, 0)
        # finite, in a third of the operators: NaN is not below anything
        self.loss = torch.where((loss + score).abs() < math.inf, loss, -math.inf)
        better = self.loss > self.best_loss
        images = per_sample(better, self.now)
        self.best = torch.where(images, self.now, self.best)
        self.best_grad = torch.where(images, self.grad, self.best_grad)
        self.best_loss = torch.where(better, self.loss, self.best_loss)
        self.best_score = torch.where(better, score, self.best_score)

    def revive(self, draws: Draws, number: int) -> None:
        """Give images that have no direction a random one of this step's, from their best points."""
        dead = (~self.grad.flatten(1).any(1)).nonzero().squeeze(1)
        if len(dead):
            self._place(dead)
            self.grad[dead] = draws.fork(number).of(dead).normal(*self.grad.shape[1:])

    def step(self, points: Tensor) -> None:
        """Make ``points``, like ``x``, the present ones."""
        self.now, self.placed = points, torch.zeros_like(self.placed)

    def back(self, mask: Tensor) -> None:
        """Send images, bool (N,), back to their best points."""
        rows = mask.nonzero().squeeze(1)
        self._place(rows)
        self.grad[rows] = self.best_grad[rows]

    def forget(self, rows: Tensor, points: Tensor) -> None:
        """Take ``points`` for the best of images ``rows`` (M,), of a value not known yet."""
        self.best[rows] = points
        self.best_loss[rows] = self.best_score[rows] = -math.inf

    def _place(self, rows: Tensor) -> None:
        if not len(rows):
            return
        # not in place: the schedule remembers the same tensors
        self.now = self.now.index_copy(0, rows, self.best[rows])
        self.loss = self.loss.index_copy(0, rows, self.best_loss[rows])
        self.placed[rows] = True
