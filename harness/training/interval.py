"""Interval arithmetic through networks of dense layers, convolutions and monotone parts (Gowal et al. 2018, section 3).

An affine part moves the centre of a box and stretches its radius by the absolute weights (eq. 6); a part that is
monotone in each input maps the two corners.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..models.registry import Thumbnail, architecture_names, build_model
from ..models.stages import Stages, Standardize

MONOTONE: Final = (
    *(nn.ReLU, nn.Sigmoid, nn.Tanh, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Identity),
    *(Standardize, Thumbnail),
)
"""Parts whose every output grows, or stays, with each input."""


class Box(NamedTuple):
    """Bounds of every unit, (N, ...) each, with ``low <= high``."""

    low: Tensor
    high: Tensor

    @property
    def centre(self) -> Tensor:
        """Its middle."""
        return (self.low + self.high) / 2

    @property
    def radius(self) -> Tensor:
        """Half its width."""
        return (self.high - self.low) / 2


def through(module: nn.Module, box: Box) -> Box:
    """The box that holds every output of a module, for inputs in a box; differentiable.

    Raises:
        UserError: A part that there are no interval bounds for.
    """
    if isinstance(module, nn.Sequential):
        for part in module:
            box = through(part, box)
        return box
    if isinstance(module, nn.Linear | nn.Conv2d):
        size = module.weight.abs()
        centre = module(box.centre)
        if isinstance(module, nn.Linear):
            radius = F.linear(box.radius, size)
        else:
            radius = module._conv_forward(box.radius, size, None)
        return Box(centre - radius, centre + radius)
    if isinstance(module, MONOTONE):
        return Box(module(box.low), module(box.high))
    raise UserError(f"no interval bounds for a {type(module).__name__}")


def worst_margins(model: Stages, box: Box, y: Tensor) -> Tensor:
    """Upper bounds (N, K) of each logit less the true class's, 0 for that class, for images in a box.

    The last layer is elided: the difference of two logits is bounded at once, as one affine function of what enters
    that layer, which is tighter than the difference of two bounds (section 3, "specification"). Labels are int64 (N,).

    Raises:
        UserError: A part that there are no interval bounds for; a last stage that is not one dense layer.
    """
    *body, last = model.stages.values()
    if not isinstance(last, nn.Linear):
        raise UserError(f"no interval bounds for a last stage that is a {type(last).__name__}")
    for stage in body:
        box = through(stage, box)
    weight, centre, radius = last.weight, box.centre, box.radius
    difference = weight - weight[y].unsqueeze(1)  # (N, K, units)
    value = torch.einsum("nku,nu->nk", difference, centre) + torch.einsum("nku,nu->nk", difference.abs(), radius)
    return value if last.bias is None else value + last.bias - last.bias[y].unsqueeze(1)


def check(architecture: str, who: str) -> None:
    """Make sure that a network of that name can be bounded; ``who`` asks.

    Raises:
        UserError: It cannot; the message names the part, and the architectures that can.
    """
    if trouble := _trouble(architecture):
        able = [name for name in architecture_names() if not _trouble(name)]
        choices = ", ".join([*able, "mlp-A-B-...", "mlp-sigmoid-A-B-..."])
        raise UserError(f"{who} cannot take {architecture}: {trouble}; choose from {choices}")


def _trouble(architecture: str) -> str:
    """Why there are no bounds, "" if there are; nothing is computed and no random number drawn."""
    try:
        with torch.device("meta"):
            model = build_model(architecture, (1, 28, 28), 2).eval()
            images = torch.zeros(1, 1, 28, 28)
            worst_margins(model, Box(images, images), torch.zeros(1, dtype=torch.int64))
    except UserError as error:
        return str(error)
    return ""
