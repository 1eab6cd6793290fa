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
from .trace import Uncovered

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


@dataclass(eq=False)
class Network:
    """A model taken apart."""

    model: Stages

    @torch.no_grad()
    def bounds(self, x: Tensor, y: Tensor, threat: Threat) -> Certificate:
        """Bound the margin of images (N, C, H, W) in [0, 1] with labels (N,) in a threat's ball, by intervals."""
        assert threat.eps is not None
        # every norm's ball lies in the box of its radius
        eps, x = threat.eps * (1 + TOLERANCE) + 1e-9, x.double()
        worst = worst_margins(self.model, Box((x - eps).clamp(0, 1), (x + eps).clamp(0, 1)), y)
        margins = -worst.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
        return Certificate(margins > SLACK, margins)


def prepare(model: nn.Module, x: Tensor) -> Network:
    """Take a model apart once, for bounds at several eps.

    Raises:
        Uncovered: There is no bound for it.
    """
    if not isinstance(model, Stages):
        raise Uncovered(type(model).__name__)
    network = copy.deepcopy(model).double()
    try:
        with torch.no_grad():
            worst_margins(network, Box(x[:1].double(), x[:1].double()), x.new_zeros(1, dtype=torch.int64))
    except UserError as error:
        raise Uncovered(str(error)) from None
    return Network(network)


def certify(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Certificate:
    """Prove what can be proved at one eps; a model that is not covered raises nothing, the result says so."""
    try:
        return prepare(model, x).bounds(x, y, threat)
    except Uncovered as error:
        nothing = torch.full((len(x),), torch.nan, dtype=torch.float64)
        return Certificate(nothing > 0, nothing, str(error))
