"""Maxout layers and networks (Goodfellow et al. 2013), with the dropout that belongs to them."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final, NamedTuple

from torch import Tensor, nn

from ..errors import UserError
from .stages import Shape, Stages

INPUT_DROPOUT: Final = 0.2
HIDDEN_DROPOUT: Final = 0.5


class Maxout(nn.Module):
    """The largest of several affine functions, unit by unit (section 2)."""

    def __init__(self, fan_in: int, units: int, pieces: int) -> None:
        super().__init__()
        self.units = units
        self.affine = nn.Linear(fan_in, units * pieces)

    def forward(self, x: Tensor) -> Tensor:
        """(N, fan_in) to (N, units)."""
        values: Tensor = self.affine(x).unflatten(1, (self.units, -1))
        return values.amax(2)


class MaxoutConv(nn.Module):
    """The largest of several convolutions, channel by channel."""

    def __init__(self, fan_in: int, channels: int, pieces: int, kernel: int, pad: int) -> None:
        super().__init__()
        self.channels = channels
        self.affine = nn.Conv2d(fan_in, channels * pieces, kernel, padding=pad)

    def forward(self, x: Tensor) -> Tensor:
        """(N, fan_in, H, W) to (N, channels, H', W')."""
        values: Tensor = self.affine(x).unflatten(1, (self.channels, -1))
        return values.amax(2)


class ConvSizes(NamedTuple):
    """Sizes of a convolutional maxout layer and of the max-pooling after it."""

    channels: int
    pieces: int
    kernel: int
    pad: int
    pool: int
    stride: int


MNIST: Final = (ConvSizes(48, 2, 8, 0, 4, 2), ConvSizes(48, 2, 8, 3, 4, 2), ConvSizes(24, 4, 5, 3, 2, 2))
CIFAR: Final = (ConvSizes(48, 2, 8, 4, 4, 2), ConvSizes(128, 2, 8, 3, 4, 2), ConvSizes(128, 2, 5, 3, 2, 2))
"""As the authors of the maxout paper published them with their library."""


def dense(shape: Shape, classes: int) -> Stages:
    """Two maxout layers of 240 units with 5 pieces, with dropout (Goodfellow et al. 2013, permutation invariant)."""
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    stages["flatten"] = nn.Sequential(nn.Flatten(), nn.Dropout(INPUT_DROPOUT))
    stages["hidden1"] = nn.Sequential(Maxout(math.prod(shape), 240, 5), nn.Dropout(HIDDEN_DROPOUT))
    stages["hidden2"] = nn.Sequential(Maxout(240, 240, 5), nn.Dropout(HIDDEN_DROPOUT))
    stages["logits"] = nn.Linear(240, classes)
    return Stages(stages, ("hidden1", "hidden2"))


def convolutional(shape: Shape, classes: int) -> Stages:
    """Three convolutional maxout layers with dropout (Goodfellow et al. 2013, as for MNIST)."""
    return _convolutional("conv-maxout", shape, classes, MNIST, 0)


def convolutional_small(shape: Shape, classes: int) -> Stages:
    """Three convolutional and a dense maxout layer with dropout (Pylearn2's small network for CIFAR-10)."""
    return _convolutional("conv-maxout-small", shape, classes, CIFAR, 240)


def _convolutional(name: str, shape: Shape, classes: int, layers: tuple[ConvSizes, ...], units: int) -> Stages:
    """With max-pooling (section 5.1); on images under 16 pixels, kernels are 3x3 with padding, and pooling is 2x2.

    Raises:
        UserError: Images under 8 pixels, of which three poolings leave nothing.
    """
    fan_in, *sides = shape
    if min(sides) < 8:
        raise UserError(f"{name} needs images of at least 8x8 pixels, got {sides[0]}x{sides[1]}")
    small = min(sides) < 16
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    stages["drop"] = nn.Dropout(INPUT_DROPOUT)
    for number, layer in enumerate(layers, start=1):
        if small:
            layer = layer._replace(kernel=3, pad=1, pool=2, stride=2)
        stages[f"conv{number}"] = nn.Sequential(
            MaxoutConv(fan_in, layer.channels, layer.pieces, layer.kernel, layer.pad),
            nn.MaxPool2d(layer.pool, layer.stride, ceil_mode=True),
            nn.Dropout(HIDDEN_DROPOUT),
        )
        fan_in = layer.channels
        grown = 2 * layer.pad - layer.kernel + 1
        sides = [math.ceil((side + grown - layer.pool) / layer.stride) + 1 for side in sides]
    stages["flatten"] = nn.Flatten()
    features = fan_in * math.prod(sides)
    if units:
        stages["hidden1"] = nn.Sequential(Maxout(features, units, 5), nn.Dropout(HIDDEN_DROPOUT))
        features = units
    stages["logits"] = nn.Linear(features, classes)
    return Stages(stages, tuple(stage for stage in stages if stage.startswith(("conv", "hidden"))))
