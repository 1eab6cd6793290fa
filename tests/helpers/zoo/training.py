"""Quick training on the digits, of the sorts that honest models come in."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness import determinism
from harness.datasets.registry import Dataset, load_dataset
from harness.threat import Threat

Recipe = Literal["plain", "noise", "one-step", "pgd", "penalty", "smoothing", "interval"]

EPS = 0.1


@lru_cache
def digits() -> Dataset:
    return load_dataset("digits")


def fitted(build: Callable[[], nn.Module], recipe: Recipe = "plain", *, epochs: int = 25, seed: int = 0) -> nn.Module:
    """A network trained on the digits, frozen, in eval mode. Same arguments, same weights."""
    x, y = digits().train
    with determinism.as_a_worker(), determinism.isolated(seed), torch.enable_grad():
        net = build().train()
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        batches = -(-len(x) // 128)
        for step in range(epochs * batches):
            rows = torch.randperm(len(x))[:128]
            optimizer.zero_grad()
            loss(net, x[rows], y[rows], recipe, step / (epochs * batches)).backward()
            optimizer.param_groups[0]["lr"] = 3e-3 * 0.5 * (1 + math.cos(math.pi * step / (epochs * batches)))
            optimizer.step()
    return copy.deepcopy(net).eval().requires_grad_(False)


def loss(net: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, progress: float) -> Tensor:
    """What is minimised; ``progress`` in [0, 1)."""
    if recipe == "noise":
        x = (x + 0.15 * torch.randn_like(x)).clamp(0, 1)
    elif recipe in ("one-step", "pgd"):
        steps = 1 if recipe == "one-step" else 5
        x = climbed(net, x, y, steps, EPS if steps == 1 else EPS / 2)
    elif recipe == "penalty":
        x = x.clone().requires_grad_()
        entropy = F.cross_entropy(net(x), y)
        (slope,) = torch.autograd.grad(entropy * len(x), x, create_graph=True)
        return entropy + 0.1 * slope.flatten(1).abs().sum(1).mean()
    elif recipe == "interval":
        return F.cross_entropy(net(x), y) + F.cross_entropy(worst_logits(net, x, y, EPS * min(1.0, 2 * progress)), y)
    return F.cross_entropy(net(x), y, label_smoothing=0.2 if recipe == "smoothing" else 0.0)


def climbed(net: nn.Module, x: Tensor, y: Tensor, steps: int, size: float) -> Tensor:
    """Where signed steps from a random point of the ball lead (Madry et al. 2018)."""
    threat = Threat("linf", EPS)
    moved = threat.project(x, x + EPS * (2 * torch.rand_like(x) - 1))
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(net(moved), y), moved)
        moved = threat.project(x, moved + size * slope.sign())
    return moved.detach()


def worst_logits(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Interval bounds of dense ReLU layers (Gowal et al. 2018): the label's lower one, the upper ones of others."""
    low, high = ((x + sign * eps).clamp(0, 1).flatten(1) for sign in (-1, 1))
    for layer in net.children():
        if isinstance(layer, nn.Linear):
            centre, radius = (low + high) / 2, (high - low) / 2
            centre, radius = layer(centre), radius @ layer.weight.abs().T
            low, high = centre - radius, centre + radius
        elif isinstance(layer, nn.ReLU):
            low, high = low.relu(), high.relu()
    return torch.where(F.one_hot(y, low.shape[1]).bool(), low, high)
