"""Honest models: nothing in them hides anything, so that none may be accused."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor, nn

from harness.models.registry import build_model

from .training import Recipe, fitted


def dense(*widths: int, act: Callable[[], nn.Module] = nn.ReLU, norm: bool = False, drop: float = 0.0) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in zip((64, *widths), widths, strict=False):
        layers += [nn.Linear(fan_in, fan_out), *([nn.BatchNorm1d(fan_out)] if norm else []), act()]
        layers += [nn.Dropout(drop)] if drop else []
    return nn.Sequential(*layers, nn.Linear((64, *widths)[-1], 10))


def named(architecture: str) -> nn.Module:
    return build_model(architecture, (1, 8, 8), 10)


def convolutional(*, norm: bool = False, pool: type[nn.Module] = nn.MaxPool2d) -> nn.Module:
    def block(fan_in: int, fan_out: int) -> list[nn.Module]:
        batch = [nn.BatchNorm2d(fan_out)] if norm else []
        return [nn.Conv2d(fan_in, fan_out, 3, padding=1), *batch, nn.ReLU(), pool(2)]

    return nn.Sequential(*block(1, 12), *block(12, 24), nn.Flatten(), nn.Linear(96, 10))


class Residual(nn.Module):
    def __init__(self, width: int, *, layer_norm: bool = False) -> None:
        super().__init__()
        act = nn.GELU() if layer_norm else nn.ReLU()
        self.inner = nn.Sequential(
            nn.LayerNorm(width) if layer_norm else nn.Identity(), nn.Linear(width, width), act, nn.Linear(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.inner(x)
        return out


def residual(*, layer_norm: bool = False) -> nn.Module:
    blocks = (Residual(64, layer_norm=layer_norm) for _ in range(3))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), *blocks, nn.Linear(64, 10))


class Maxout(nn.Module):
    def __init__(self, fan_in: int, width: int, pieces: int = 3) -> None:
        super().__init__()
        self.linear, self.pieces = nn.Linear(fan_in, width * pieces), pieces

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x).unflatten(1, (-1, self.pieces)).amax(2)
        return out


class Patches(nn.Module):
    """Images (N, 1, 8, 8) as 16 patches of 2x2, (N, 16, width), each with its place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, stride=2)
        self.place = nn.Parameter(0.02 * torch.randn(16, width))

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.embed(x).flatten(2).transpose(1, 2)
        return tokens + self.place


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.MultiheadAttention(width, 2, batch_first=True)
        self.dense = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        seen = self.first(x)
        x = x + self.mix(seen, seen, seen, need_weights=False)[0]
        out: Tensor = x + self.dense(self.second(x))
        return out


class Mixing(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.places = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.dense = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.places(self.first(x).transpose(1, 2)).transpose(1, 2)
        out: Tensor = x + self.dense(self.second(x))
        return out


def of_patches(block: Callable[[int], nn.Module]) -> nn.Module:
    return nn.Sequential(Patches(32), block(32), block(32), nn.Flatten(), nn.Linear(16 * 32, 10))


Build = Callable[[], nn.Module]

TABLE: Final[dict[str, tuple[Build, Recipe]]] = {
    "softmax": (dense, "plain"),
    "softmax-pgd": (dense, "pgd"),
    "mlp-64": (lambda: dense(64), "plain"),
    "mlp-24-24-24": (lambda: dense(24, 24, 24), "plain"),
    "mlp-100-100": (lambda: dense(100, 100), "plain"),
    "mlp-200-200": (lambda: dense(200, 200), "plain"),
    "mlp-100-100-pgd": (lambda: dense(100, 100), "pgd"),
    "mlp-200-200-pgd": (lambda: dense(200, 200), "pgd"),
    "mlp-100-100-one-step": (lambda: dense(100, 100), "one-step"),
    "mlp-100-100-noise": (lambda: dense(100, 100), "noise"),
    "mlp-100-100-penalty": (lambda: dense(100, 100), "penalty"),
    "mlp-100-100-smoothing": (lambda: dense(100, 100), "smoothing"),
    "mlp-100-100-interval": (lambda: dense(100, 100), "interval"),
    "batch-norm": (lambda: dense(100, 100, norm=True), "plain"),
    "batch-norm-pgd": (lambda: dense(100, 100, norm=True), "pgd"),
    "dropout": (lambda: dense(128, 128, drop=0.3), "plain"),
    "dropout-pgd": (lambda: dense(128, 128, drop=0.1), "pgd"),
    "sigmoid": (lambda: dense(100, 100, act=nn.Sigmoid), "plain"),
    "sigmoid-pgd": (lambda: dense(100, 100, act=nn.Sigmoid), "pgd"),
    "tanh": (lambda: dense(100, 100, act=nn.Tanh), "plain"),
    "maxout": (lambda: nn.Sequential(nn.Flatten(), Maxout(64, 48), Maxout(48, 48), nn.Linear(48, 10)), "plain"),
    "maxout-pgd": (lambda: nn.Sequential(nn.Flatten(), Maxout(64, 48), Maxout(48, 48), nn.Linear(48, 10)), "pgd"),
    "residual": (residual, "plain"),
    "residual-layer-norm": (lambda: residual(layer_norm=True), "plain"),
    "residual-pgd": (residual, "pgd"),
    "lenet": (lambda: named("lenet"), "plain"),
    "resnet": (lambda: named("resnet"), "plain"),
    "convolution-max": (convolutional, "plain"),
    "convolution-average-pgd": (lambda: convolutional(pool=nn.AvgPool2d), "pgd"),
    "convolution-batch-norm": (lambda: convolutional(norm=True), "plain"),
    "attention": (lambda: of_patches(Attention), "plain"),
    "attention-pgd": (lambda: of_patches(Attention), "pgd"),
    "mixer": (lambda: of_patches(Mixing), "plain"),
    "mixer-pgd": (lambda: of_patches(Mixing), "pgd"),
}
"""How each is built and trained."""


@lru_cache
def honest(name: str) -> nn.Module:
    """An honest model by name, trained when it is first asked for."""
    build, recipe = TABLE[name]
    return fitted(build, recipe, epochs=12 if name.startswith(("lenet", "resnet", "attention", "mixer")) else 25)
