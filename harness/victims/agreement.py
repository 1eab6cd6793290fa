"""Agreement of two sets of answers to the same images, up to rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from ..schema.models import Agreement


def agreement(first: Tensor, second: Tensor) -> Agreement:
    """Compare logits (N, K) with what should be the same; what is not finite differs by the whole of the largest."""
    scale = first.abs().max().clamp_min(1e-30)
    change = ((first - second).abs().amax(1) / scale).nan_to_num(1.0, posinf=1.0)
    differ = change > rounding(first.dtype)
    return Agreement(
        images=len(first),
        differ=int(differ.sum()),
        labels=int((differ & (first.argmax(1) != second.argmax(1))).sum()),
        change=float(change.max()) if len(change) else 0.0,
    )


def rounding(dtype: torch.dtype) -> float:
    """Relative change of a logit that a batch of another size may cause: sums are made in another order.

    Deep networks in float32 show up to 1e-5, in half precision up to a hundredth.
    """
    return 1e-3 if dtype in (torch.float32, torch.float64) else 3e-2
