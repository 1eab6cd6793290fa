"""What the studies of Lee et al. 2017 declare, and the method on CIFAR-100 in the layout that it comes in."""

from __future__ import annotations

import hashlib
import math
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from defenses.fast_gradient import FastGradient
from defenses.generative_adversarial_trainer import GenerativeAdversarialTrainer
from defenses.random_perturbation import RandomPerturbation
from harness.attacks.learned_generator import Generator
from harness.attacks.transfer import Transfer
from harness.datasets.registry import DATASETS, Dataset, DataSource, load_dataset
from harness.determinism import seed_everything
from harness.execution.jobs import Context, Judge, Prepare, Train
from harness.execution.worker import Worker
from harness.models.registry import build_model
from harness.records.home import Home
from harness.studies.experiment import Experiment, design
from harness.threat import Threat
from suites import studies, suites
from suites.lee2017 import (
    BASELINE,
    CONSTANT,
    FAST,
    FG_L2,
    FG_LINF,
    GAT,
    METHODS,
    OTHER,
    POWERS,
    RANDOM,
    SLOW,
    attacked,
    generator,
)

CIFAR10 = studies()["lee2017"]
CIFAR100 = studies()["lee2017-cifar100"]


def made(name: str, profile: str, dataset: str, **options: object) -> Experiment:
    return design(studies()[name], profile, DATASETS[dataset], suites(), **options)  # type: ignore[arg-type]


def test_the_full_profiles_are_the_papers() -> None:
    for name, dataset in (("lee2017", "cifar10"), ("lee2017-cifar100", "cifar100")):
        whole = made(name, "full", dataset)
        assert len(whole.seeds) >= 10
        for method in METHODS:
            spec = whole.model(method, 0)
            assert spec.architecture == "allconv"
            assert round(50_000 * spec.defense.validation) == 5_000
            assert (spec.defense.lr, spec.defense.optimizer, spec.defense.subset) == (1e-3, "adam", None)
        gat = whole.model(GAT, 0).defense
        assert isinstance(gat, GenerativeAdversarialTrainer)
        assert (gat.alpha, gat.k, gat.generator_lr, gat.p) == (0.5, 1, 1e-6, 0.0)


def test_lengths_of_training_are_in_l2() -> None:
    whole = made("lee2017", "full", "cifar10")
    settings = whole.profile.settings
    l2, sign, drawn = (whole.model(name, 0).defense for name in (FG_L2, FG_LINF, RANDOM))
    assert isinstance(l2, FastGradient)
    assert isinstance(sign, FastGradient)
    assert isinstance(drawn, RandomPerturbation)
    assert (l2.norm, sign.norm) == ("l2", "linf")
    assert (l2.eps, drawn.eps) == (settings["fg_l2"], settings["random"])
    assert sign.eps is not None
    assert sign.eps * math.sqrt(3 * 32 * 32) == pytest.approx(settings["fg_linf"])


def test_the_indirect_attack_is_crafted_on_a_network_of_its_own() -> None:
    whole = made("lee2017", "cpu", "cifar10-jpeg")
    cell = whole.cells[attacked(GAT, FAST, 0.5, OTHER), 1]
    assert isinstance(cell.attack, Transfer)
    assert cell.source == whole.model(OTHER, 1)
    assert cell.source.defense == whole.model(BASELINE, 1).defense
    assert cell.source.key not in {whole.model(name, seed).key for name in METHODS for seed in whole.seeds}
    direct = whole.cells[attacked(GAT, FAST, 0.5), 1]
    assert direct.source is None
    assert direct.threat == Threat("l2", 0.5)


def test_every_table_and_figure_is_there() -> None:
    for study, half in ((CIFAR10, "table-2a"), (CIFAR100, "table-2b")):
        wanted = ["table-1", half, "figure-2", "figure-3", "figure-4", "training-power"]
        assert [item.name for item in study.items] == wanted
    for study, best in ((CIFAR10, 81.62), (CIFAR100, 50.71)):
        values = study.items[1].values
        assert tuple(value.row for value in values) == METHODS
        assert max(value.printed or 0 for value in values) == values[-1].printed == best
        assert all(value.printed_std for value in values)


def test_tolerances_tell_every_effect_from_the_baseline() -> None:
    for study in (CIFAR10, CIFAR100):
        baseline, *others = study.items[1].values
        for value in others:
            assert value.rival == (None if value.row == RANDOM else baseline.printed)


def test_table_1_counts_the_weights_of_the_network() -> None:
    for study, classes in ((CIFAR10, 10), (CIFAR100, 100)):
        (value,) = study.items[0].values
        network = build_model("allconv", (3, 32, 32), classes)
        assert value.printed == sum(weight.numel() for weight in network.parameters())
        assert value.basis == "construction"


def test_the_night_lowers_the_rate_and_shows_the_constant_one_beside() -> None:
    whole = made("lee2017", "night", "cifar10-jpeg")
    assert len(whole.seeds) == 5
    for method in METHODS:
        trainer = whole.model(method, 0).defense
        assert (trainer.schedule, trainer.epochs) == ("cosine", 30)
        assert trainer.subset - trainer.held(trainer.subset) == 10_000
    assert whole.model(CONSTANT, 0).defense == replace(whole.model(BASELINE, 0).defense, schedule="constant")
    full = made("lee2017", "full", "cifar10")
    assert full.model(CONSTANT, 0).key == full.model(BASELINE, 0).key
    assert full.model(SLOW, 0).key == full.model(GAT, 0).key


def test_a_profile_runs_an_attack_in_another_form() -> None:
    measure = attacked(BASELINE, generator(POWERS[0]), POWERS[0])
    full, cpu = (made("lee2017", name, "cifar10", seeds=[0]) for name in ("full", "cpu"))
    declared, smaller = full.cells[measure, 0].attack, cpu.cells[measure, 0].attack
    assert declared == measure.attack
    assert isinstance(declared, Generator)
    assert isinstance(smaller, Generator)
    assert smaller == replace(declared, images=2000, epochs=10, batch_size=64, lr=1e-3)
    assert set(cpu.profile.attacks) <= {found.attack for found in CIFAR10.measures()}


def cifar100(root: Path, patch: pytest.MonkeyPatch, train: int = 120, test: int = 100) -> Dataset:
    """A made-up set in torchvision's layout: every class is a colour, with noise."""
    import torchvision.datasets

    published = torchvision.datasets.CIFAR100
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 200, (100, 3, 1))
    folder = root / published.base_folder
    folder.mkdir(parents=True)

    def written(name: str, content: object) -> str:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    for split, n in (("train", train), ("test", test)):
        fine = np.arange(n) % 100
        pixels = colours[fine] + rng.integers(0, 56, (n, 3, 1024))
        entry = {"data": pixels.astype(np.uint8).reshape(n, 3072), "fine_labels": fine.tolist()}
        patch.setattr(published, f"{split}_list", [[split, written(split, entry)]])
    meta = written("meta", {"fine_label_names": ["made", "up"]})
    patch.setattr(published, "meta", {**published.meta, "md5": meta})
    patch.setitem(DATASETS, "cifar100", replace(DATASETS["cifar100"], test_size=test))
    return load_dataset("cifar100", root=root)


def test_the_trainer_learns_on_cifar_100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = cifar100(tmp_path, monkeypatch)
    trainer = GenerativeAdversarialTrainer(epochs=2, batch_size=40, lr=3e-3, generator_lr=1e-4, subset=110)
    seed_everything(0)
    model, history = trainer.fit("allconv", data)
    assert model(data.test.x[:3]).shape == (3, 100)
    assert history[0].loss == pytest.approx(math.log(100), rel=0.2)
    assert history[1].loss < history[0].loss
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_workers_train_prepare_and_judge_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every method of the smoke profile, and its generator, as tasks write and read them."""
    whole = made("lee2017", "smoke", "digits", only=["stronger-than-fast-gradient"])
    context = Context(Home(tmp_path), {"digits": DataSource("digits")})
    work = Worker(context).run
    measure = attacked(BASELINE, generator(0.5), 0.5)
    cell = whole.cells[measure, 0]
    work(Train(cell.victim))
    work(Prepare(cell))
    work(Judge(cell, 0))
    assert cell.prepared_key is not None
    kept = sorted(file.name for file in (tmp_path / "prepared").iterdir())
    assert kept == [f"{cell.prepared_key}.json", f"{cell.prepared_key}.weights.safetensors"]
    assert list((tmp_path / "cells" / cell.key).rglob("*"))
