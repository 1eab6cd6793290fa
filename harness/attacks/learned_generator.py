"""A network that makes perturbations of gradients, trained against one classifier (Lee et al. 2017)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final

import torch
from torch import Tensor

from ..errors import UserError
from ..models.perturbation_generator import PerturbationGenerator, generator_loss, probability_gradient
from ..options import check_choices
from ..threat import Norm, Threat, magnitude, per_sample
from ..training.gradient_descent import one_epoch
from ..training.optim import descend
from ..victims.victim import Victim, input_gradient
from .base import Attack, Family, Kind
from .line_search import CHUNK, log_odds

Weights = Mapping[str, Tensor]

FASTEST: Final = 1.1
"""Largest factor by which c is adapted in an update."""


@dataclass(frozen=True, kw_only=True)
class Generator(Attack):
    """x + G(D): a network makes a perturbation of D, the gradient of the label's probability.

    G is trained to lower that probability on training images (Lee et al. 2017, sections 3.2 and 4.2): it minimises
    F(x + G(D))_y + c ||G(D)||_2^2 (eq. 9) on unclipped images against the fixed victim, and keeps the weights with the
    lowest such loss on held-out ones. An attack takes one forward and one backward pass through the victim; what
    training took is in the pair's ``preparation``.

    Attributes:
        c: Weight of the perturbation's power, positive; ``None`` where ``power`` is given instead.
        mode: ``"budget"`` scales each perturbation to length eps in the threat's norm. ``"minimal"`` knows no eps: how
            long each is stays what G made of it, which is where it differs most from a gradient step.
        power: For ``"minimal"``: the wanted root mean square of the perturbations' L2 lengths, that is as much power in
            all as steps of this length. c is adapted to it in training, where the paper tries several, and all
            perturbations of a call are scaled by the one factor that is then missing.
        images: Most training images that are looked at.
        validation: Share of them that is held out, in (0, 1).
        epochs: Most passes over the rest.
        patience: Stop after so many epochs without a lower loss on the held-out images.
        batch_size: Images an update.
        lr: Adam's rate.
        weights: Of the trained generator, by name: filled in by :meth:`prepare`, and no part of the identity.

    Raises:
        UserError: A hyperparameter outside its range.
    """

    name: ClassVar[str] = "generator"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    family: ClassVar[Family] = "one-step"

    c: float | None = 0.5
    mode: Kind = "budget"
    power: float | None = None
    images: int = 1000
    validation: float = 0.1
    epochs: int = 30
    patience: int = 3
    batch_size: int = 128
    lr: float = 1e-4
    weights: Weights | None = field(default=None, repr=False, compare=False, metadata={"identity": False})

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("c", "power", "lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{name} must be positive and finite, got {value}")
        if (self.c is None) != (self.power is not None) or (self.power is not None and self.mode != "minimal"):
            raise UserError("give either c, or c=None and a power with mode='minimal'")
        if not 0 < self.validation < 1:
            raise UserError(f"validation must be in (0, 1), got {self.validation}")
        if self.images < 2 or min(self.epochs, self.patience, self.batch_size) < 1:
            raise UserError("images must be >= 2, and epochs, patience and batch_size >= 1")

    @property
    def kind(self) -> Kind:
        """As :attr:`mode` says."""
        return self.mode

    @property
    def preparation_samples(self) -> int:
        """As :attr:`images` says."""
        return self.images

    @property
    def preparation(self) -> Generator:
        """The same whether perturbations are scaled to an eps or not."""
        return self if self.c is None else dataclasses.replace(self, mode="budget", weights=None)

    def prepare(self, victim: Victim, x: Tensor, y: Tensor) -> Generator:
        """A copy that holds a generator trained against the victim.

        Raises:
            UserError: Fewer than two images.
        """
        x, y = x[: self.images], y[: self.images]
        if len(x) < 2:
            raise UserError(f"{self.label} trains on some images and stops by others: 2 at least, got {len(x)}")
        held = min(max(round(self.validation * len(x)), 1), len(x) - 1)
        gradient = _gradient(victim, x, y)  # of a fixed victim, so once for all epochs
        generator = PerturbationGenerator(x.shape[1]).to(x.device)
        optimizer = torch.optim.Adam(generator.parameters(), lr=self.lr)
        kept = len(x) - held
        c = self._first_weight(gradient[:kept])
        best, since, weights = self._score(victim, generator, x[kept:], y[kept:], gradient[kept:]), 0, _state(generator)

        def step(rows: Tensor) -> Tensor:
            nonlocal c
            perturbation = generator(gradient[rows])
            loss = generator_loss(victim(x[rows] + perturbation), y[rows], perturbation, c)
            descend(optimizer, loss)
            c = self._next_weight(c, perturbation.detach())
            return loss.detach()

        for _ in range(self.epochs):
            one_epoch(torch.arange(kept), self.batch_size, x.device, step)
            loss, since = self._score(victim, generator, x[kept:], y[kept:], gradient[kept:]), since + 1
            if loss < best:
                best, since, weights = loss, 0, _state(generator)
            elif since >= self.patience:
                break
        return dataclasses.replace(self, weights=weights)

    def _first_weight(self, gradient: Tensor) -> Tensor:
        """c, or where the search for it begins: what gives the power if the probability were linear in the image."""
        if self.power is None:
            return torch.as_tensor(self.c, device=gradient.device)
        return (_power(gradient) / (2 * self.power)).clamp_min(1e-6)

    def _next_weight(self, c: Tensor, perturbation: Tensor) -> Tensor:
        """More of it where perturbations have too much power, less where they have too little."""
        if self.power is None:
            return c
        return c * (_power(perturbation) / self.power).clamp(1 / FASTEST, FASTEST)

    @torch.no_grad()
    def _score(self, victim: Victim, generator: PerturbationGenerator, x: Tensor, y: Tensor, gradient: Tensor) -> float:
        """The generator's loss on all of some images; at a given power that power is no part of it."""
        perturbation = self._scaled(_applied(generator, gradient), Threat("l2", None))
        logits = torch.cat([victim(part) for part in torch.split(x + perturbation, CHUNK)])
        return float(generator_loss(logits, y, perturbation, self.c or 0.0))

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Propose one image for each; where the generator gives nothing, the image itself.

        Raises:
            UserError: There is no generator: :meth:`prepare` was not called.
        """
        if self.weights is None:
            raise UserError(f"{self.label} has to be prepared on training images before it is called")
        if not len(x):
            return x
        generator = PerturbationGenerator(x.shape[1]).to(x.device)
        generator.load_state_dict(dict(self.weights))
        gradient = _gradient(victim, x, y)
        with torch.no_grad():
            return (x + self._scaled(_applied(generator, gradient), threat)).clamp(0, 1)

    def _scaled(self, perturbation: Tensor, threat: Threat) -> Tensor:
        """Perturbations as they are proposed; without an eps as they are, or at the wanted power."""
        wanted, size = self.power, _power(perturbation).expand(len(perturbation))
        if threat.eps is not None and self.mode == "budget":
            wanted, size = threat.eps, magnitude(perturbation, threat.norm)
        if wanted is None:
            return perturbation
        return perturbation * per_sample(wanted / torch.where(size > 0, size, 1), perturbation)


def _power(perturbation: Tensor) -> Tensor:
    """Root mean square of L2 lengths, a scalar."""
    return magnitude(perturbation, "l2").square().mean().sqrt()


def _applied(generator: PerturbationGenerator, gradient: Tensor) -> Tensor:
    """Perturbations like ``gradient``, in parts."""
    return torch.cat([generator(part) for part in torch.split(gradient, CHUNK)])


def _gradient(victim: Victim, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of each label's probability, like ``x``."""
    parts = []
    for view, images, labels in zip(victim.split(x, CHUNK), torch.split(x, CHUNK), torch.split(y, CHUNK), strict=True):
        odds, grad, _ = input_gradient(view, images, lambda logits, labels=labels: log_odds(logits, labels))  # type: ignore[misc]
        parts.append(probability_gradient(odds, grad))
    return torch.cat(parts)


def _state(generator: PerturbationGenerator) -> Weights:
    return {name: value.cpu() for name, value in copy.deepcopy(generator.state_dict()).items()}
