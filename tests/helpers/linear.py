"""The worst case on a linear victim."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.selftest.linear_victim import LinearVictim
from harness.threat import EXPONENT, Norm, dual_exponent


def worst_loss(victim: LinearVictim, x: Tensor, y: Tensor, norm: Norm, eps: float) -> Tensor:
    """Largest cross-entropy of y within eps of x, (N,), where there are two classes: in closed form."""
    normal = victim.weight[1 - y] - victim.weight[y]
    margin = (normal * x.flatten(1)).sum(1) + victim.bias[1 - y] - victim.bias[y]
    slope = torch.linalg.vector_norm(normal, ord=dual_exponent(EXPONENT[norm]), dim=1)
    return F.softplus(margin + eps * slope)
