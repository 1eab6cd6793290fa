"""Searches along a line, all images at once and forward passes only."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from ..threat import Norm, magnitude, per_sample
from ..victims.victim import Victim

CHUNK: Final = 128
"""Images a pass: beyond about 100 neither an MLP nor a convolutional net gets cheaper per image on a CPU core."""

CLEAR: Final = 1e-5
"""Margin, as a share of the largest logit, from which on an image counts as fooled: rounding differs between batch
sizes by about a tenth of it, so that a proposal on the boundary would be judged by chance."""

MASKED: Final = 100
"""A logit so many times as large as those of the label and its strongest rival masks a class that is none (by -1e6,
say), and tells nothing of the rounding of those two."""


def diameter(x: Tensor, norm: Norm) -> float:
    """Length of the diagonal of the box [0, 1] that holds one image of ``x``: no perturbation is longer; not for L0."""
    return float(magnitude(torch.ones(1, x[0].numel()), norm))


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """log((1 - p_y) / p_y), (N,), of logits (N, K) and labels (N,): grows with the loss, but never saturates."""
    label = y.unsqueeze(1)
    return logits.scatter(1, label, -torch.inf).logsumexp(1) - logits.gather(1, label).squeeze(1)


def is_fooled(logits: Tensor, y: Tensor) -> Tensor:
    """Which images are misclassified by a clear margin; logits (N, K), labels (N,), result bool (N,)."""
    own, other = label_and_rival(logits, y)
    return other - own > CLEAR * largest_unmasked(logits, own, other)


def is_taken_for(logits: Tensor, target: Tensor) -> Tensor:
    """Which images are classified as their target by a clear margin; logits (N, K), targets (N,), result bool (N,)."""
    own, other = label_and_rival(logits, target)
    return own - other > CLEAR * largest_unmasked(logits, own, other)


def logit_size(logits: Tensor, y: Tensor) -> Tensor:
    """Magnitude of logits (N, K), (N,): of the largest that is no mask, see :data:`MASKED`."""
    return largest_unmasked(logits, *label_and_rival(logits, y))


def label_and_rival(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of logits (N, K), that of a class (N,) and the largest of any other, both (N,)."""
    label = y.unsqueeze(1)
    return logits.gather(1, label).squeeze(1), logits.scatter(1, label, -torch.inf).amax(1)


def largest_unmasked(logits: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """As :func:`logit_size`, of what :func:`label_and_rival` found."""
    sizes, most = logits.abs(), MASKED * torch.maximum(own.abs(), other.abs())
    return torch.where(sizes <= most.unsqueeze(1), sizes, 0).amax(1)


@torch.no_grad()
def fooled(victim: Victim, x: Tensor, y: Tensor) -> Tensor:
    """Which images (N, C, H, W) are clearly misclassified, bool (N,); one forward pass each."""
    if not len(x):
        return torch.zeros_like(y, dtype=torch.bool)
    parts = zip(victim.split(x, CHUNK), torch.split(x, CHUNK), torch.split(y, CHUNK), strict=True)
    return torch.cat([is_fooled(view(images), labels) for view, images, labels in parts])


@torch.no_grad()
def first_crossing(
    victim: Victim,
    x: Tensor,
    y: Tensor,
    direction: Tensor,
    largest: float,
    *,
    ratio: float = 1.3,
    halvings: int = 10,
    boxed: bool = True,
) -> Tensor:
    """Shortest step along a fixed direction that changes the prediction, up to the resolution of a grid.

    Steps grow geometrically from ``largest / 10000`` to ``largest``; an image leaves as soon as one fools the victim,
    and its step is then refined by bisection. Boundaries crossed twice between neighbouring steps go unseen.

    Args:
        victim: The model.
        x: Images (N, C, H, W) in [0, 1].
        y: Labels (N,).
        direction: Directions like ``x``.
        largest: Longest step, in multiples of ``direction``.
        ratio: Quotient of neighbouring steps, > 1.
        halvings: Bisections of the last interval.
        boxed: Whether every step is clipped to [0, 1].

    Returns:
        Images: on the far side of the first crossing; ``x`` where it is misclassified already, and where
        no step fools.
    """

    def moved(rows: Tensor, length: Tensor | float) -> Tensor:
        far = per_sample(length, x) if isinstance(length, Tensor) else length
        images = x[rows] + far * direction[rows]
        return images.clamp(0, 1) if boxed else images

    open_ = (~fooled(victim, x, y)).nonzero().squeeze(1)
    step, previous, found = x.new_zeros(len(x)), 0.0, x.clone()
    low, high = step.clone(), step.clone()
    size = largest / 10000
    while len(open_):
        hit = fooled(victim.of(open_), moved(open_, size), y[open_])
        low[open_[hit]], high[open_[hit]] = previous, size
        open_ = open_[~hit]
        if size >= largest:
            break
        previous, size = size, min(size * ratio, largest)
    rows = high.nonzero().squeeze(1)
    low, high = low[rows], high[rows]
    for _ in range(halvings if len(rows) else 0):
        middle = (low + high) / 2
        hit = fooled(victim.of(rows), moved(rows, middle), y[rows])
        low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
    found[rows] = moved(rows, high)
    return found


@torch.no_grad()
def shorten(victim: Victim, x: Tensor, y: Tensor, x_adv: Tensor, *, halvings: int = 10) -> Tensor:
    """Draw adversarial images back towards the clean ones, as far as bisection finds them misclassified.

    Args:
        victim: The model.
        x: Clean images (N, C, H, W) in [0, 1].
        y: Labels (N,).
        x_adv: Proposals like ``x``; those that fool nobody, and those equal to ``x``, come back as they are.
        halvings: Bisections; the excess that is left is the distance over 2 ** halvings.

    Returns:
        Images like ``x`` in [0, 1], never farther than ``x_adv``.
    """
    rows = ((x_adv != x).flatten(1).any(1) & fooled(victim, x_adv, y)).nonzero().squeeze(1)
    rows = rows[~fooled(victim.of(rows), x[rows], y[rows])]
    victim, start, labels, delta = victim.of(rows), x[rows], y[rows], x_adv[rows] - x[rows]
    low, high = x.new_zeros(len(rows)), x.new_ones(len(rows))
    for _ in range(halvings if len(rows) else 0):
        middle = (low + high) / 2
        hit = fooled(victim, (start + per_sample(middle, x) * delta).clamp(0, 1), labels)
        low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
    out = x_adv.clone()
    out[rows] = torch.where(per_sample(high, x) < 1, (start + per_sample(high, x) * delta).clamp(0, 1), x_adv[rows])
    return out
