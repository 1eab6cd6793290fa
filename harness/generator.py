"""Networks of Lee et al. 2017, table 1: a small all-convolutional classifier, and a generator of perturbations."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import UserError
from .threat import per_sample

Parts = tuple[OrderedDict[str, nn.Module], tuple[str, ...]]
"""Stages by name, and which of them give a hidden representation."""


class Conv(NamedTuple):
    """Sizes of a convolution that is followed by a ReLU; padded so that the stride alone makes images smaller."""

    maps: int
    kernel: int = 3
    stride: int = 1


CLASSIFIER: Final = (Conv(48), Conv(48, stride=2), Conv(96), Conv(96, stride=2), Conv(96), Conv(96, kernel=1))
GENERATOR: Final = (*(Conv(48) for _ in range(6)), Conv(48, kernel=1))


def classifier(shape: tuple[int, int, int], classes: int) -> Parts:
    """The trainee: seven convolutions, and the average of each class's scores over all places.

    Raises:
        UserError: Images under 4 pixels, of which two strides of 2 leave no more than one place to average over.
    """
    channels, height, width = shape
    if min(height, width) < 4:
        raise UserError(f"allconv needs images of at least 4x4 pixels, got {height}x{width}")
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    maps = (channels, *(conv.maps for conv in CLASSIFIER))
    for number, ((fan_in, _), conv) in enumerate(zip(pairwise(maps), CLASSIFIER, strict=True), start=1):
        stages[f"conv{number}"] = nn.Sequential(_convolution(fan_in, conv), nn.ReLU())
    stages["scores"] = _convolution(CLASSIFIER[-1].maps, Conv(classes, kernel=1))
    stages["logits"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return stages, tuple(name for name in stages if name.startswith("conv"))


class PerturbationGenerator(nn.Module):
    """The trainer: from the gradient of a label's probability with respect to the image to a perturbation of it.

    Args:
        channels: Of the images, of whatever height and width.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        maps = (channels, *(conv.maps for conv in GENERATOR))
        for (fan_in, _), conv in zip(pairwise(maps), GENERATOR, strict=True):
            layers += [_convolution(fan_in, conv), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, _convolution(maps[-1], Conv(channels, kernel=1)), nn.Tanh())

    def forward(self, gradient: Tensor) -> Tensor:
        """Perturbations in (-1, 1) like the gradients (N, C, H, W)."""
        # channels last: a quarter faster on a CPU; networks side by side have another layout
        beside = torch._C._functorch.is_batchedtensor(gradient)
        layout = torch.contiguous_format if gradient.is_cuda or beside else torch.channels_last
        perturbation: Tensor = self.layers(gradient.contiguous(memory_format=layout))
        return perturbation.contiguous()


def probability_gradient(odds: Tensor, grad: Tensor) -> Tensor:
    """The gradient of the label's probability, from the log-odds against the label and their gradient.

    dF_y = -F_y (1 - F_y) d log((1 - F_y) / F_y), with both factors as sigmoids. Differentiating a softmax in float32
    gives nothing, or rounding errors, where 1 - F_y is below 6e-8; this keeps its digits down to 1e-38.

    Args:
        odds: (N,), see :func:`harness.attacks.line.log_odds`.
        grad: Their gradients (N, ...).
    """
    return -per_sample(odds.sigmoid() * (-odds).sigmoid(), grad) * grad


def generator_loss(logits: Tensor, y: Tensor, perturbation: Tensor, c: float | Tensor) -> Tensor:
    """F(x + G)_y + c ||G||_2^2 (eq. 9), a mean over the batch.

    Args:
        logits: Of the perturbed images, (N, K).
        y: Labels (N,).
        perturbation: G, (N, ...).
        c: Weight of the power.
    """
    probability = (-F.cross_entropy(logits, y, reduction="none")).exp()
    return (probability + c * perturbation.flatten(1).square().sum(1)).mean()


def _convolution(fan_in: int, conv: Conv) -> nn.Conv2d:
    """With Xavier's initial weights (Glorot & Bengio 2010, eq. 16) and biases of zero."""
    made = nn.Conv2d(fan_in, conv.maps, conv.kernel, conv.stride, padding=conv.kernel // 2)
    nn.init.xavier_uniform_(made.weight)
    assert made.bias is not None
    nn.init.zeros_(made.bias)
    return made
