from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import defenses as package
from defenses import defense, defenses
from defenses.dropout import Dropout
from defenses.fast_gradient import FastGradient
from defenses.gaussian_noise import GaussianNoise
from defenses.pgd import Pgd
from defenses.standard import Standard
from harness.datasets.registry import DATASETS, Dataset
from harness.determinism import seed_everything
from harness.errors import UserError
from harness.identity import key
from harness.models.purifier import Autoencoder, Purified
from harness.models.registry import build_model
from harness.models.stages import Stages
from harness.threat import Threat
from harness.training.defense import Loss
from harness.training.on_trained import OnTrainedModel, Wrapper
from harness.training.trainer import Trainer

SHAPE = (1, 8, 8)


@pytest.fixture
def model() -> Stages:
    seed_everything(0)
    return build_model("mlp-12-9", SHAPE, 10).train()


@pytest.fixture
def batch(digits: Dataset) -> tuple[Tensor, Tensor]:
    _, (x, y) = digits.train_sample(30)
    return x, y


def gradients(loss: Tensor, model: Stages) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def assert_same_update(mine: Loss, expected: Tensor, model: Stages) -> None:
    """Equal values, and equal gradients: the objective is the formula's."""
    torch.testing.assert_close(mine.value, expected)
    for a, b in zip(gradients(mine.value, model), gradients(expected, model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


# ---------------------------------------------------------------- all of them


def test_the_classics_are_found() -> None:
    assert list(defenses()) == sorted(defenses())
    assert {"standard", "dropout", "gaussian-noise", "fast-gradient", "pgd"} <= set(defenses())
    assert defense("pgd") is Pgd


def test_an_unknown_defense_is_met_with_suggestions() -> None:
    with pytest.raises(UserError, match=r"unknown defense 'gausian-noise'; did you mean gaussian-noise.*choose from"):
        defense("gausian-noise")


def test_a_new_file_is_all_a_defense_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brand_new.py").write_text(
        "from dataclasses import dataclass\n"
        "from harness.training.trainer import Trainer\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class BrandNew(Trainer):\n"
        "    name = 'brand-new'\n"
    )
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    defenses.cache_clear()
    try:
        assert defenses()["brand-new"]().label(DATASETS["digits"]) == "brand-new"
    finally:
        monkeypatch.undo()
        defenses.cache_clear()
    assert "brand-new" not in defenses()


def few(data: Dataset, n: int) -> Dataset:
    return replace(data, x_train=data.x_train[:n], y_train=data.y_train[:n])


@cache
def base_of(architecture: str, data: Dataset) -> nn.Module:
    """A model to build upon; do not change it."""
    seed_everything(0)
    return Standard(epochs=2, lr=5e-3).fit(architecture, few(data, 400)).model


def needs(name: str, architecture: str, data: Dataset) -> dict[str, nn.Module]:
    """What ``fit`` has to be given for a defense beside the data."""
    kind = defense(name)
    if not issubclass(kind, OnTrainedModel):
        return {}
    base = base_of(architecture, data)
    return {"base": Purified(Autoencoder(data.info.shape), base) if kind.fronted else base}


TRAINED = [name for name, kind in defenses().items() if not issubclass(kind, Wrapper)]
UNTRAINED = [name for name in defenses() if name not in TRAINED]


@pytest.mark.parametrize("architecture", ["mlp-8", "lenet", "resnet"])
@pytest.mark.parametrize("name", UNTRAINED)
def test_what_is_not_trained_leaves_the_base_alone(name: str, architecture: str, digits: Dataset) -> None:
    more = needs(name, architecture, digits)
    before = {key: value.clone() for key, value in more["base"].state_dict().items()}
    model, history = defense(name)().fit(architecture, few(digits, 48), **more)
    assert history == []
    assert not model.training
    assert model(digits.test.x[:7]).shape == (7, 10)
    assert all(torch.equal(value, before[key]) for key, value in more["base"].state_dict().items())


@pytest.mark.parametrize("name", [name for name in defenses() if issubclass(defense(name), OnTrainedModel)])
def test_a_defense_upon_a_model_says_that_there_is_none(name: str, digits: Dataset) -> None:
    trainer = defense(name)()
    with pytest.raises(UserError, match=f"{name} is built upon a trained model.*standard[+]{name}"):
        trainer.fit("mlp-8", digits)
    with pytest.raises(UserError, match=f"{name} is built upon a trained model"):
        trainer.build("mlp-8", digits.info)


@pytest.mark.parametrize("architecture", ["mlp-8", "lenet", "resnet"])
@pytest.mark.parametrize("name", TRAINED)
def test_three_steps_change_the_weights(name: str, architecture: str, digits: Dataset) -> None:
    small = few(digits, 48)
    trainer = defense(name)(epochs=1, batch_size=16)
    more = needs(name, architecture, digits)
    if (name, architecture) == ("interval-bound", "resnet"):  # it has bounds for some layers only
        with pytest.raises(UserError, match="interval-bound"):
            trainer.fit(architecture, small, **more)
        return
    kept = {id(value) for part in more.values() for value in part.parameters()}
    held = [value.detach().clone() for part in more.values() for value in part.state_dict().values()]

    def fit(epochs: int) -> tuple[list[Tensor], float]:
        seed_everything(3)
        model, history = replace(trainer, epochs=epochs).fit(architecture, small, **more)
        assert not model.training
        loss = history[0].loss if history else math.nan
        return [value.detach().clone() for value in model.parameters() if id(value) not in kept], loss

    (start, _), (end, loss), (again, _) = fit(0), fit(1), fit(1)
    assert math.isfinite(loss)
    assert all(not torch.equal(a, b) for a, b in zip(start, end, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(again, end, strict=True))
    assert all(value.isfinite().all() for value in end)
    now = [value for part in more.values() for value in part.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(held, now, strict=True))


NEVER = ("patience", "pretraining", "pretraining_lr", "max_norm", "refit", "subset")
"""Fields whose ``None`` does not stand for the data set's own value."""


@pytest.mark.parametrize("name", list(defenses()))
def test_declarations(name: str) -> None:
    kind: type[Trainer] = defense(name)
    info = DATASETS["digits"]
    resolved = kind().resolve(info)
    assert None not in {value for field, value in vars(resolved).items() if field not in NEVER}
    assert resolved.resolve(DATASETS["mnist"]) == resolved
    assert kind().label(info) == resolved.label(info) == name
    assert kind.summary
    assert len(key(resolved)) == 16


@pytest.mark.parametrize(
    ("kind", "settings", "complaint"),
    [
        (Dropout, {"p": 1.0}, r"dropout: p must be in \[0, 1\), got 1.0"),
        (Dropout, {"p": -0.1}, "dropout: p must be in"),
        (Dropout, {"input_p": 1.0}, "dropout: input_p must be in"),
        (Dropout, {"p": math.nan}, "dropout: p must be finite"),
        (GaussianNoise, {"sigma": -0.1}, "gaussian-noise: sigma must be at least 0"),
        (GaussianNoise, {"sigma": math.inf}, "gaussian-noise: sigma must be finite"),
        (FastGradient, {"alpha": 1.1}, r"fast-gradient: alpha must be in \[0, 1\]"),
        (FastGradient, {"alpha": -0.1}, "fast-gradient: alpha must be in"),
        (FastGradient, {"eps": -0.1}, "fast-gradient: eps must be at least 0"),
        (FastGradient, {"eps": math.nan}, "fast-gradient: eps must be finite"),
        (FastGradient, {"norm": "l1"}, "unknown norm for fast-gradient 'l1'; .*choose from linf, l2"),
        (Pgd, {"eps": -1.0}, "pgd: eps must be at least 0"),
        (Pgd, {"eps": math.inf}, "pgd: eps must be finite"),
        (Pgd, {"steps": 0}, "pgd: steps must be at least 1"),
        (Pgd, {"rel_step_size": 0.0}, "pgd: rel_step_size must be positive"),
        (Pgd, {"norm": "l7"}, "unknown norm for pgd 'l7'; .*choose from linf, l2"),
        (Standard, {"lr": -1.0}, "standard: lr must be positive"),
    ],
)
def test_hyperparameters_out_of_range(kind: Any, settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        kind(**settings)


@pytest.mark.parametrize("kind", [FastGradient, Pgd])
def test_eps_is_the_data_sets_for_the_norm(kind: Any) -> None:
    for info in DATASETS.values():
        assert kind().resolve(info).eps == info.eps["linf"]
        assert kind(norm="l2").resolve(info).eps == info.eps["l2"]
    assert kind(eps=0.25).label(DATASETS["mnist"]) == f"{kind.name}(eps=0.25)"


# ---------------------------------------------------------------- one by one


def test_standard_is_the_cross_entropy(model: Stages, batch: Any) -> None:
    x, y = batch
    loss = Standard(epochs=1).loss(model, x, y)
    assert_same_update(loss, F.cross_entropy(model(x), y), model)
    assert loss.logits.shape == (30, 10)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fast_gradient_is_its_formula(norm: Any, alpha: float, model: Stages, batch: Any) -> None:
    """alpha J(x) + (1 - alpha) J(x + eta), image by image and by hand, with eta held constant."""
    x, y = batch
    eps = 0.2
    mine = FastGradient(epochs=1, alpha=alpha, norm=norm, eps=eps).loss(model, x.clone(), y)
    moved = []
    for image, label in zip(x, y, strict=True):
        leaf = image[None].clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(F.cross_entropy(model(leaf), label[None]), leaf)
        eta = eps * grad.sign() if norm == "linf" else eps * grad / grad.norm()
        moved.append(image + eta[0])
    x_adv = torch.stack(moved)
    assert x_adv.min() < 0  # as in the papers, not clipped
    assert_same_update(
        mine, alpha * F.cross_entropy(model(x), y) + (1 - alpha) * F.cross_entropy(model(x_adv), y), model
    )


def test_fast_gradient_with_no_step_is_plain_training(model: Stages, batch: Any) -> None:
    x, y = batch
    assert_same_update(FastGradient(epochs=1, eps=0.0).loss(model, x.clone(), y), F.cross_entropy(model(x), y), model)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("linf", 0.5), ("l2", 0.5), ("l2", 3.0), ("linf", 0.0)])
def test_pgd_stays_in_the_ball_and_the_box_and_raises_the_loss(
    norm: Any, eps: float, model: Stages, batch: Any
) -> None:
    x, y = batch
    kept = x.clone()
    trainer = Pgd(epochs=1, norm=norm, eps=eps)
    torch.manual_seed(0)
    x_adv = trainer.perturb(model, x, y)
    assert torch.equal(x, kept)
    assert not x_adv.requires_grad
    assert Threat(norm, eps).within(x, x_adv).all()
    assert (x_adv >= 0).all()
    assert (x_adv <= 1).all()
    if eps:
        clean, raised = (F.cross_entropy(model(images), y, reduction="none") for images in (x, x_adv))
        assert (raised > clean).all()
    else:
        assert torch.equal(x_adv, x)
    assert all(p.grad is None for p in model.parameters())


def test_pgd_trains_at_the_perturbed_images(model: Stages, batch: Any) -> None:
    x, y = batch
    trainer = Pgd(epochs=1, eps=0.1)
    torch.manual_seed(5)
    mine = trainer.loss(model, x, y)
    torch.manual_seed(5)
    assert_same_update(mine, F.cross_entropy(model(trainer.perturb(model, x, y)), y), model)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_starts_anywhere_in_the_ball(norm: Any) -> None:
    x = torch.zeros(4000, 1, 1, 3)
    start = Pgd(epochs=1, norm=norm, eps=0.5)._start(x)
    assert Threat(norm, 0.5).within(x, start).all()
    assert start.mean((0, 1, 2)).abs().max() < 0.02
    if norm == "l2":  # half of a ball's volume lies beyond 0.5 ** (1/3) of its radius
        beyond = (start.flatten(1).norm(dim=1) > 0.5 * 0.5 ** (1 / 3)).float().mean()
        assert float(beyond) == pytest.approx(0.5, abs=0.04)


def test_gaussian_noise_is_fresh_and_of_its_size(model: Stages, batch: Any) -> None:
    x, y = batch
    seen: list[Tensor] = []

    class Spy(torch.nn.Module):
        def forward(self, images: Tensor, tap: None = None) -> Tensor:
            seen.append(images)
            return model(images)

    trainer = GaussianNoise(epochs=1, sigma=0.3)
    torch.manual_seed(1)
    mine = trainer.loss(Spy(), x, y)  # type: ignore[arg-type]
    trainer.loss(Spy(), x, y)  # type: ignore[arg-type]
    noise = torch.stack([images - x for images in seen])
    assert not torch.equal(noise[0], noise[1])
    assert float(noise.std()) == pytest.approx(0.3, rel=0.05)
    assert abs(float(noise.mean())) < 0.02
    assert_same_update(mine, F.cross_entropy(model(seen[0]), y), model)


def test_dropout_drops_hidden_units_in_training_alone(batch: Any) -> None:
    x, y = batch
    seed_everything(0)
    model = build_model("mlp-400", SHAPE, 10).eval()  # whatever the mode: the trainer drops, not the model
    trainer = Dropout(epochs=1, p=0.25)
    hidden: list[Tensor] = []
    handle = model.stages["logits"].register_forward_pre_hook(lambda _module, args: hidden.append(args[0]))
    model(x)
    trainer.loss(model, x, y)
    model(x)
    handle.remove()
    whole, thinned, after = hidden
    assert torch.equal(whole, after)
    on = whole > 0
    dropped = thinned[on] == 0
    assert float(dropped.float().mean()) == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(thinned[on][~dropped], whole[on][~dropped] / 0.75)


def test_dropout_of_pixels(batch: Any) -> None:
    x, y = torch.ones(200, *SHAPE), torch.zeros(200, dtype=torch.int64)
    seen: list[Tensor] = []
    model = build_model("mlp-4", SHAPE, 10)
    model.stages["flatten"].register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    Dropout(epochs=1, p=0.0, input_p=0.2).loss(model, x, y)
    Dropout(epochs=1, p=0.0).loss(model, x, y)
    assert float((seen[0] == 0).float().mean()) == pytest.approx(0.2, abs=0.02)
    assert torch.equal(seen[1], x)


def test_a_dropout_model_predicts_the_same_every_time(digits: Dataset) -> None:
    seed_everything(0)
    model = Dropout(epochs=1).fit("mlp-16", digits).model
    x = digits.test.x
    assert torch.equal(model(x), model(x))


def test_pgd_training_is_worth_it(digits: Dataset) -> None:
    """The yardstick: against the attack it trains with, it beats plain training by far."""
    _, (x, y) = digits.test_sample(200)
    robust = {}
    for trainer in (Standard(epochs=20), Pgd(epochs=20, eps=0.15, steps=5)):
        seed_everything(0)
        model = trainer.fit("mlp-64", digits).model
        torch.manual_seed(0)
        x_adv = Pgd(epochs=1, eps=0.15, steps=20).perturb(model, x, y)  # type: ignore[arg-type]
        robust[trainer.name] = float((model(x_adv).argmax(1) == y).float().mean())
    assert robust["pgd"] > robust["standard"] + 0.2
