from __future__ import annotations

import math
import shutil
import warnings
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defenses.contractive import Contractive
from defenses.dropout import Dropout
from defenses.fast_gradient import FastGradient
from defenses.generative_adversarial_trainer import GenerativeAdversarialTrainer
from defenses.gradient_regularization import GradientRegularization
from defenses.standard import Standard
from harness.datasets.registry import DATASETS, Dataset
from harness.determinism import seed_everything
from harness.errors import UserError
from harness.identity import canonical, key
from harness.models.registry import build_model
from harness.models.stages import Stages
from harness.training.defense import Diverged, Loss, Trained
from harness.training.gradient_descent import score
from harness.training.optim import limit_norms
from harness.training.pretraining import ACTIVITY, Decoder, reconstruction_loss, sparsity
from harness.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Plain(Trainer):
    name: ClassVar[str] = "plain"


def fit(data: Dataset, trainer: Trainer, *, seed: int = 0, architecture: str = "mlp-16", **more: Any) -> Trained:
    seed_everything(seed)
    return trainer.fit(architecture, data, **more)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


@pytest.fixture(scope="module")
def tiny(digits: Dataset) -> Dataset:
    """The first 200 training images."""
    return replace(digits, x_train=digits.x_train[:200], y_train=digits.y_train[:200])


def test_plain_training_learns_the_digits(digits: Dataset, trained: nn.Module) -> None:
    loss, accuracy = score(trained, digits, digits.x_test, digits.y_test)
    assert accuracy > 0.9
    assert loss < 0.4


def test_the_history_has_a_line_an_epoch(tiny: Dataset) -> None:
    told: list[tuple[int, int, dict[str, float]]] = []
    model, history = fit(
        tiny,
        Plain(epochs=3, validation=0.2),
        progress=lambda done, total, values: told.append((done, total, {**values})),
    )
    assert [line.epoch for line in history] == [1, 2, 3]
    assert [(done, total) for done, total, _ in told] == [(1, 3), (2, 3), (3, 3)]
    assert told[-1][2] == {"loss": history[-1].loss, "accuracy": history[-1].accuracy}
    assert history[-1].loss < history[0].loss
    assert all(0 <= line.validation_accuracy <= 1 and line.validation_loss > 0 for line in history)
    assert not model.training


def test_no_epochs_give_the_initial_weights(tiny: Dataset) -> None:
    model, history = fit(tiny, Plain(epochs=0))
    assert history == []
    assert torch.equal(weights(model), weights(fit(tiny, Plain(epochs=0)).model))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_seed_fixes_the_model(tiny: Dataset, optimizer: Any, schedule: Any) -> None:
    trainer = Plain(epochs=2, optimizer=optimizer, schedule=schedule, validation=0.1)
    first = weights(fit(tiny, trainer).model)
    assert torch.equal(weights(fit(tiny, trainer).model), first)
    assert not torch.equal(weights(fit(tiny, trainer, seed=1).model), first)


def test_watching_changes_nothing(tiny: Dataset) -> None:
    watched = fit(tiny, Plain(epochs=2), progress=lambda *_: None).model
    assert torch.equal(weights(watched), weights(fit(tiny, Plain(epochs=2)).model))


def test_the_test_part_is_not_looked_at(tiny: Dataset) -> None:
    blank = replace(tiny, x_test=torch.zeros_like(tiny.x_test), y_test=torch.zeros_like(tiny.y_test))
    assert torch.equal(weights(fit(blank, Plain(epochs=2)).model), weights(fit(tiny, Plain(epochs=2)).model))


@dataclass(frozen=True, kw_only=True)
class Rates(Trainer):
    """Notes the learning rate and the images of every step."""

    name: ClassVar[str] = "rates"

    def step(self, model: Stages, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Loss:
        SEEN.append((optimizer.param_groups[0]["lr"], x, y))
        return super().step(model, optimizer, x, y)


SEEN: list[tuple[float, Tensor, Tensor]] = []


@pytest.fixture(autouse=True)
def forget() -> None:
    SEEN.clear()


def test_the_cosine_goes_from_the_rate_to_zero(tiny: Dataset) -> None:
    fit(tiny, Rates(epochs=4, batch_size=50, schedule="cosine", lr=0.1, optimizer="sgd"))
    rates = [rate for rate, _, _ in SEEN]
    assert len(rates) == 16
    expected = [0.05 * (1 + math.cos(math.pi * step / 16)) for step in range(16)]
    assert rates == pytest.approx(expected)


def test_constant_is_constant(tiny: Dataset) -> None:
    fit(tiny, Rates(epochs=2, batch_size=50, lr=0.02))
    assert {rate for rate, _, _ in SEEN} == {0.02}


def test_every_image_is_seen_once_an_epoch_in_a_new_order(tiny: Dataset) -> None:
    fit(tiny, Rates(epochs=2, batch_size=64))
    assert [len(x) for _, x, _ in SEEN] == [64, 64, 64, 8] * 2
    first, second = (torch.cat([x for _, x, _ in SEEN[part]]) for part in (slice(0, 4), slice(4, 8)))
    assert not torch.equal(first, second)
    images = sorted(map(tuple, tiny.train.x.flatten(1).tolist()))
    assert sorted(map(tuple, first.flatten(1).tolist())) == images
    assert sorted(map(tuple, second.flatten(1).tolist())) == images


@pytest.mark.parametrize(("validation", "kept"), [(0.0, 200), (0.25, 150), (1e-6, 199), (0.999999, 1)])
def test_a_validation_split_leaves_something_on_either_side(tiny: Dataset, validation: float, kept: int) -> None:
    _, history = fit(tiny, Rates(epochs=2, validation=validation, batch_size=500))
    assert [len(x) for _, x, _ in SEEN] == [kept, kept]
    assert torch.equal(SEEN[0][1].sum((1, 2, 3)).sort().values, SEEN[1][1].sum((1, 2, 3)).sort().values)
    assert math.isnan(history[0].validation_loss) == (validation == 0)


@dataclass(frozen=True, kw_only=True)
class Worsens(Trainer):
    """Good for two epochs, then the weights are pushed away."""

    name: ClassVar[str] = "worsens"

    def step(self, model: Stages, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Loss:
        loss = super().step(model, optimizer, x, y)
        SEEN.append((0.0, x, y))
        if len(SEEN) == 2:
            BEST[:] = [weights(model)]
        if len(SEEN) > 2:
            with torch.no_grad():
                model.stages["logits"].bias[0] += 10  # type: ignore[operator, union-attr]
        return loss


BEST: list[Tensor] = []


def test_early_stopping_restores_the_best_weights(tiny: Dataset) -> None:
    trainer = Worsens(epochs=50, batch_size=500, validation=0.2, patience=3)
    model, history = fit(tiny, trainer)
    losses = [line.validation_loss for line in history]
    assert losses.index(min(losses)) == 1
    assert len(history) == 2 + 3
    assert torch.equal(weights(model), BEST[0])


def test_without_patience_the_last_weights_stay(tiny: Dataset) -> None:
    model, history = fit(tiny, Worsens(epochs=5, batch_size=500, validation=0.2))
    assert len(history) == 5
    assert not torch.equal(weights(model), BEST[0])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_divergence_is_reported(tiny: Dataset, optimizer: Any, epochs: int) -> None:
    """One epoch of one step: its loss is that of the initial weights, and fine."""
    with pytest.raises(Diverged, match=r"plain: the .*loss .* (nan|inf).*; try a lower lr"):
        fit(tiny, Plain(epochs=epochs, lr=1e30, optimizer=optimizer, batch_size=500))


def test_a_large_rate_that_stays_finite_is_no_divergence(tiny: Dataset) -> None:
    assert len(fit(tiny, Plain(epochs=2, lr=0.5)).history) == 2


def test_weight_decay_and_momentum_reach_the_optimizer(tiny: Dataset) -> None:
    plain = weights(fit(tiny, Plain(epochs=1, optimizer="sgd")).model)
    assert not torch.equal(weights(fit(tiny, Plain(epochs=1, optimizer="sgd", weight_decay=0.1)).model), plain)
    assert not torch.equal(weights(fit(tiny, Plain(epochs=1, optimizer="sgd", momentum=0.0)).model), plain)


def test_one_sgd_step_is_the_formula(tiny: Dataset) -> None:
    start = fit(tiny, Plain(epochs=0), architecture="mlp-4").model
    trainer = Plain(epochs=1, batch_size=500, optimizer="sgd", lr=0.3, weight_decay=0.01)
    moved = fit(tiny, trainer, architecture="mlp-4").model
    # whatever the order, the one batch is the whole set
    x, y = tiny.train
    loss = F.cross_entropy(start(x), y)
    for before, after, grad in zip(
        start.parameters(), moved.parameters(), torch.autograd.grad(loss, list(start.parameters())), strict=True
    ):
        torch.testing.assert_close(after, before - 0.3 * (grad + 0.01 * before), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decayed", ["all", "dense"])
@pytest.mark.parametrize("architecture", ["convnet-gu", "mlp-4"])
def test_decay_can_leave_convolutions_out(tiny: Dataset, decayed: Any, architecture: str) -> None:
    start = fit(tiny, Plain(epochs=0), architecture=architecture).model
    trainer = Plain(epochs=1, batch_size=500, optimizer="sgd", lr=0.3, weight_decay=0.1, decayed=decayed)
    moved = fit(tiny, trainer, architecture=architecture).model
    x, y = tiny.train
    grads = torch.autograd.grad(F.cross_entropy(start(x), y), list(start.parameters()))
    for (name, before), after, grad in zip(start.named_parameters(), moved.parameters(), grads, strict=True):
        decay = 0.0 if decayed == "dense" and "conv" in name else 0.1
        torch.testing.assert_close(after, before - 0.3 * (grad + decay * before), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- stages trained without labels


def halves(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Weights of the encoder and of the softmax on top."""
    assert isinstance(model, Stages)
    return weights(model.stages["hidden1"]), weights(model.stages["logits"])


def encoder(data: Dataset, trainer: Trainer, seed: int = 0) -> Tensor:
    return halves(fit(data, trainer, architecture="ae-400", seed=seed).model)[0]


def test_an_autoencoders_features_are_enough_for_the_digits(digits: Dataset) -> None:
    trained = fit(digits, Plain(epochs=15, lr=2e-2, pretraining=30), architecture="ae-400")
    assert len(trained.history) == 15
    assert score(trained.model, digits, digits.x_test, digits.y_test)[1] > 0.9


def test_labels_train_the_softmax_alone(tiny: Dataset) -> None:
    first, second = (fit(tiny, Plain(epochs=e, pretraining=2), architecture="ae-400").model for e in (0, 3))
    assert torch.equal(halves(first)[0], halves(second)[0])
    assert not torch.equal(halves(first)[1], halves(second)[1])
    blank = replace(tiny, y_train=torch.zeros_like(tiny.y_train))
    assert torch.equal(encoder(blank, Plain(epochs=3, pretraining=2)), halves(second)[0])
    assert not torch.equal(encoder(tiny, Plain(epochs=0, pretraining=2), seed=1), halves(first)[0])


def test_weight_decay_is_for_labels(tiny: Dataset) -> None:
    """A decay of the size that a classifier needs would leave nothing of an encoder."""
    plain = encoder(tiny, Plain(epochs=1, pretraining=2))
    assert torch.equal(encoder(tiny, Plain(epochs=1, pretraining=2, weight_decay=0.1)), plain)


def test_without_a_number_there_are_as_many_passes_as_epochs(tiny: Dataset) -> None:
    assert torch.equal(encoder(tiny, Plain(epochs=2)), encoder(tiny, Plain(epochs=0, pretraining=2)))
    untouched = fit(tiny, Plain(epochs=0), architecture="ae-400").model
    assert torch.equal(encoder(tiny, Plain(epochs=2, pretraining=0)), halves(untouched)[0])


def test_the_judged_model_is_as_any_other(tiny: Dataset) -> None:
    """Nothing of the freezing or the decoder remains."""
    trainer = Plain(epochs=1)
    model = fit(tiny, trainer, architecture="ae-400").model
    assert all(p.requires_grad for p in model.parameters())
    again = trainer.build("ae-400", tiny.info)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(tiny.test.x), model(tiny.test.x))


@pytest.mark.parametrize("setting", [{"pretraining": 5}, {"pretraining_lr": 0.1}, {"fine_tuned": True}], ids=str)
@pytest.mark.parametrize("architecture", ["mlp-16", "convnet-gu"])
def test_a_model_without_such_stages_cannot_be_pretrained(
    tiny: Dataset, architecture: str, setting: dict[str, Any]
) -> None:
    (name,) = setting
    with pytest.raises(UserError, match=f"{name} means nothing to {architecture}, which trains with labels alone"):
        fit(tiny, Plain(epochs=1, **setting), architecture=architecture)


def test_a_fine_tuned_stage_goes_on_from_its_pre_training_with_labels_and_decay(tiny: Dataset) -> None:
    settings: dict[str, Any] = {"optimizer": "sgd", "lr": 0.1, "pretraining": 2, "pretraining_lr": 1e-2}
    frozen = encoder(tiny, Plain(epochs=2, **settings))
    # without a step with labels both are what pre-training made
    assert torch.equal(encoder(tiny, Plain(epochs=0, fine_tuned=True, **settings)), frozen)
    tuned = encoder(tiny, Plain(epochs=2, fine_tuned=True, **settings))
    assert 0 < float((tuned - frozen).norm()) < float(frozen.norm())
    decayed = encoder(tiny, Plain(epochs=2, fine_tuned=True, weight_decay=0.1, **settings))
    assert float(decayed.norm()) < float(tuned.norm())


def test_pre_training_may_have_a_rate_of_its_own_by_adam(tiny: Dataset) -> None:
    own = Plain(epochs=1, optimizer="sgd", lr=0.5, pretraining=2, pretraining_lr=1e-2)
    assert torch.equal(encoder(tiny, own), encoder(tiny, Plain(epochs=1, lr=1e-2, pretraining=2)))
    assert not torch.equal(encoder(tiny, own), encoder(tiny, replace(own, pretraining_lr=None)))


@dataclass(frozen=True, kw_only=True)
class Reconstructs(Trainer):
    """Notes what its encoder is shown, and the loss."""

    name: ClassVar[str] = "reconstructs"
    scale: float = 1.0

    def reconstruction(self, model: Stages, stage: str, decoder: Decoder, x: Tensor) -> Tensor:
        loss = self.scale * super().reconstruction(model, stage, decoder, x)
        SEEN.append((loss.item(), x, x))
        return loss


def test_an_encoder_sees_the_images_that_are_trained_on(tiny: Dataset) -> None:
    """Each once a pass, and none of those that are held out."""
    trainer = Reconstructs(epochs=1, pretraining=2, batch_size=64, validation=0.25, lr=1e-2)
    fit(tiny, trainer, architecture="ae-400")
    assert [len(x) for _, x, _ in SEEN] == [64, 64, 22] * 2
    first, second = (torch.cat([x for _, x, _ in SEEN[part]]) for part in (slice(0, 3), slice(3, 6)))
    assert sorted(map(tuple, first.tolist())) == sorted(map(tuple, second.tolist()))
    assert set(map(tuple, first.tolist())) <= set(map(tuple, tiny.train.x.flatten(1).tolist()))
    assert SEEN[-1][0] < SEEN[0][0]


def test_an_encoder_that_diverges_is_reported(tiny: Dataset) -> None:
    with pytest.raises(Diverged, match=r"reconstructs: the loss of hidden1 in epoch 1 became (inf|nan); try"):
        fit(tiny, Reconstructs(epochs=1, scale=1e39), architecture="ae-400")


def test_the_reconstruction_loss_is_the_cross_entropy_of_a_component() -> None:
    x, logits = torch.rand(5, 2, 3), torch.randn(5, 6)
    p, q = x.flatten(1), logits.sigmoid()
    expected = -(p * q.log() + (1 - p) * (1 - q).log()).mean()
    torch.testing.assert_close(reconstruction_loss(logits, x), expected)


def test_sparsity_is_the_divergence_of_mean_activations() -> None:
    h = torch.rand(6, 4)
    rho, q = ACTIVITY, h.mean(0)
    expected = (rho * (rho / q).log() + (1 - rho) * ((1 - rho) / (1 - q)).log()).mean()
    torch.testing.assert_close(sparsity(h), expected)
    assert sparsity(torch.full((6, 4), ACTIVITY)).item() == pytest.approx(0, abs=1e-6)


def test_an_encoder_becomes_sparse(digits: Dataset) -> None:
    trainer = Plain(epochs=0, pretraining=30, lr=2e-2)
    model = fit(digits, trainer, architecture="ae-400").model
    assert isinstance(model, Stages)
    with torch.no_grad():
        activity = model.entering("logits", digits.test.x).mean()
    assert activity.item() == pytest.approx(ACTIVITY, abs=0.03)


def test_keys_of_before_stand() -> None:
    """Fields that came later count only where they are set."""
    fields = canonical(Plain())
    assert "decayed" not in fields
    assert "pretraining" not in fields
    assert not {"max_norm", "refit"} & set(fields)
    assert canonical(Plain(max_norm=2.0, validation=0.1, refit=3)).items() >= {"max_norm": 2, "refit": 3}.items()
    assert key(Plain(weight_decay=0.1, decayed="dense")) != key(Plain(weight_decay=0.1)) != key(Plain(pretraining=3))


# ---------------------------------------------------------------- declarations


# ---------------------------------------------------------------- max-norm


def test_no_unit_has_more_than_the_largest_norm(tiny: Dataset) -> None:
    trainer = Plain(epochs=2, lr=1e-2, max_norm=0.5)
    for architecture in ("mlp-16", "lenet", "maxout"):
        model = fit(tiny, trainer, architecture=architecture).model
        free = fit(tiny, replace(trainer, max_norm=None), architecture=architecture).model
        mine, others = (
            torch.cat([p.detach().flatten(1).norm(dim=1) for p in one.parameters() if p.dim() > 1])
            for one in (model, free)
        )
        assert mine.max() <= 0.5 + 1e-5
        assert (mine > 0.499).any()
        assert others.max() > 0.6


def test_only_what_is_too_large_is_scaled_and_no_bias() -> None:
    layer = nn.Linear(2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]))
        layer.bias.fill_(7.0)
    limit_norms(nn.Sequential(layer), 2.5)
    torch.testing.assert_close(layer.weight, torch.tensor([[1.5, 2.0], [0.3, 0.4], [0.0, 0.0]]))
    assert (layer.bias == 7).all()


def test_a_limit_that_nothing_reaches_changes_nothing(tiny: Dataset) -> None:
    free, limited = (weights(fit(tiny, Plain(epochs=1, max_norm=limit)).model) for limit in (None, 1e6))
    assert torch.equal(free, limited)


# ---------------------------------------------------------------- two stages


def test_the_second_stage_sees_all_images_at_a_tenth_of_the_rate(tiny: Dataset) -> None:
    told: list[tuple[int, int]] = []
    trainer = Rates(epochs=2, validation=0.25, batch_size=500, lr=1e-3, schedule="cosine", refit=3)
    _, history = fit(tiny, trainer, progress=lambda done, total, _: told.append((done, total)))
    assert [len(x) for _, x, _ in SEEN[:2]] == [150, 150]
    assert len(SEEN) > 2
    assert {len(x) for _, x, _ in SEEN[2:]} == {200}
    assert [rate for rate, _, _ in SEEN] == pytest.approx([1e-3, 5e-4] + [1e-4] * (len(SEEN) - 2))
    assert sorted(map(tuple, SEEN[-1][1].flatten(1).tolist())) == sorted(map(tuple, tiny.train.x.flatten(1).tolist()))
    assert [line.epoch for line in history] == list(range(1, len(SEEN) + 1))
    assert told == [(done, 5) for done in range(1, len(SEEN) + 1)]


def test_it_ends_where_the_held_out_loss_is_what_the_training_loss_was(digits: Dataset) -> None:
    first = Plain(epochs=8, lr=1e-2, validation=0.2)
    seed_everything(0)
    model = first.fit("mlp-32", digits).model
    seed_everything(0)
    build_model("mlp-32", digits.info.shape, 10)  # the order of images is drawn after the weights
    kept = torch.randperm(len(digits.x_train))[round(0.2 * len(digits.x_train)) :]
    wanted, _ = score(model, digits, digits.x_train, digits.y_train, kept)
    _, history = fit(digits, replace(first, refit=60), architecture="mlp-32")
    second = [line.validation_loss for line in history[8:]]
    assert second[-1] <= wanted
    assert all(loss > wanted for loss in second[:-1])
    assert 1 <= len(second) < 60
    _, cut = fit(digits, replace(first, refit=1), architecture="mlp-32")
    assert len(cut) == 9


def test_the_first_stage_is_what_it_is_alone(tiny: Dataset) -> None:
    first = Plain(epochs=3, validation=0.25)
    alone, both = (fit(tiny, replace(first, refit=refit)).history for refit in (None, 2))
    assert [line[:5] for line in both[:3]] == [line[:5] for line in alone]


def test_the_second_stage_begins_at_the_best_weights(tiny: Dataset) -> None:
    trainer = Worsens(epochs=10, batch_size=500, validation=0.25, patience=2, lr=1e-3, refit=1)
    _, history = fit(tiny, trainer)
    x, y = SEEN[-1][1:]
    assert len(x) == 200
    model = build_model("mlp-16", tiny.info.shape, 10)
    start = 0
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(BEST[0][start : start + value.numel()].view_as(value))
            start += value.numel()
        assert history[-1].loss == pytest.approx(float(F.cross_entropy(model(x), y)), rel=1e-5)


def test_score_is_the_mean_over_images_whatever_the_batch(digits: Dataset, trained: nn.Module) -> None:
    with torch.no_grad():
        logits = trained(digits.test.x)
    for batch in (7, 1000):
        loss, accuracy = score(trained, digits, digits.x_test, digits.y_test, batch=batch)
        assert loss == pytest.approx(float(F.cross_entropy(logits, digits.y_test)), rel=1e-5)
        assert accuracy == pytest.approx(float((logits.argmax(1) == digits.y_test).double().mean()), rel=1e-12)
    none = score(trained, digits, digits.x_test, digits.y_test, torch.zeros(0, dtype=torch.int64))
    assert all(math.isnan(value) for value in none)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"epochs": -1}, "plain: epochs must be at least 0, got -1"),
        ({"pretraining": -1}, "plain: pretraining must be at least 0, got -1"),
        ({"decayed": "some"}, "unknown decayed for plain 'some'; choose from all, dense"),
        ({"batch_size": 0}, "plain: batch_size must be at least 1, got 0"),
        ({"lr": 0.0}, "plain: lr must be positive, got 0.0"),
        ({"lr": -1.0}, "plain: lr must be positive"),
        ({"lr": math.nan}, "plain: lr must be finite, got nan"),
        ({"lr": math.inf}, "plain: lr must be finite, got inf"),
        ({"momentum": 1.0}, r"plain: momentum must be in \[0, 1\)"),
        ({"momentum": -0.1}, r"plain: momentum must be in \[0, 1\)"),
        ({"weight_decay": -1e-9}, "plain: weight_decay must be at least 0"),
        ({"weight_decay": math.inf}, "plain: weight_decay must be finite"),
        ({"validation": 1.0}, r"plain: validation must be in \[0, 1\)"),
        ({"validation": -0.1}, r"plain: validation must be in \[0, 1\)"),
        ({"patience": 0, "validation": 0.1}, "plain: patience must be at least 1"),
        ({"patience": 2}, "plain: patience needs a validation split"),
        ({"refit": 2}, "plain: refit needs a validation split"),
        ({"refit": 0, "validation": 0.1}, "plain: refit must be at least 1"),
        ({"max_norm": 0.0}, "plain: max_norm must be positive"),
        ({"optimizer": "adan"}, "unknown optimizer for plain 'adan'; did you mean adam.*choose from adam, sgd"),
        ({"schedule": "cosin"}, "unknown schedule for plain 'cosin'; did you mean cosine"),
    ],
)
def test_hyperparameters_out_of_range(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as raised:
        Plain(**settings)
    assert "\n" not in str(raised.value)


def test_resolving_fills_in_the_data_sets_epochs_once() -> None:
    info = DATASETS["digits"]
    resolved = Plain().resolve(info)
    assert resolved.epochs == info.epochs
    assert resolved.resolve(DATASETS["mnist"]) == resolved
    assert Plain(epochs=3).resolve(info).epochs == 3


def test_labels_show_what_is_not_the_default_there() -> None:
    digits, mnist = DATASETS["digits"], DATASETS["mnist"]
    assert Plain().label(digits) == "plain"
    assert Plain(epochs=digits.epochs).label(digits) == "plain"
    assert Plain(epochs=digits.epochs).label(mnist) == f"plain(epochs={digits.epochs})"
    assert Plain(lr=0.01, batch_size=64).label(digits) == "plain(batch_size=64, lr=0.01)"


def test_two_settings_never_share_a_label() -> None:
    """Rows of one label are taken for seeds of one defense."""
    info = DATASETS["digits"]
    assert Plain(lr=0.0314).label(info) == "plain(lr=0.0314)"
    assert Plain(lr=8 / 255).label(info) != Plain(lr=0.03137).label(info)
    assert Plain(lr=0.00100001).label(info) != Plain().label(info)


def test_a_subset_is_the_same_for_every_seed(digits: Dataset) -> None:
    index, wanted = digits.train_sample(50)
    part = digits.first(50)
    assert torch.equal(part.train.x, wanted.x)
    assert torch.equal(part.y_train, digits.y_train[index])
    assert part.x_test is digits.x_test
    for seed in (0, 1):
        SEEN.clear()
        fit(digits, Rates(epochs=1, batch_size=16, subset=50, validation=0.2), seed=seed)
        seen = torch.cat([x for _, x, _ in SEEN])
        assert len(seen) == 40
        assert (seen.flatten(1)[:, None] == wanted.x.flatten(1)[None]).all(2).any(1).all()


def test_a_subset_is_no_larger_than_the_set(tiny: Dataset) -> None:
    with pytest.raises(UserError, match=r"sample of 201 training images of digits: choose from 1\.\.200"):
        fit(tiny, Plain(epochs=1, subset=201))
    with pytest.raises(UserError, match="plain: subset must be at least 1, got 0"):
        Plain(subset=0)
    assert key(Plain(epochs=1)) == key(Plain(epochs=1, subset=None)) != key(Plain(epochs=1, subset=5))
    assert "subset" not in canonical(Plain())


# ---------------------------------------------------------------- how passes are computed


WAYS = {
    "standard": Standard(epochs=3, batch_size=32),
    "fast-gradient": FastGradient(epochs=3, batch_size=32, norm="l2", eps=0.3),
    "dropout": Dropout(epochs=3, batch_size=32, p=0.2),
    "gradient-regularization": GradientRegularization(epochs=3, batch_size=32, sigma=0.3),
    "gat": GenerativeAdversarialTrainer(epochs=3, batch_size=32, generator_lr=1e-4),
}


@pytest.mark.parametrize("name", WAYS)
def test_half_precision_moves_weights_less_than_a_seed_does(tiny: Dataset, name: str) -> None:
    full, half = WAYS[name], replace(WAYS[name], precision="bfloat16")
    model, _ = fit(tiny, half, architecture="mlp-32")
    first, other = (weights(fit(tiny, full, seed=seed, architecture="mlp-32").model) for seed in (0, 1))
    assert 0 < (weights(model) - first).norm() < 0.2 * (other - first).norm()
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())
    assert model(tiny.train.x[:3]).dtype == torch.float32


def test_passes_of_training_alone_are_in_half_precision(tiny: Dataset) -> None:
    seen: list[tuple[bool, torch.dtype]] = []

    @dataclass(frozen=True, kw_only=True)
    class Watched(Standard):
        def loss(self, model: Stages, x: Tensor, y: Tensor) -> Loss:
            if not seen:
                model.stages["hidden1"].register_forward_hook(lambda m, _, out: seen.append((m.training, out.dtype)))
            return super().loss(model, x, y)

    model, _ = fit(tiny, Watched(epochs=2, validation=0.2, precision="bfloat16"))
    model(tiny.train.x[:2])
    assert set(seen) == {(True, torch.bfloat16), (False, torch.float32)}
    assert "forward" not in vars(model)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
@pytest.mark.parametrize("name", [pytest.param("fast-gradient", marks=pytest.mark.long), "gat"])
def test_compiled_passes_give_the_same(tiny: Dataset, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    trainer = WAYS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler's own
        model = fit(tiny, replace(trainer, compiled=True)).model
    assert "cannot compile" not in capfd.readouterr().err
    torch.testing.assert_close(weights(model), weights(fit(tiny, trainer).model), rtol=1e-3, atol=1e-4)


def test_without_a_compiler_training_goes_on(
    tiny: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(forward: Any) -> Any:
        def run(*_: Any, **__: Any) -> Tensor:
            raise RuntimeError("no compiler here\nand much more")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    model = fit(tiny, Standard(epochs=2, compiled=True)).model
    assert capsys.readouterr().err == "gauntlet: cannot compile Stages (no compiler here); training goes on without\n"
    assert torch.equal(weights(model), weights(fit(tiny, Standard(epochs=2)).model))


def test_how_passes_are_computed_counts_only_where_it_is_said() -> None:
    plain = Standard(epochs=1)
    assert {"precision", "compiled"}.isdisjoint(canonical(plain))
    others = [replace(plain, precision="bfloat16"), replace(plain, compiled=True)]
    assert len({key(plain), *map(key, others)}) == 3


@pytest.mark.parametrize("field", [{"precision": "bfloat16"}, {"compiled": True}])
def test_trainers_that_look_into_layers_refuse(field: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="where not all passes"):
        Contractive(**field)


def test_what_cannot_be_chosen_is_said() -> None:
    with pytest.raises(UserError, match="precision"):
        Standard(precision="float8")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="compiled must be False for the penalty"):
        GradientRegularization(form="penalty", compiled=True)


@dataclass(frozen=True, kw_only=True)
class ReturnsATensor(Trainer):
    name = "returns-a-tensor"
    summary = "forgets the logits"

    def loss(self, model: Stages, x: Tensor, y: Tensor) -> Loss:
        return F.cross_entropy(model(x), y)  # type: ignore[return-value]


def test_a_loss_that_is_a_tensor_is_refused_with_what_to_return(digits: Dataset) -> None:
    with pytest.raises(UserError, match=r"loss must return gauntlet\.Loss\(value, logits\), got Tensor"):
        fit(digits, ReturnsATensor(epochs=1))
