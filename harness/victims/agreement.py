"""Whether two answers of a model to the same images are the same, but for rounding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Agreement:
    """How two sets of logits of the same images differ.

    Attributes:
        images: Their number.
        differ: Images whose logits differ by more than rounding.
        labels: Images whose label is another one, and not by rounding alone.
        change: Largest change of a logit, in units of the largest logit.
    """

    images: int
    differ: int
    labels: int
    change: float

    @classmethod
    def of(cls, first: Tensor, second: Tensor) -> Agreement:
        """Compare logits (N, K) with what should be the same."""
        scale = first.abs().max().clamp_min(1e-30)
        change = (first - second).abs().amax(1) / scale
        differ = change > rounding(first.dtype)
        labels = differ & (first.argmax(1) != second.argmax(1))
        return cls(len(first), int(differ.sum()), int(labels.sum()), float(change.max()) if len(change) else 0.0)


def rounding(dtype: torch.dtype) -> float:
    """Relative change of a logit that a batch of another size may cause: sums are made in another order.

    Deep networks in float32 show up to 1e-5, in half precision up to a hundredth.
    """
    return 1e-3 if dtype in (torch.float32, torch.float64) else 3e-2
