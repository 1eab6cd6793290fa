from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defenses.fast_gradient import FastGradient
from defenses.generative_adversarial_trainer import GenerativeAdversarialTrainer, Playing
from defenses.random_perturbation import RandomPerturbation
from defenses.standard import Standard
from harness.datasets.registry import DATASETS, Dataset, DatasetInfo
from harness.determinism import seed_everything
from harness.errors import UserError
from harness.identity import key
from harness.models.perturbation_generator import PerturbationGenerator
from harness.models.registry import build_model
from harness.models.stages import Stages
from harness.training.gradient_descent import score

SHAPE = (1, 8, 8)


@pytest.fixture
def model() -> Stages:
    seed_everything(0)
    return build_model("allconv", SHAPE, 10).train()


@pytest.fixture
def batch(digits: Dataset) -> tuple[Tensor, Tensor]:
    _, (x, y) = digits.train_sample(24)
    return x, y


def weights(module: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in module.parameters()]


def by_hand(game: Playing, model: Stages, x: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor], float]:
    """Weights of either player after one plain step of SGD at rate 1, in the most literal way; and the loss."""
    exact = copy.deepcopy(model).double()
    images = x.double().requires_grad_(True)
    probability = exact(images).softmax(1).gather(1, y.unsqueeze(1))
    (gradient,) = torch.autograd.grad(probability.sum(), images)
    generator = copy.deepcopy(game.generator).double()
    perturbation = generator(gradient)
    after = exact(x.double() + perturbation).softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)
    cost = (after + game.c * perturbation.flatten(1).norm(dim=1) ** 2).mean()
    clean = F.cross_entropy(exact(x.double()), y)
    value = game.alpha * clean + (1 - game.alpha) * F.cross_entropy(exact(x.double() + perturbation.detach()), y)
    mine = torch.autograd.grad(cost, list(generator.parameters()))
    theirs = torch.autograd.grad(value, list(exact.parameters()))
    moved = [p - g for p, g in zip(generator.parameters(), mine, strict=True)]
    return [p - g for p, g in zip(exact.parameters(), theirs, strict=True)], moved, float(value.detach())


@pytest.mark.parametrize("alpha", [0.5, 0.2])
def test_a_step_descends_both_losses(alpha: float, model: Stages, batch: Any) -> None:
    x, y = batch
    game = GenerativeAdversarialTrainer(epochs=1, alpha=alpha, c=0.3).against(PerturbationGenerator(1))
    with torch.no_grad():  # enough for the perturbation to count
        for value in game.generator.parameters():
            value *= 2
    vars(game)["player"] = torch.optim.SGD(game.generator.parameters(), lr=1.0)
    classifier, generator, loss = by_hand(game, model, x, y)
    before = weights(game.generator)
    clean = model(x)
    made = game.step(model, torch.optim.SGD(model.parameters(), lr=1.0), x.clone(), y)
    assert float(made.value) == pytest.approx(loss, rel=1e-4)
    torch.testing.assert_close(made.logits, clean)
    assert not made.value.requires_grad
    for ours, wanted in zip(weights(model), classifier, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-3, atol=1e-5)
    for ours, wanted, start in zip(weights(game.generator), generator, before, strict=True):
        torch.testing.assert_close((ours - start).double(), wanted - start.double(), rtol=2e-3, atol=1e-7)
    assert any((ours - start).abs().max() > 1e-6 for ours, start in zip(weights(game.generator), before, strict=True))


def test_k_updates_of_the_generator_to_one_of_the_classifier(model: Stages, batch: Any) -> None:
    x, y = batch
    game = GenerativeAdversarialTrainer(epochs=1, k=3).against(PerturbationGenerator(1))
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):
        game.step(model, optimizer, x.clone(), y)
    steps = {
        name: {int(state["step"]) for state in player.state.values()}
        for name, player in (("classifier", optimizer), ("generator", game.player))
    }
    assert steps == {"classifier": {2}, "generator": {6}}


def test_the_rates_are_the_papers(model: Stages, batch: Any) -> None:
    """Adam's first step is the rate long, whatever the gradient."""
    x, y = batch
    trainer = GenerativeAdversarialTrainer(epochs=1)
    game = trainer.against(PerturbationGenerator(1))
    before = weights(model), weights(game.generator)
    game.step(model, trainer.new_optimizer(model, 0.0), x.clone(), y)
    for module, start, rate in ((model, before[0], 1e-3), (game.generator, before[1], 1e-6)):
        moved = max(float((a - b).abs().max()) for a, b in zip(weights(module), start, strict=True))
        assert moved == pytest.approx(rate, rel=0.05)


def test_dropout_thins_every_pass(model: Stages, batch: Any) -> None:
    x, _ = batch
    trainer = GenerativeAdversarialTrainer(epochs=1, p=0.5)
    assert not torch.equal(trainer.logits(model, x), trainer.logits(model, x))
    plain = GenerativeAdversarialTrainer(epochs=1)
    assert torch.equal(plain.logits(model, x), model(x))


class Known(nn.Module):
    """A generator whose perturbations are as long as the batch is large."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, gradient: Tensor) -> Tensor:
        directions = torch.ones_like(gradient) / gradient[0].numel() ** 0.5
        return self.weight * len(gradient) * directions


class Rigged(GenerativeAdversarialTrainer):
    """The method with that generator."""

    def opponent(self, info: DatasetInfo) -> Known:  # type: ignore[override]
        return Known()


def test_a_step_logs_how_far_images_are_moved(model: Stages, batch: Any) -> None:
    x, y = batch
    game = GenerativeAdversarialTrainer(epochs=1, k=2).against(PerturbationGenerator(1))
    seen: list[Tensor] = []
    made: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        seen.append(given[0])
        made.append(out.detach())

    game.generator.register_forward_hook(keep)
    logged = game.step(model, torch.optim.Adam(model.parameters()), x.clone(), y).logged
    for name, tensor in (("perturbation", made[-1]), ("gradient", seen[-1])):
        torch.testing.assert_close(logged[name], tensor.flatten(1).square().sum(1).sqrt().mean())
        assert not logged[name].requires_grad


def test_the_history_logs_means_over_images(digits: Dataset) -> None:
    seed_everything(0)
    trainer = Rigged(epochs=2, subset=40, batch_size=32, generator_lr=1e-12)
    for line in trainer.fit("allconv", digits).history:
        assert line.logged["perturbation"] == pytest.approx((32 * 32 + 8 * 8) / 40, rel=1e-4)
        assert line.logged["gradient"] > 0
    assert Standard(epochs=1, subset=40).fit("mlp-8", digits).history[0].logged == {}


def test_the_judged_model_holds_no_generator(digits: Dataset) -> None:
    trainer = GenerativeAdversarialTrainer(epochs=1, subset=64, batch_size=32)
    seed_everything(0)
    model = trainer.fit("allconv", digits).model
    names = build_model("allconv", SHAPE, 10).state_dict().keys()
    assert model.state_dict().keys() == names
    trainer.build("allconv", digits.info).load_state_dict(model.state_dict())


def test_training_makes_it_robust(digits: Dataset) -> None:
    _, (x, y) = digits.test_sample(200)
    left = {}
    for trainer in (
        Standard(epochs=6, subset=700, batch_size=32),
        GenerativeAdversarialTrainer(epochs=6, subset=700, batch_size=32, generator_lr=1e-3),
    ):
        seed_everything(0)
        model = trainer.fit("allconv", digits).model
        images = x.clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(F.cross_entropy(model(images), y), images)
        step = 0.5 * grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        left[trainer.name] = float((model(x + step).argmax(1) == y).float().mean())
        assert score(model, digits, digits.x_test, digits.y_test)[1] > 0.8
    assert left["generative-adversarial-trainer"] > left["standard"] + 0.1


def test_declarations_hold_no_weights() -> None:
    trainer = GenerativeAdversarialTrainer(epochs=1)
    assert len(key(trainer)) == 16
    assert trainer.label(DATASETS["cifar10"]).startswith("generative-adversarial-trainer")
    assert GenerativeAdversarialTrainer().resolve(DATASETS["digits"]) == GenerativeAdversarialTrainer(epochs=60)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"c": -0.1}, "c must be at least 0"),
        ({"alpha": 1.5}, r"alpha must be in \[0, 1\]"),
        ({"k": 0}, "k must be at least 1"),
        ({"generator_lr": 0.0}, "generator_lr must be positive"),
        ({"p": 1.0}, r"p must be in \[0, 1\)"),
        ({"subset": 0}, "subset must be at least 1"),
    ],
)
def test_hyperparameters_out_of_range(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=f"generative-adversarial-trainer: {complaint}"):
        GenerativeAdversarialTrainer(**settings)


def test_random_perturbations_have_their_length(model: Stages, batch: Any) -> None:
    x, y = batch
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return model(images)

    made = RandomPerturbation(epochs=1, alpha=0.3, eps=0.7).loss(Spy(), x, y)  # type: ignore[arg-type]
    clean, moved = sorted(seen, key=lambda images: float((images - x).abs().max()))
    assert torch.equal(clean, x)
    lengths = (moved - x).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.7))
    wanted = 0.3 * F.cross_entropy(model(x), y) + 0.7 * F.cross_entropy(model(moved), y)
    torch.testing.assert_close(made.value, wanted)
    info = DATASETS["cifar10"]
    assert RandomPerturbation().resolve(info).eps == FastGradient(norm="l2").resolve(info).eps
    for bad in ({"eps": -1.0}, {"alpha": -0.1}):
        with pytest.raises(UserError, match="random-perturbation"):
            RandomPerturbation(**bad)
