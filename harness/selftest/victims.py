"""ReferenceVictim victims for self-tests of attacks.

Linear ones, where the nearest adversarials are known in closed form; a plain network; one hardened against single
steps; and the deliberately broken ones of :mod:`harness.selftest.masked_gradients`, as they are and with the remedy
where there is one.

All are 8x8 images in gray: every attack of the tables works on them, and a network is trained in a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import determinism
from ..datasets.registry import Dataset, load_dataset
from ..judging.proposal import Bench
from ..models.stages import Stages
from ..threat import Norm
from ..training.defense import Loss
from ..training.trainer import Trainer
from ..victims.adaptation import VOTES, Remedy
from ..victims.victim import Victim
from .linear_victim import LinearVictim
from .masked_gradients import BROKEN

Sort = Literal["linear", "plain", "hardened", "broken", "remedied"]

UNIT: Final[dict[Norm, float]] = {"linf": 0.2, "l2": 0.95, "l1": 4.0, "l0": 4.0}
"""Per norm, an eps at which the best attacks leave next to nothing of the plain network, and half of it a good part."""

HARD_UNIT: Final[dict[Norm, float]] = {"linf": 0.3, "l2": 1.5, "l1": 8.0, "l0": 6.0}
"""The same for the hardened network, of which single steps leave about half there."""

TRAINING_IMAGES: Final = 200
"""Images shown to an attack that prepares itself."""

SCALE: Final = {2: 0.01, 10: 40.0}
"""Length of the weights of linear victims by their classes. The nearest adversarial does not depend on it, nor may an
attack: on the flat victim a step that follows the length of the gradient goes nowhere, on the steep one a loss that
saturates is saturated."""

_SHAPE: Final = (1, 8, 8)
_POOL: Final = 2000
_SPREAD: Final[dict[Norm, float]] = {"linf": 0.1, "l2": 0.1, "l1": 0.1, "l0": 0.3}


@dataclass(frozen=True, eq=False)
class Case:
    """Images to attack.

    Attributes:
        x: Correctly classified, float32 (N, 1, 8, 8) in [0, 1].
        y: Their labels, int64 (N,).
        unit: Per image the distance that floors are stated in, (N,): on a linear victim the one in closed form, on a
            network :data:`UNIT` or :data:`HARD_UNIT`.
    """

    x: Tensor
    y: Tensor
    unit: Tensor
    x_train: Tensor
    y_train: Tensor


@dataclass(frozen=True, eq=False)
class ReferenceVictim:
    """A victim of the self-tests.

    Attributes:
        stochastic: Whether the referee has to vote.
    """

    name: str
    sort: Sort
    make: Callable[[], nn.Module]
    classes: int
    remedy: Remedy | None = None
    stochastic: bool = False

    def bench(self) -> Bench:
        """Fresh copies for one attack and its referee."""
        model, votes = self.make(), VOTES if self.stochastic else None
        return Bench(
            Victim(model, classes=self.classes, remedy=self.remedy), Victim(model, classes=self.classes, votes=votes)
        )

    def case(self, norm: Norm, n: int) -> Case:
        """``n`` images for attacks in that norm."""
        return _linear_case(self.classes, norm, n) if self.sort == "linear" else _network_case(self.name, norm, n)


@lru_cache
def references() -> dict[str, ReferenceVictim]:
    """Every victim by name, the simplest first. Nothing is trained before it is attacked."""
    found = [
        ReferenceVictim(f"{word} linear, {k} classes", "linear", partial(_linear_model, k), k)
        for word, k in (("flat", 2), ("steep", 10))
    ]
    found.append(ReferenceVictim("plain network", "plain", plain_network, 10))
    found.append(ReferenceVictim("hardened network", "hardened", hardened_network, 10))
    for name, broken in BROKEN.items():
        make, remedy = partial(_broken_model, name), broken.remedy
        stochastic = remedy is not None and remedy.draws > 1
        found.append(ReferenceVictim(name, "broken", make, 10, stochastic=stochastic))
        if remedy:
            found.append(ReferenceVictim(f"{name} with its remedy", "remedied", make, 10, remedy, stochastic))
    return {reference.name: reference for reference in found}


def _linear_model(classes: int) -> nn.Module:
    return linear(classes).model


def _broken_model(name: str) -> nn.Module:
    return BROKEN[name].wrap(plain_network())


@lru_cache
def linear(classes: int) -> LinearVictim:
    """The linear victim of so many classes."""
    return LinearVictim.random(classes, _SHAPE, scale=SCALE[classes])


@dataclass(frozen=True, kw_only=True)
class _Training(Trainer):
    """On single gradient steps of length ``eps`` from the images, on the images themselves where that is 0."""

    name: ClassVar[str] = "self-test"

    eps: float = 0.0

    def loss(self, model: Stages, x: Tensor, y: Tensor) -> Loss:
        """The cross-entropy at the far end of the step."""
        if self.eps:
            start = x.clone().requires_grad_(True)
            (grad,) = torch.autograd.grad(F.cross_entropy(model(start), y), start)
            x = (x + self.eps * grad.sign()).clamp(0, 1)
        return super().loss(model, x, y)


@lru_cache
def plain_network() -> nn.Module:
    """A small MLP that has learned the embedded digits; the same one in every process."""
    with determinism.isolated(0):
        return _Training(epochs=20, lr=3e-3).fit("mlp-64-64", digits()).model


@lru_cache
def hardened_network() -> nn.Module:
    """An MLP that has learned to look robust to single steps: its loss bends away from where the gradient points.

    Source: Kurakin et al. 2017 (label leaking), Tramer et al. 2018.
    """
    with determinism.isolated(0):
        return _Training(epochs=60, lr=5e-3, batch_size=256, eps=0.3).fit("mlp-128-128", digits()).model


@lru_cache
def digits() -> Dataset:
    """The embedded data set."""
    return load_dataset("digits")


def closed_form(victim: LinearVictim, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
    """Distance (N,) to the nearest boundary, in L0 the least number of pixels that can cross one."""
    if norm != "l0":
        return victim.distance(x, y, norm)
    difference = victim.weight.unsqueeze(0) - victim.weight[y].unsqueeze(1)  # (N, K, D)
    margin = -((difference * x.flatten(1).unsqueeze(1)).sum(2) + victim.bias - victim.bias[y].unsqueeze(1))
    room = torch.where(difference > 0, 1 - x.flatten(1).unsqueeze(1), x.flatten(1).unsqueeze(1))
    gains = (difference.abs() * room).sort(2, descending=True).values.cumsum(2)
    pixels = 1.0 + (gains < margin.unsqueeze(2)).sum(2)
    return pixels.scatter(1, y.unsqueeze(1), math.inf).amin(1)


@lru_cache
def _linear_case(classes: int, norm: Norm, n: int) -> Case:
    """Images nearly equally far from the boundary, so that one eps is the same for all: those the upper decile."""
    victim = linear(classes)
    x, y = victim.images(_POOL, spread=_SPREAD[norm])
    unit = closed_form(victim, x, y, norm)
    order = unit.argsort(stable=True)
    middle = int(0.9 * _POOL)
    chosen = order[middle - n // 2 : middle - n // 2 + n]
    others = order[: int(0.8 * _POOL)]
    others = others[torch.linspace(0, len(others) - 1, TRAINING_IMAGES).long()]
    return Case(x[chosen], y[chosen], unit[chosen], x[others], y[others])


@lru_cache
def _network_case(name: str, norm: Norm, n: int) -> Case:
    """The first test images that the victim gets right."""
    _, (x, y) = digits().test_sample(4 * n)
    right = references()[name].bench().referee.predict(x) == y
    x, y = x[right][:n], y[right][:n]
    assert len(x) == n
    _, (x_train, y_train) = digits().train_sample(TRAINING_IMAGES)
    unit = (HARD_UNIT if references()[name].sort == "hardened" else UNIT)[norm]
    return Case(x, y, torch.full((len(x),), unit), x_train, y_train)
