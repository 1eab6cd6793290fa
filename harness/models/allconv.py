"""The all-convolutional classifier of Lee et al. (2017)."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Final, NamedTuple

from torch import nn

from ..errors import UserError
from .stages import Shape, Stages


class Conv(NamedTuple):
    """Sizes of a convolution that is followed by a ReLU; padded so that the stride alone makes images smaller."""

    maps: int
    kernel: int = 3
    stride: int = 1


CLASSIFIER: Final = (Conv(48), Conv(48, stride=2), Conv(96), Conv(96, stride=2), Conv(96), Conv(96, kernel=1))


def classifier(shape: Shape, classes: int) -> Stages:
    """Seven convolutions, no dense layer, scores averaged over places (Lee et al. 2017, table 1, the classifier).

    Raises:
        UserError: Images under 4 pixels, of which two strides of 2 leave no more than one place to average over.
    """
    channels, height, width = shape
    if min(height, width) < 4:
        raise UserError(f"allconv needs images of at least 4x4 pixels, got {height}x{width}")
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    maps = (channels, *(conv.maps for conv in CLASSIFIER))
    for number, ((fan_in, _), conv) in enumerate(zip(pairwise(maps), CLASSIFIER, strict=True), start=1):
        stages[f"conv{number}"] = nn.Sequential(convolution(fan_in, conv), nn.ReLU())
    stages["scores"] = convolution(CLASSIFIER[-1].maps, Conv(classes, kernel=1))
    stages["logits"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Stages(stages, tuple(name for name in stages if name.startswith("conv")))


def convolution(fan_in: int, conv: Conv) -> nn.Conv2d:
    """With Xavier's initial weights (Glorot & Bengio 2010, eq. 16) and biases of zero."""
    made = nn.Conv2d(fan_in, conv.maps, conv.kernel, conv.stride, padding=conv.kernel // 2)
    nn.init.xavier_uniform_(made.weight)
    assert made.bias is not None
    nn.init.zeros_(made.bias)
    return made
