"""Losses that iterated attacks maximise, one value per image; none of them saturates."""

from __future__ import annotations

import math
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from .line_search import log_odds

Loss = Literal["ce", "dlr", "margin"]

LOSSES: Final[tuple[Loss, ...]] = get_args(Loss)


def objective(loss: Loss, logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """The value to be maximised, (N,): against the label, or in favour of a target class.

    * ``"ce"``: the log-odds against y, log((1 - p_y) / p_y), or for a target t, log(p_t / (1 - p_t)). The cross-entropy
      is a monotone function of it with a positive multiple of its gradient: sign and normalised steps are the same, and
      so is the order of any two points. But the cross-entropy and its gradient underflow to zero once the logits are
      some 20 apart, and the log-odds then turn into the margin.
    * ``"margin"``: max_{j != y} z_j - z_y, or z_t - z_y (Carlini & Wagner 2017, section IV.A, f_6, without its bound).
    * ``"dlr"``: the margin over z_(1) - z_(3), or for a target over z_(1) - (z_(3) + z_(4)) / 2, where z_(k) is the
      k-th largest logit (Croce & Hein 2020, eqs. 6 and 7). It needs 3 classes, with a target 4; with fewer it is the
      margin, as it is where the denominator vanishes.

    The points that margin and DLR lead to do not depend on the scale of the logits.

    Args:
        loss: One of :data:`LOSSES`.
        logits: (N, K), K >= 2.
        y: Labels (N,).
        target: Wrong classes (N,); ``None`` for any.
    """
    if loss == "ce":
        return log_odds(logits, y) if target is None else -log_odds(logits, target)
    label = y.unsqueeze(1)
    own = logits.gather(1, label).squeeze(1)
    if target is None:
        margin = logits.scatter(1, label, -math.inf).amax(1) - own
    else:
        margin = logits.gather(1, target.unsqueeze(1)).squeeze(1) - own
    needed = dlr_classes(targeted=target is not None)
    if loss == "margin" or logits.shape[1] < needed:
        return margin
    top = logits.topk(needed, dim=1).values
    spread = top[:, 0] - top[:, 2:].mean(1)
    return margin / torch.where(spread > 0, spread, 1)


def dlr_classes(*, targeted: bool) -> int:
    """Classes that the difference-of-logits ratio needs: it divides by a span of as many logits."""
    return 4 if targeted else 3


def likely_rivals(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """The most likely wrong classes of logits (N, K), likeliest first, int64 (N, min(count, K - 1)); ``count`` >= 1."""
    others = logits.scatter(1, y.unsqueeze(1), -math.inf)
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices
