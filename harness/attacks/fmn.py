"""The nearest adversarial by gradients: the fast minimum-norm attack (Pintor et al. 2021), in four norms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from ..errors import UserError
from ..threat import Norm, Threat, magnitude, per_sample, project_ball
from ..victims.victim import Victim, input_gradient
from ._apgd_l1 import project_l1_box
from .base import Attack, Kind, Targeting
from .line_search import CHUNK, diameter, is_fooled, log_odds, logit_size, shorten
from .losses import objective
from .per_image_rng import Draws
from .square import unscaled

HEAT: Final = 0.2
"""First width of the smoothed maximum over the wrong classes, as a share of the clean margin."""

MEMORY: Final = 0.3
"""Weight of the newest gradient in the average that chooses the pixels in L0."""

LAST: Final = 0.01
"""Last step size, relative change of the radius and width of the maximum, as a share of the first."""

CALLS: Final = 8
"""Calls of a stochastic victim in which it has to be wrong every time."""

OUTWARD: Final = 1.05
ROUNDS: Final = 30
"""How :func:`settle` moves an image for which it is not, and how often at most."""


@dataclass(frozen=True, kw_only=True)
class MinimumNorm(Attack):
    """Gradient steps in a ball whose radius follows the boundary: the fast minimum-norm attack (FMN).

    Source: Pintor et al. 2021, algorithm 1. While an image has no adversarial, its radius is the present distance plus
    the distance to the linearised boundary, margin over the dual norm of the gradient. From then on it shrinks by the
    factor 1 - gamma where the image is adversarial, and never beyond the best distance, and grows by 1 + gamma where
    it is not. Step sizes and gamma fall along half a cosine to a hundredth.

    Where this departs from the paper:

    * The climbed loss is the margin with a smoothed maximum, T log sum_{j != y} exp(z_j / T) - z_y with T a fifth of
      the clean margin, and falling as the steps do. At first every class in reach pulls, in the end only the nearest:
      on an MLP on MNIST a hard maximum ended 7 % farther away (75th percentile in L2).
    * The logits z are taken over their standard deviation, so that neither their scale matters nor a factor that
      varies over image space and drowns their gradient: with such a factor every digit was broken in L-infinity on an
      MLP, at the distances found without it, instead of 7 %. On honest models the distances hardly change.
    * Gradient components that push a pixel out of the box are zero. Without this, L2 runs on MNIST spend their steps
      on black pixels and stall (success 4 %).
    * Steps are steepest in the norm: eps times the sign in L-infinity, eps times the unit gradient in L2, the unit
      gradient in L1, with the exact projection onto ball and box. In L0 there is no step: the next point is the exact
      maximiser of the linearised loss over ball and box, the pixels of the largest gain moved to the end of the box,
      under an average of the gradients. On LeNet on MNIST the paper's steps needed a fifth more pixels.
    * Further restarts begin at a random point as far away as the best adversarial (anywhere in the box, if there is
      none), and set the classes that led to earlier ones aside until every class had its turn.
    * Where the gradient is zero or not finite, a random direction takes its place.
    * What was found is drawn back along its line to the boundary, except in L0; on a stochastic victim it is then moved
      outward until it is no matter of luck (:func:`settle`).

    Images that are misclassified as they stand, and images never broken, come back as they are. Random numbers belong
    to the image, so that the batch does not matter. An image takes ``1 + restarts * steps + 12`` forward and
    ``restarts * steps`` backward passes at most (a stochastic victim some forward passes more).

    Attributes:
        steps: Points looked at in each run.
        restarts: Runs, the first from the image itself.
        gamma: First relative change of the radius, in (0, 1); the last is a hundredth of it.

    Raises:
        UserError: A field out of range.
    """

    name: ClassVar[str] = "fmn"
    kind: ClassVar[Kind] = "minimal"
    targeting: ClassVar[Targeting] = "rows"
    averages_losses: ClassVar[bool] = True

    steps: int = 100
    restarts: int = 1
    gamma: float = 0.2

    def __post_init__(self) -> None:
        if min(self.steps, self.restarts) < 1:
            raise UserError(f"steps and restarts must be >= 1, got {self.steps} and {self.restarts}")
        if not 0 < self.gamma < 1:
            raise UserError(f"gamma must be in (0, 1), got {self.gamma}")

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Propose the nearest adversarial found for each image."""
        if not len(x):
            return x
        out, draws = x.clone(), Draws(x)
        for rows in torch.arange(len(x), device=x.device).split(CHUNK):  # type: ignore[no-untyped-call]
            with torch.no_grad():
                logits = victim.of(rows)(x[rows])
                right = ~is_fooled(logits, y[rows])
                if victim.remedy.stochastic:
                    right = ~always_wrong(victim.of(rows), x[rows], y[rows])
            rows = rows[right]
            if len(rows):
                out[rows] = self._nearest(victim.of(rows), x[rows], y[rows], threat.norm, logits[right], draws.of(rows))
        return out

    def _nearest(self, victim: Victim, x: Tensor, y: Tensor, norm: Norm, clean: Tensor, draws: Draws) -> Tensor:
        """The best of all runs, for correctly classified images with logits ``clean``."""
        clean = unscaled(clean).to(x)
        heat = torch.maximum(-HEAT * objective("margin", clean, y), 1e-6 * logit_size(clean, y)).clamp_min(1e-30)
        best, least = x, x.new_full((len(x),), math.inf)
        label = torch.zeros_like(clean, dtype=torch.bool).scatter(1, y.unsqueeze(1), True)
        aside = torch.zeros_like(label)
        for restart in range(self.restarts):
            own = draws.fork(restart)
            start = x if restart == 0 else _start(x, norm, least, own)
            found, size, adopted = self._run(victim, x, y, norm, start, heat, aside, own)
            nearer = size < least
            best, least = torch.where(per_sample(nearer, x), found, best), torch.where(nearer, size, least)
            aside = aside | (torch.zeros_like(aside).scatter(1, adopted.unsqueeze(1), True) & ~label)
            aside = aside & ~(aside | label).all(1, keepdim=True)
        best = best if norm == "l0" else shorten(victim, x, y, best)
        return settle(victim, x, y, best)

    def _run(
        self, victim: Victim, x: Tensor, y: Tensor, norm: Norm, now: Tensor, heat: Tensor, aside: Tensor, draws: Draws
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One run from ``now``: nearest adversarials, their distances (infinite: none), and their classes (y: none)."""
        best, adopted, average = x, y, torch.zeros_like(x)
        least = eps = x.new_full((len(x),), math.inf)

        for step in range(self.steps):
            decay = LAST + (1 - LAST) * (1 + math.cos(math.pi * step / self.steps)) / 2
            warmth = decay * heat

            def climbed(logits: Tensor, warmth: Tensor = warmth) -> Tensor:
                return warmth * log_odds(unscaled(logits).masked_fill(aside, -math.inf) / warmth.unsqueeze(1), y)

            _, grad, logits = input_gradient(victim, now, climbed)
            size = magnitude(now - x, norm)
            hit = is_fooled(logits, y) & (size > 0)  # at x itself it is luck, on a stochastic victim
            nearer = hit & (size < least)
            best, least = torch.where(per_sample(nearer, x), now, best), torch.where(nearer, size, least)
            # the class climbed towards: there, one set aside may have been nearer still
            aim = logits.masked_fill(aside, -math.inf).scatter(1, y.unsqueeze(1), -math.inf).argmax(1)
            adopted = torch.where(nearer, aim, adopted)
            if step == self.steps - 1:
                break
            grad = grad.nan_to_num(0.0, 0.0, 0.0)
            if norm != "l0":  # whose points are not reached by steps
                grad = grad.masked_fill(((now <= 0) & (grad < 0)) | ((now >= 1) & (grad > 0)), 0)
            dual = {"linf": 1.0, "l2": 2.0}.get(norm, math.inf)
            slope = torch.linalg.vector_norm(grad.flatten(1), ord=dual, dim=1)
            dead = (slope == 0).nonzero().squeeze(1)
            if len(dead):
                grad[dead] = draws.fork(step).of(dead).normal(*x.shape[1:])
            gap = objective("margin", unscaled(logits), y).abs().to(x) / slope.clamp_min(1e-30)
            eps = _radius(norm, eps, size, least, gap, hit, self.gamma * decay).clamp(max=diameter(x, norm))
            if norm == "l0":
                grad = grad / per_sample(magnitude(grad, "linf"), x)
                average = grad if step == 0 else average + MEMORY * (grad - average)
                now = _corner(x, average, eps)
            else:
                now = _step(x, now, grad, norm, eps, decay)
        return best, least, adopted


@torch.no_grad()
def always_wrong(victim: Victim, x: Tensor, y: Tensor) -> Tensor:
    """Who is misclassified, by a stochastic victim in every one of :data:`CALLS` calls; bool (N,)."""
    wrong = torch.ones_like(y, dtype=torch.bool)
    for _ in range(CALLS if victim.remedy.stochastic else 1):
        parts = zip(victim.split(x, CHUNK), torch.split(x, CHUNK), strict=True)
        wrong &= torch.cat([view(part).argmax(1) for view, part in parts]) != y
    return wrong


@torch.no_grad()
def settle(victim: Victim, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    """Move what lies on the boundary of a stochastic victim to where it is wrong time after time; not what is ``x``.

    The nearest point at which one of many calls was wrong is one of luck: with noise of 0.15 on the input, 17 % of such
    points for digits were judged adversarial by the majority of 25 calls, and 95 % after this. A deterministic victim
    (a remedy of one draw) is not asked at all.

    Returns:
        Images in [0, 1] on the rays from ``x`` through ``x_adv``, farther by 5 % for every round in which one of
        8 calls gave the label; after 30 rounds they are given up where they are.
    """
    out = x_adv.clone()
    rows = (x_adv != x).flatten(1).any(1).nonzero().squeeze(1)
    for _ in range(ROUNDS if victim.remedy.stochastic else 0):
        if not len(rows):
            break
        rows = rows[~always_wrong(victim.of(rows), out[rows], y[rows])]
        out[rows] = (x[rows] + OUTWARD * (out[rows] - x[rows])).clamp(0, 1)
    return out


def _radius(norm: Norm, eps: Tensor, size: Tensor, least: Tensor, gap: Tensor, hit: Tensor, gamma: float) -> Tensor:
    """Next radii, (N,), from the present ones (infinite at first) and the distances of points and best adversarials.

    ``gap``: linearised distances from the points to the boundary; ``hit``: whether they are adversarial.
    """
    first, known = eps.isinf(), least.isfinite()
    last = torch.where(first, size, eps)
    smaller, larger = last * (1 - gamma), last * (1 + gamma)
    missing = torch.maximum(size + gap, size * (1 + gamma))
    if norm == "l0":
        smaller, larger = torch.minimum(smaller, last - 1), torch.maximum(larger, last + 1)  # a pixel at least
        missing = torch.where(first, missing, larger)
    radius = torch.where(hit, torch.minimum(smaller, least), torch.where(known, larger, missing))
    # an adversarial of as many pixels is no better than the best
    return torch.minimum(radius, least - 1).floor().clamp_min(1) if norm == "l0" else radius


def _step(x: Tensor, now: Tensor, grad: Tensor, norm: Norm, eps: Tensor, share: float) -> Tensor:
    """The next points, like ``x``: steepest steps, projected onto balls of radius ``eps`` (N,) and the box."""
    radius = per_sample(eps, x)
    if norm == "linf":
        return torch.minimum(torch.maximum(now + share * radius * grad.sign(), x - radius), x + radius).clamp(0, 1)
    unit = grad / per_sample(magnitude(grad, "l2"), x)
    if norm == "l1":
        return project_l1_box(x, now + share * unit, eps)
    delta = (now - x + share * radius * unit) / radius.clamp_min(1e-30)
    return (x + radius * project_ball(delta, "l2", 1.0)).clamp(0, 1)


def _corner(x: Tensor, grad: Tensor, eps: Tensor) -> Tensor:
    """Images with the ``eps`` (N,) components of the largest linear gain moved to the end of the box."""
    end = (grad > 0).to(x.dtype)
    gain = (grad * (end - x)).flatten(1)
    rank = torch.arange(gain.shape[1], device=x.device).expand_as(gain)
    first = rank < eps.unsqueeze(1)
    chosen = torch.zeros_like(first).scatter(1, gain.argsort(dim=1, descending=True, stable=True), first)
    return torch.where(chosen.view_as(x), end, x)


def _start(x: Tensor, norm: Norm, radius: Tensor, draws: Draws) -> Tensor:
    """Random images (N, C, H, W) in the box at distance ``radius`` (N,) at most; a random corner of it for infinity."""
    noise = draws.normal(*x.shape[1:])
    radius = radius.clamp(max=diameter(x, norm))
    if norm == "l0":
        return _corner(x, noise, radius)
    if norm == "l1":
        return project_l1_box(x, x + noise * per_sample(radius, x), radius)
    direction = noise.sign() if norm == "linf" else noise / per_sample(magnitude(noise, "l2"), x)
    return (x + per_sample(radius, x) * direction).clamp(0, 1)
