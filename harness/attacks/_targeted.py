"""Targeted cross-entropy of a batch, each image towards a wrong class of its own, for the L-BFGS attack."""

from __future__ import annotations

import math
from functools import partial
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from ..errors import UserError
from ..victims.victim import Victim, input_gradient
from ._lbfgsb import Evaluate, Evaluation
from .line_search import CHUNK, fooled, is_fooled

TINY_LOSS: Final = 1e-6
"""Losses below it are rounding: the curvature derived from them is capped there."""


def choose_target(logits: Tensor, y: Tensor, target: str, given: int | None = None) -> Tensor:
    """A wrong class for every image, int64 (N,).

    Args:
        logits: (N, K).
        y: True labels (N,).
        target: ``"second"`` is the most likely class other than y (the second most likely where the victim is right),
            ``"least"`` the least likely, ``"random"`` uniform over the K - 1 wrong ones, ``"given"`` as named.
        given: The class for ``"given"``; images of that very class get their second.

    Raises:
        UserError: ``given`` is no class of the victim.
    """
    label = y.unsqueeze(1)
    if target == "least":
        return logits.scatter(1, label, math.inf).argmin(1)
    if target == "random":
        # drawn on the CPU: the same classes on every device
        shift = torch.randint(1, logits.shape[1], (len(y),)).to(y.device)
        return (y + shift) % logits.shape[1]
    second = logits.scatter(1, label, -math.inf).argmax(1)
    if target == "second":
        return second
    assert target == "given"
    assert given is not None
    if not 0 <= given < logits.shape[1]:
        raise UserError(f"target_class must be in 0..{logits.shape[1] - 1}, got {given}")
    return torch.where(y == given, second, given)


def projected(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient without the components along which descent would leave the box [0, 1] at once."""
    moved = torch.sub(x, grad).clamp_(0, 1).sub_(x)
    return grad * moved.sign_().abs_()


class _Logistic(NamedTuple):
    """The loss -log p as softplus(s): the log-odds s = log((1 - p) / p) against the target and their gradient."""

    s: Tensor
    grad: Tensor

    @classmethod
    def of(cls, at: Evaluation) -> _Logistic:
        missing = -torch.expm1(-at.loss.clamp_min(TINY_LOSS))  # 1 - p, without cancellation
        return cls(at.loss + missing.log(), at.grad / missing.unsqueeze(1))


class TargetedLoss:
    """-log p(target | v) of many images, with the passes chunked to the size that is cheapest per image.

    With only two classes in play the loss is softplus of the log-odds against the target. Where the log-odds are
    linear in the pixels, its Hessian is p / (1 - p) grad grad^T: that is the curvature handed to the solver, and the
    model behind :meth:`first_guess` and :meth:`typical_weight`. Targets are those of :func:`choose_target`.

    Attributes:
        x: The images, flat (N, D).
        target: Target classes (N,).
        zero: The evaluation at r = 0.
        correct: Indices of the images that are classified correctly, the only ones worth attacking.
    """

    def __init__(self, victim: Victim, x: Tensor, y: Tensor, target: str, given: int | None = None) -> None:
        self.victim, self.shape, self.x, self.y = victim, x.shape[1:], x.flatten(1), y
        self._nearest: Tensor | None = None
        self._distance = self.x.new_full((len(x),), math.inf)
        targets, wrong, parts = [], [], []
        for view, images, labels in zip(
            victim.split(x, CHUNK), torch.split(x, CHUNK), torch.split(y, CHUNK), strict=True
        ):

            def objective(logits: Tensor, labels: Tensor = labels) -> Tensor:
                targets.append(choose_target(logits.detach(), labels, target, given))
                return F.cross_entropy(logits, targets[-1], reduction="none")

            loss, grad, logits = input_gradient(view, images, objective)
            parts.append((loss, grad.flatten(1)))
            wrong.append(logits.argmax(1) != labels)
        self.target = torch.cat(targets)
        self.correct = (~torch.cat(wrong)).nonzero().squeeze(1)
        self.zero = _evaluation(parts)

    def track(self) -> Tensor:
        """From now on keep the nearest misclassified point of each image; the returned (N, D) is updated in place."""
        self._nearest = self.x.clone()
        return self._nearest

    def of(self, ids: Tensor) -> Evaluate:
        """The loss of some of the images, for the solver."""
        return lambda points, index: self.evaluate(points, ids[index])

    def evaluate(self, points: Tensor, ids: Tensor) -> Evaluation:
        """Loss, gradient and curvature of images ``ids`` (n,) at ``points`` (n, D)."""
        if not len(ids):
            return self.zero.rows(ids)
        parts = []
        chunks = math.ceil(len(points) / CHUNK)
        for some, rows in zip(points.chunk(chunks), ids.chunk(chunks), strict=True):
            objective = partial(F.cross_entropy, target=self.target[rows], reduction="none")
            loss, grad, logits = input_gradient(self.victim.of(rows), some.view(-1, *self.shape), objective)
            parts.append((loss, grad.flatten(1)))
            if self._nearest is not None:
                self._record(some, rows, logits)
        return _evaluation(parts)

    def _record(self, points: Tensor, ids: Tensor, logits: Tensor) -> None:
        assert self._nearest is not None
        distance = vector_norm(points - self.x[ids], dim=1)
        nearer = (is_fooled(logits, self.y[ids]) & (distance < self._distance[ids])).nonzero().squeeze(1)
        self._nearest[ids[nearer]], self._distance[ids[nearer]] = points[nearer], distance[nearer]

    def fooled(self, ids: Tensor, points: Tensor) -> Tensor:
        """Which of images ``ids`` are misclassified at ``points`` (n, D): one forward pass each."""
        return fooled(self.victim.of(ids), points.view(-1, *self.shape), self.y[ids])

    def typical_weight(self, ids: Tensor) -> Tensor:
        """The c whose solution would lie just beyond the boundary were the log-odds linear, (n,).

        Stationarity reads c = (1 - p) ||grad s|| in the free pixels, and p = 1/2 is the boundary.
        """
        x = self.x[ids]
        slope: Tensor = vector_norm(projected(x, _Logistic.of(self.zero.rows(ids)).grad), dim=1)
        return (0.45 * slope).clamp_min(1e-12)

    def first_guess(self, ids: Tensor, c: Tensor) -> tuple[Tensor, Evaluation]:
        """The minimiser were the log-odds linear, and the evaluation there: it saves the solver ten passes.

        That minimiser is clip(x - t grad s) for some t: no shorter r gives the same log-odds. The objective along this
        path is convex; the root of c t = ||r(t)|| (1 - p(t)) is bisected. Where the victim turns out to be so far from
        linear that the objective is not below its value at r = 0, the guess is halved, at most six times. The projected
        gradient at r = 0 has to be longer than c.
        """
        x = self.x[ids]
        model = _Logistic.of(self.zero.rows(ids))
        slope = vector_norm(projected(x, model.grad), dim=1)
        # the root of the unclipped path; clipping only pushes it out
        t = (model.s - torch.logit((c / slope).clamp(1e-6, 1 - 1e-6))).clamp_min(1e-6) / slope.square()
        low, high = t / 2, t * 4
        for _ in range(8):
            t = (low * high).sqrt()
            r = torch.addcmul(x, model.grad, t.unsqueeze(1), value=-1).clamp_(0, 1).sub_(x)
            further = vector_norm(r, dim=1) * torch.sigmoid(model.s + vecdot(model.grad, r)) > c * t
            low, high = torch.where(further, t, low), torch.where(further, high, t)
        point = torch.addcmul(x, model.grad, (low * high).sqrt().unsqueeze(1), value=-1).clamp_(0, 1)
        at = self.evaluate(point, ids)
        for _ in range(6):
            value = torch.addcmul(at.loss, c, vector_norm(point - x, dim=1))
            bad = (value >= self.zero.loss[ids]).nonzero().squeeze(1)
            if not len(bad):
                break
            point[bad] = (x[bad] + point[bad]) / 2
            again = self.evaluate(point[bad], ids[bad])
            for old, new in zip(at, again, strict=True):
                old[bad] = new
        return point, at


def _evaluation(parts: list[tuple[Tensor, Tensor]]) -> Evaluation:
    loss = torch.cat([loss for loss, _ in parts])
    grad = torch.cat([grad for _, grad in parts])
    return Evaluation(loss, grad, 1 / torch.expm1(loss.clamp_min(TINY_LOSS)))
