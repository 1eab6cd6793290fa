"""A network that makes perturbations of gradients, trained against one classifier (Lee et al. 2017)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..attack import Attack, Family, Kind
from ..errors import UserError, unknown
from ..generator import PerturbationGenerator, generator_loss, probability_gradient
from ..threat import Norm, Threat, magnitude, per_sample
from ..training import descend
from ..victim import Victim, input_gradient
from .line import CHUNK, log_odds

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Generator(Attack):
    """x + G(D): a network makes a perturbation of D, the gradient of the label's probability.

    G is trained to lower that probability on training images. Source: Lee et al. 2017, sections 3.2 and 4.2. G minimises F(x + G(D))_y + c ||G(D)||_2^2 (eq. 9) on unclipped
    images against the fixed victim, and keeps the weights with the lowest such loss on held-out ones. An attack takes
    one forward and one backward pass through the victim; what training took is in the pair's ``preparation``.

    Attributes:
        c: Weight of the perturbation's power, positive.
        mode: ``"budget"`` scales each perturbation to length eps in the threat's norm, so that one can be compared with
            a gradient step of the same length; ``"minimal"`` leaves them as they are: no eps is known, c decides.
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

    c: float = 0.5
    mode: Kind = "budget"
    images: int = 1000
    validation: float = 0.1
    epochs: int = 30
    patience: int = 3
    batch_size: int = 128
    lr: float = 1e-4
    weights: Weights | None = field(default=None, repr=False, compare=False, metadata={"identity": False})

    def __post_init__(self) -> None:
        if self.mode not in ("budget", "minimal"):
            raise unknown("mode", self.mode, ("budget", "minimal"))
        if not (0 < self.c < float("inf") and 0 < self.lr < float("inf")):
            raise UserError(f"c and lr must be positive and finite, got {self.c} and {self.lr}")
        if not 0 < self.validation < 1:
            raise UserError(f"validation must be in (0, 1), got {self.validation}")
        if self.images < 2 or min(self.epochs, self.patience, self.batch_size) < 1:
            raise UserError("images must be >= 2, and epochs, patience and batch_size >= 1")

    @property
    def kind(self) -> Kind:
        """As :attr:`mode` says."""
        return self.mode

    @property
    def family(self) -> Family:
        """One gradient, whatever is made of it."""
        return "one-step"

    @property
    def preparation_samples(self) -> int:
        """As :attr:`images` says."""
        return self.images

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
        best, since, weights = self._score(victim, generator, x[kept:], y[kept:], gradient[kept:]), 0, _state(generator)
        for _ in range(self.epochs):
            for part in torch.randperm(kept).to(x.device).split(self.batch_size):  # type: ignore[no-untyped-call]
                perturbation = generator(gradient[part])
                descend(optimizer, generator_loss(victim(x[part] + perturbation), y[part], perturbation, self.c))
            loss, since = self._score(victim, generator, x[kept:], y[kept:], gradient[kept:]), since + 1
            if loss < best:
                best, since, weights = loss, 0, _state(generator)
            elif since >= self.patience:
                break
        return dataclasses.replace(self, weights=weights)

    @torch.no_grad()
    def _score(self, victim: Victim, generator: PerturbationGenerator, x: Tensor, y: Tensor, gradient: Tensor) -> float:
        """The generator's loss on all of some images."""
        total = 0.0
        for images, labels, part in zip(x.split(CHUNK), y.split(CHUNK), gradient.split(CHUNK), strict=True):  # type: ignore[no-untyped-call]
            perturbation = generator(part)
            total += float(generator_loss(victim(images + perturbation), labels, perturbation, self.c)) * len(images)
        return total / len(x)

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
            perturbation = torch.cat([generator(part) for part in torch.split(gradient, CHUNK)])
            if self.mode == "budget":
                assert threat.eps is not None
                size = per_sample(magnitude(perturbation, threat.norm), x)
                perturbation *= threat.eps / torch.where(size > 0, size, 1)
            return (x + perturbation).clamp(0, 1)


def _gradient(victim: Victim, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of each label's probability, like ``x``."""
    parts = []
    for images, labels in zip(torch.split(x, CHUNK), torch.split(y, CHUNK), strict=True):
        odds, grad, _ = input_gradient(victim, images, lambda logits, labels=labels: log_odds(logits, labels))  # type: ignore[misc]
        parts.append(probability_gradient(odds, grad))
    return torch.cat(parts)


def _state(generator: PerturbationGenerator) -> Weights:
    return {name: value.cpu() for name, value in copy.deepcopy(generator.state_dict()).items()}
