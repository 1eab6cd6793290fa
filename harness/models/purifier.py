"""Purifiers: autoencoders in front of a classifier (Gu & Rigazio 2014, sections 3.2 and 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, Self

from torch import Tensor, nn

from ..errors import UserError
from .stages import Shape

WIDTHS: Final = (256, 128, 256)
"""Hidden layers of the paper's autoencoder: 784-256-128-256-784 on MNIST."""


class Autoencoder(nn.Module):
    """Fully connected network from images to images.

    The paper gives the widths alone. Hidden layers are rectified, as those of its classifiers; a sigmoid keeps the
    output in [0, 1].
    """

    def __init__(self, shape: Shape, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        sizes = [math.prod(shape), *widths]
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], sizes[0]))

    def logits(self, x: Tensor) -> Tensor:
        """The log-odds (N, C * H * W) of each pixel: what a reconstruction is trained on."""
        out: Tensor = self.layers(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Images in [0, 1] like ``x``."""
        return self.logits(x).sigmoid().view_as(x)


class Purified(nn.Module):
    """A classifier that sees images through a purifier, as one network: ``base(front(x))``.

    Gradients go through both. ``train`` reaches the front alone: the base is trained already.
    """

    def __init__(self, front: nn.Module, base: nn.Module) -> None:
        super().__init__()
        self.front = front
        self.base = base

    def train(self, mode: bool = True) -> Self:
        """Switch the front; the base stays in eval mode."""
        super().train(mode)
        self.base.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of the base for purified images."""
        logits: Tensor = self.base(self.front(x))
        return logits


def purifier(model: nn.Module, name: str) -> nn.Module:
    """The part of a purified model that stands before its base.

    Raises:
        UserError: It has no such part.
    """
    if not isinstance(model, Purified):
        raise UserError(
            f"{name} has no purifier to put in front of another model: take one with an autoencoder or a blur"
        )
    return model.front
