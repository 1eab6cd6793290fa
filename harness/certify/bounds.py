"""Interval bounds of sequences of stages: the simplest certificate."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..models.stages import Stages
from ..threat import TOLERANCE, Threat
from ..training.interval import Box, worst_margins

SLACK: Final = 1e-5
"""Margin that is not believed: float32 logits differ from those in float64 by up to 7e-6."""


@dataclass(frozen=True)
class Certificate:
    """What is proved of some images.

    Attributes:
        certified: Which of them no image that the referee grants is misclassified for; bool (N,).
        margins: Lower bound of the smallest margin, float64 (N,).
        uncovered: The operation that there is no bound for, "" if there are bounds of all; nothing is certified then.
    """

    certified: Tensor
    margins: Tensor
    uncovered: str = ""


@torch.no_grad()
def certify(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Certificate:
    """Bound the margin of images (N, C, H, W) in [0, 1] with labels (N,) in a threat's ball, by intervals."""
    none = torch.full((len(x),), -torch.inf, dtype=torch.float64)
    if threat.eps is None or not isinstance(model, Stages):
        return Certificate(none > 0, none, type(model).__name__)
    # every norm's ball lies in the box of its radius
    eps = threat.eps * (1 + TOLERANCE) + 1e-9
    x = x.double()
    try:
        worst = worst_margins(copy.deepcopy(model).double(), Box((x - eps).clamp(0, 1), (x + eps).clamp(0, 1)), y)
    except UserError as error:
        return Certificate(none > 0, none, str(error))
    margins = -worst.scatter(1, y.unsqueeze(1), -torch.inf).amax(1).cpu()
    return Certificate(margins > SLACK, margins)
