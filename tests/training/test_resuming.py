"""Trainings that are killed go on from the last epoch that was kept, to the same weights."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from defenses.denoising_autoencoder import DenoisingAutoencoder
from defenses.dropout import Dropout
from defenses.generative_adversarial_trainer import GenerativeAdversarialTrainer
from defenses.interval_bound import IntervalBound
from defenses.standard import Standard
from harness.datasets.registry import DATASETS, Dataset, DataSource
from harness.determinism import seed_everything
from harness.errors import UserError
from harness.execution.jobs import Context, Train
from harness.execution.worker import Worker
from harness.models.registry import build_model
from harness.models.stages import Stages
from harness.planning.specs import ModelSpec
from harness.records.checkpoints import card
from harness.records.files import write_bytes
from harness.records.home import Home
from harness.training import resuming
from harness.training.defense import Diverged, Loss, Trained
from harness.training.resuming import Saves, kept
from harness.training.trainer import Trainer

MADE_WITH = {"versions": {"torch": "1"}, "device": "cpu"}
SPEC = ModelSpec(dataset="digits", architecture="mlp-16", defense=Standard(epochs=4).resolve(DATASETS["digits"]))


class Killed(BaseException):
    pass


@dataclass(frozen=True, kw_only=True)
class Silent(Trainer):
    """Has an opponent, and does not say what goes with it."""

    name: ClassVar[str] = "silent"

    def opponent(self, info: Any) -> nn.Module:
        return nn.Linear(1, 1)


@dataclass(frozen=True, kw_only=True)
class Averaged(Trainer):
    """Holds state of its own: an average of the weights."""

    name: ClassVar[str] = "averaged"

    def step(self, model: Stages, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Loss:
        loss = super().step(model, optimizer, x, y)
        last = vars(model).setdefault("averaged", [p.detach().clone() for p in model.parameters()])
        for mean, p in zip(last, model.parameters(), strict=True):
            mean.lerp_(p.detach(), 0.1)
        return loss


@dataclass(frozen=True, kw_only=True)
class Distilled(Trainer):
    """Trains twice: a teacher, and a student on what it says."""

    name: ClassVar[str] = "distilled"

    def fit(self, architecture: str, data: Dataset, **more: Any) -> Trained:
        teacher = Standard(epochs=self.epochs).fit(architecture, data, **more)
        with torch.no_grad():
            said = teacher.model(data.to_float(data.x_train)).argmax(1)
        return super().fit(architecture, replace(data, y_train=said), **more)


@dataclass(frozen=True, kw_only=True)
class Explodes(Trainer):
    name: ClassVar[str] = "explodes"

    def loss(self, model: Stages, x: Tensor, y: Tensor) -> Loss:
        logits = model(x)
        return Loss(logits.sum() * 1e30, logits)


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every epoch is kept."""
    monkeypatch.setattr(resuming, "EVERY", 0.0)


@pytest.fixture(scope="module")
def tiny(digits: Dataset) -> Dataset:
    return replace(digits, x_train=digits.x_train[:200], y_train=digits.y_train[:200])


def killed_after(epochs: int) -> Callable[[int, int, Mapping[str, float]], None]:
    def progress(done: int, total: int, values: Mapping[str, float]) -> None:
        if done > epochs:
            raise Killed

    return progress


def fit(trainer: Any, data: Dataset, architecture: str = "mlp-16", **more: Any) -> Trained:
    seed_everything(3)
    base = build_model(architecture, data.info.shape, 10).eval() if isinstance(trainer, DenoisingAutoencoder) else None
    seed_everything(4)
    return trainer.fit(architecture, data, base=base, **more)  # type: ignore[no-any-return]


def state(trained: Trained) -> tuple[Tensor, list[tuple[Any, ...]]]:
    values = [value.flatten().float() for value in trained.model.state_dict().values()]
    return torch.cat(values), [(*line[:5], dict(line.logged)) for line in trained.history]


def alike(one: Trained, other: Trained) -> bool:
    (weights, history), (others, other_history) = state(one), state(other)
    return torch.equal(weights, others) and str(history) == str(other_history)


def after_the_kill(path: Path, trainer: Any, data: Dataset, epochs: int, architecture: str = "mlp-16") -> None:
    with pytest.raises(Killed), kept(Saves(path, MADE_WITH, write_bytes)):
        fit(trainer, data, architecture, progress=killed_after(epochs))
    np.random.rand(5)
    torch.rand(5)


@pytest.mark.parametrize(
    ("trainer", "architecture"),
    [
        (Standard(epochs=5, schedule="cosine", optimizer="sgd", lr=0.1), "mlp-16"),
        (Dropout(epochs=5), "mlp-16"),
        (Standard(epochs=9, validation=0.3, patience=1, lr=0.05), "mlp-16"),
        (Standard(epochs=4, validation=0.3, patience=3, refit=2), "mlp-16"),
        (GenerativeAdversarialTrainer(epochs=4, generator_lr=1e-3), "mlp-16"),
        (IntervalBound(epochs=4), "mlp-16"),
        (DenoisingAutoencoder(epochs=4), "mlp-16"),
        (Standard(epochs=4, pretraining=1), "ae-400"),
        (Standard(epochs=4, pretraining=1, fine_tuned=True), "ae-400"),
    ],
    ids=["cosine", "dropout", "patience", "refit", "opponent", "schedule", "autoencoder", "pretraining", "fine-tuning"],
)
def test_a_killed_training_ends_as_one_that_was_not(
    trainer: Any, architecture: str, tiny: Dataset, tmp_path: Path
) -> None:
    whole = fit(trainer, tiny, architecture)
    path = tmp_path / "training.pt"
    for epochs in (1, 2):  # killed twice
        after_the_kill(path, trainer, tiny, epochs, architecture)
        assert path.exists()
    shown: list[int] = []
    with kept(Saves(path, MADE_WITH, write_bytes)):
        resumed = fit(trainer, tiny, architecture, progress=lambda done, total, values: shown.append(done))
    assert shown[0] == 2  # where it goes on, at once
    assert len(shown) == len(whole.history) - 1
    assert alike(resumed, whole)
    assert not path.exists()


def test_nothing_is_taken_up_that_was_made_with_something_else_or_is_damaged(tiny: Dataset, tmp_path: Path) -> None:
    trainer, path = Standard(epochs=4), tmp_path / "training.pt"
    whole = fit(trainer, tiny)
    after_the_kill(path, trainer, tiny, 2)
    content = path.read_bytes()
    for made_with, damaged in (
        ({**MADE_WITH, "device": "cuda"}, content),
        (MADE_WITH, content[: len(content) // 2]),
        (MADE_WITH, b""),
        (MADE_WITH, content[:-200] + bytes([content[-200] ^ 1]) + content[-199:]),
    ):
        path.write_bytes(damaged)
        shown: list[int] = []
        with kept(Saves(path, made_with, write_bytes)):
            again = fit(trainer, tiny, progress=lambda done, total, values: shown.append(done))  # noqa: B023
        assert shown == [1, 2, 3, 4]
        assert alike(again, whole)


def test_short_trainings_write_nothing(tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "EVERY", 60.0)
    after_the_kill(tmp_path / "training.pt", Standard(epochs=4), tiny, 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("trainer", [Silent(epochs=4), Averaged(epochs=4)], ids=["opponent", "steps"])
def test_a_trainer_that_may_hold_more_is_not_kept(trainer: Trainer, tiny: Dataset, tmp_path: Path) -> None:
    after_the_kill(tmp_path / "training.pt", trainer, tiny, 2)
    assert not list(tmp_path.iterdir())


def test_of_a_defense_that_trains_twice_the_first_training_is_kept(tiny: Dataset, tmp_path: Path) -> None:
    path, twice = tmp_path / "training.pt", Distilled(epochs=3)
    whole = fit(twice, tiny)
    with kept(Saves(path, MADE_WITH, write_bytes)):
        assert alike(fit(twice, tiny), whole)
    after_the_kill(path, twice, tiny, 1)
    shown: list[int] = []
    with kept(Saves(path, MADE_WITH, write_bytes)):
        resumed = fit(twice, tiny, progress=lambda done, total, values: shown.append(done))
    assert shown == [1, 2, 3, 1, 2, 3]
    assert alike(resumed, whole)


def test_where_nothing_can_be_kept_training_goes_on_and_says_so_once(
    tiny: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    with kept(Saves(tmp_path / "training.pt", MADE_WITH, full)):
        assert alike(fit(Standard(epochs=4), tiny), fit(Standard(epochs=4), tiny))
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_what_does_not_fit_is_named_and_removed(tiny: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    after_the_kill(path, Standard(epochs=4), tiny, 2)
    with pytest.raises(UserError, match="the same command again"), kept(Saves(path, MADE_WITH, write_bytes)):
        fit(Standard(epochs=4), tiny, "mlp-8")
    assert not path.exists()


def test_nothing_is_left_of_a_training_that_diverged(tiny: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    path.write_bytes(b"of an epoch before")
    with pytest.raises(Diverged), kept(Saves(path, MADE_WITH, write_bytes)):
        fit(Explodes(epochs=4, optimizer="sgd", lr=1e10), tiny)
    assert not path.exists()


def test_a_worker_takes_up_a_training_and_counts_the_time_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worker(name: str) -> Worker:
        return Worker(Context(Home(tmp_path / name), {"digits": DataSource("digits")}))

    worker("whole").run(Train(SPEC))
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_reporter", lambda *_: killed_after(2))
        with pytest.raises(Killed):
            worker("killed").run(Train(SPEC))
    home = Home(tmp_path / "killed")
    file = home.progress / f"train-{SPEC.key}.pt"
    content = io.BytesIO(file.read_bytes()[32:])
    found = torch.load(content, weights_only=True)
    assert torch.__version__.startswith(found["made_with"]["versions"]["torch"])
    torch.save({**found, "seconds": 1000.0}, content := io.BytesIO())
    file.write_bytes(hashlib.sha256(content.getvalue()).digest() + content.getvalue())
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_keep", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):  # after the last epoch
            worker("killed").run(Train(SPEC))
    assert file.exists()
    worker("killed").run(Train(SPEC))
    there, whole = card(home, SPEC.key), card(Home(tmp_path / "whole"), SPEC.key)
    assert there.sha256 == whole.sha256
    assert 1000 < there.seconds < 1100
    assert not file.exists()
