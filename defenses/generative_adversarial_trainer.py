"""Adversarial training against a generator that learns along with the classifier (Lee et al. 2017)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.attacks.line_search import log_odds
from harness.datasets.registry import DatasetInfo
from harness.models.perturbation_generator import PerturbationGenerator, generator_loss, probability_gradient
from harness.models.stages import Stages
from harness.training.defense import Loss, require
from harness.training.optim import update
from harness.training.resuming import Part
from harness.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class GenerativeAdversarialTrainer(Trainer):
    """Minimise alpha J(x) + (1 - alpha) J(x + G(D)), with G trained in turn (algorithm 1).

    D is the gradient of the label's probability with respect to the image, and G minimises F(x + G(D))_y + c
    ||G(D)||_2^2 (eq. 9). Neither is x + G(D) clipped to [0, 1], nor is the generator a part of the model that is
    judged.

    All updates of a step share one batch, where the algorithm draws one for each, and with it D and the clean pass. The
    classifier's update and the generator's last one share their pass as well: both are at the perturbations that G
    gives before that last update. At the paper's rate of 1e-6 G hardly moves in one, and it spares a pass through
    either network: a step costs less than three of :class:`~defenses.fast_gradient.FastGradient`'s.

    The history logs mean L2 lengths, in images of [0, 1]: ``perturbation``, of those that the classifier is trained on,
    and ``gradient``, of what the generator sees.

    Attributes:
        c: Weight of the perturbation's power, at least 0: with less of it perturbations grow, with more they vanish.
            The paper prints no value.
        alpha: Weight of the clean loss, in [0, 1].
        k: Updates of the generator for one of the classifier.
        generator_lr: Adam's rate for the generator. Short training needs a higher one than the paper's 1e-6.
        p: Probability to drop a unit that leaves a hidden stage, in [0, 1); every pass of the classifier drops its own.
    """

    name = "generative-adversarial-trainer"
    summary = "adversarial training against a generator that learns along"
    source = "Lee et al. 2017, eqs. 9-10, algorithm 1"
    by_batch = True

    c: float = 0.5
    alpha: float = 0.5
    k: int = 1
    generator_lr: float = 1e-6
    p: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "c", self.c >= 0, "at least 0")
        require(self, "alpha", 0 <= self.alpha <= 1, "in [0, 1]")
        require(self, "k", self.k >= 1, "at least 1")
        require(self, "generator_lr", self.generator_lr > 0, "positive")
        require(self, "p", 0 <= self.p < 1, "in [0, 1)")

    def opponent(self, info: DatasetInfo) -> PerturbationGenerator:
        """The generator."""
        return PerturbationGenerator(info.shape[0])

    def against(self, opponent: nn.Module) -> Playing:
        """This trainer with a generator in play: from (N, C, H, W) to the same."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Playing(
            **values, generator=opponent, player=torch.optim.Adam(opponent.parameters(), lr=self.generator_lr)
        )

    def logits(self, model: Stages, x: Tensor) -> Tensor:
        """Logits of a pass in which hidden units are dropped."""
        if not self.p:
            return model(x)  # type: ignore[no-any-return]
        return model(x, tap=lambda stage, out: F.dropout(out, self.p) if stage in model.hidden else out)  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Playing(GenerativeAdversarialTrainer):
    """The same with a training under way: a declaration holds no weights.

    Attributes:
        generator: The other player.
        player: Its optimizer.
    """

    generator: nn.Module = field(repr=False, compare=False)
    player: torch.optim.Optimizer = field(repr=False, compare=False)

    def networks(self, model: Stages) -> tuple[nn.Module, ...]:
        """Both players."""
        return model, self.generator

    def parts(self) -> Mapping[str, Part]:
        """The generator and its optimizer."""
        return {"generator": self.generator, "player": self.player}

    def step(self, model: Stages, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Loss:
        """Some updates of the generator and one of the classifier; the loss and the logits are the classifier's."""
        images = x.detach().requires_grad_(True)
        logits = self.logits(model, images)
        odds = log_odds(logits, y)
        (grad,) = torch.autograd.grad(odds.sum(), images, retain_graph=True)
        gradient = probability_gradient(odds.detach(), grad)
        for _ in range(self.k - 1):
            _gather(self.player, self._meet(model, x, y, gradient)[0])
            update(self.player)
        cost, perturbed, perturbation = self._meet(model, x, y, gradient)
        value = self.alpha * F.cross_entropy(logits, y) + (1 - self.alpha) * F.cross_entropy(perturbed, y)
        # both gradients before either update: they share a pass
        _gather(optimizer, value, retain=True)
        _gather(self.player, cost)
        update(optimizer)
        update(self.player)
        logged = {"perturbation": _length(perturbation.detach()), "gradient": _length(gradient)}
        return Loss(value.detach(), logits.detach(), logged)

    def _meet(self, model: Stages, x: Tensor, y: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The generator's loss, the classifier's logits of the images that it perturbed, and by what."""
        perturbation = self.generator(gradient)
        logits = self.logits(model, x + perturbation)
        return generator_loss(logits, y, perturbation, self.c), logits, perturbation


def _length(of: Tensor) -> Tensor:
    """Mean L2 norm over a batch (N, ...), a scalar."""
    lengths: Tensor = of.float().flatten(1).norm(dim=1)
    return lengths.mean()


def _gather(optimizer: torch.optim.Optimizer, loss: Tensor, *, retain: bool = False) -> None:
    """Gradients of one player's weights, and of nobody else's."""
    optimizer.zero_grad(set_to_none=True)
    mine = [weight for group in optimizer.param_groups for weight in group["params"]]
    loss.backward(inputs=mine, retain_graph=retain)  # type: ignore[no-untyped-call]
