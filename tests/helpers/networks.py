"""Small random networks of everything that certificates cover."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

from harness.models.maxout import Maxout, MaxoutConv
from harness.models.stages import Standardize

SHAPE = (2, 6, 6)
SEEDS = range(20)


class Residual(nn.Module):
    """What a part does, added to or taken from its input."""

    def __init__(self, inner: nn.Module, sign: float = 1.0) -> None:
        super().__init__()
        self.inner = inner
        self.sign = sign

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x) if self.sign > 0 else x - self.inner(x)


class Joined(nn.Module):
    """Two parts side by side."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one = one
        self.other = other

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.other(x)], 1)


class Largest(nn.Module):
    """The larger of two affine functions, and in turn the smaller of that and a third."""

    def __init__(self, fan_in: int, units: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(fan_in, units) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = (part(x) for part in self.parts)
        return torch.minimum(torch.maximum(a, b), c.abs() * 2 + 1)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "hardtanh": lambda: nn.Hardtanh(-0.5, 0.8),
    "relu6": nn.ReLU6,
}


def _normalised(part: nn.BatchNorm2d) -> nn.BatchNorm2d:
    assert part.running_mean is not None
    assert part.running_var is not None
    part.running_mean.normal_(0, 0.5)
    part.running_var.uniform_(0.3, 2)
    nn.init.normal_(part.weight, 1, 0.5)
    nn.init.normal_(part.bias, 0, 0.5)
    return part


def random_network(seed: int, classes: int = 4) -> tuple[nn.Module, set[str]]:
    """A network for images of :data:`SHAPE`, in eval mode and frozen, and the kinds of its parts."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    kinds: set[str] = set()
    layers: list[nn.Module] = []
    channels, side = SHAPE[0], SHAPE[1]

    def add(kind: str, part: nn.Module) -> None:
        kinds.add(kind)
        layers.append(part)

    def activate() -> None:
        kind = draw.choice(list(ACTIVATIONS))
        add(kind, ACTIVATIONS[kind]())

    if draw.random() < 0.5:
        add("standardize", Standardize((0.4,) * channels, (0.3,) * channels))
    if draw.random() < 0.8:
        wide = draw.choice([3, 4])
        if draw.random() < 0.3:
            add("maxout-conv", MaxoutConv(channels, wide, 2, 3, 1))
        else:
            add("conv", nn.Conv2d(channels, wide, 3, padding=1, groups=1, bias=draw.random() < 0.5))
        channels = wide
        if draw.random() < 0.6:
            add("batch-norm", _normalised(nn.BatchNorm2d(channels)))
        activate()
        if draw.random() < 0.5:
            inner = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.ReLU())
            add("residual", Residual(inner, draw.choice([1.0, -1.0])))
        kind = draw.choice(["max-pool", "overlapping-max-pool", "average-pool", "global-pool", "none"])
        if kind == "max-pool":
            add(kind, nn.MaxPool2d(2))
            side //= 2
        elif kind == "overlapping-max-pool":
            add(kind, nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=draw.random() < 0.5))
            side = 4 if layers[-1].ceil_mode else 3
        elif kind == "average-pool":
            add(kind, nn.AvgPool2d(3, stride=2, padding=1))
            side = 3
        elif kind == "global-pool":
            add(kind, nn.AdaptiveAvgPool2d(1))
            side = 1
    add("flatten", nn.Flatten())
    layers.append(nn.Dropout(0.5))
    fan_in = channels * side * side
    for _ in range(draw.choice([1, 2])):
        kind = draw.choice(["dense", "dense", "maxout", "joined", "largest"])
        width = draw.choice([6, 10])
        if kind == "maxout":
            add(kind, Maxout(fan_in, width, 3))
        elif kind == "joined":
            add(kind, Joined(nn.Sequential(nn.Linear(fan_in, width), nn.Tanh()), nn.Linear(fan_in, 2)))
            width += 2
        elif kind == "largest":
            add(kind, Largest(fan_in, width))
        else:
            add(kind, nn.Linear(fan_in, width))
            activate()
        fan_in = width
    layers.append(nn.Linear(fan_in, classes))
    if draw.random() < 0.3:
        add("log-softmax", nn.LogSoftmax(1))
    return nn.Sequential(*layers).eval().requires_grad_(False), kinds
