"""Networks of Lee et al. 2017, table 1: a small all-convolutional classifier, and a generator of perturbations."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..threat import per_sample
from .allconv import Conv, convolution

GENERATOR: Final = (*(Conv(48) for _ in range(6)), Conv(48, kernel=1))


class PerturbationGenerator(nn.Module):
    """The trainer: from the gradient of a label's probability with respect to the image to a perturbation of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        maps = (channels, *(conv.maps for conv in GENERATOR))
        for (fan_in, _), conv in zip(pairwise(maps), GENERATOR, strict=True):
            layers += [convolution(fan_in, conv), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, convolution(maps[-1], Conv(channels, kernel=1)), nn.Tanh())

    def forward(self, gradient: Tensor) -> Tensor:
        """Perturbations in (-1, 1) like the gradients (N, C, H, W)."""
        # channels last: a quarter faster on a CPU
        layout = torch.contiguous_format if gradient.is_cuda else torch.channels_last
        perturbation: Tensor = self.layers(gradient.contiguous(memory_format=layout))
        return perturbation.contiguous()


def probability_gradient(odds: Tensor, grad: Tensor) -> Tensor:
    """The gradient of the label's probability, from the log-odds (N,) against the label and their gradient (N, ...).

    dF_y = -F_y (1 - F_y) d log((1 - F_y) / F_y), with both factors as sigmoids. Differentiating a softmax in float32
    gives nothing, or rounding errors, where 1 - F_y is below 6e-8; this keeps its digits down to 1e-38.
    """
    return -per_sample(odds.sigmoid() * (-odds).sigmoid(), grad) * grad


def generator_loss(logits: Tensor, y: Tensor, perturbation: Tensor, c: float | Tensor) -> Tensor:
    """F(x + G)_y + c ||G||_2^2 (eq. 9), a mean over the batch, from the logits (N, K) of the perturbed images."""
    probability = (-F.cross_entropy(logits, y, reduction="none")).exp()
    return (probability + c * perturbation.flatten(1).square().sum(1)).mean()
