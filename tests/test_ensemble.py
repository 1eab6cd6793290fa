"""Networks side by side: each is what it would be alone, up to rounding."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defenses.contractive import Contractive
from defenses.dropout import Dropout
from defenses.fast_gradient import FastGradient
from defenses.gaussian_noise import GaussianNoise
from defenses.generative_adversarial_trainer import GenerativeAdversarialTrainer, Playing
from defenses.gradient_regularization import GradientRegularization
from defenses.learning_with_adversary import LearningWithAdversary
from defenses.pgd import Pgd
from defenses.random_perturbation import RandomPerturbation
from defenses.standard import Standard
from harness.attacks.base import Attack
from harness.attacks.fast_gradient import Gradient
from harness.attacks.transfer import Transfer
from harness.datasets.registry import DATASETS, Dataset, DataSource
from harness.determinism import seed_everything
from harness.errors import UserError
from harness.execution.jobs import Context, Judge, Train
from harness.execution.runner import run
from harness.execution.scheduler import Graph
from harness.execution.worker import Worker
from harness.identity import canonical
from harness.models.registry import build_model
from harness.planning.plan import Plan, plan
from harness.planning.specs import ModelSpec
from harness.planning.suite import Suite
from harness.records.checkpoints import has_model, load_card, load_model
from harness.records.home import Home
from harness.records.results import is_finished
from harness.training.trainer import Diverged, Trained, Trainer
from harness.training.vmapped_seeds import Beside, Draws, Ensemble, fit
from suites import studies
from suites.lee2017 import OTHER

SEEDS = (11, 12, 13)
COMMON: dict[str, Any] = {"epochs": 2, "batch_size": 64, "validation": 0.1, "subset": 300}
ALIKE: dict[str, Trainer] = {
    "standard": Standard(**COMMON),
    "sgd": Standard(**COMMON, optimizer="sgd", lr=0.05, weight_decay=1e-3, schedule="cosine"),
    "fast-gradient": FastGradient(**COMMON, norm="l2", eps=0.5),
    "fast-gradient-sign": FastGradient(**COMMON, eps=0.1),
    "gradient-regularization": GradientRegularization(**COMMON, sigma=0.5),
    "penalty": GradientRegularization(**COMMON, sigma=0.1, form="penalty"),
    "random-perturbation": RandomPerturbation(**COMMON, eps=0.5),
    "gaussian-noise": GaussianNoise(**COMMON, where="all"),
    "adversary": LearningWithAdversary(**COMMON, eps=0.5),
    "pgd": Pgd(**COMMON, norm="l2", eps=0.5, steps=2),
    "gat": GenerativeAdversarialTrainer(**COMMON, generator_lr=1e-3),
    "gat-twice": GenerativeAdversarialTrainer(**COMMON, generator_lr=1e-3, k=2, alpha=0.3),
    "dropout": Dropout(**COMMON, p=0.3, input_p=0.2),
    "gat-dropout": GenerativeAdversarialTrainer(**COMMON, generator_lr=1e-3, p=0.2),
}


def alone(trainer: Trainer, architecture: str, data: Dataset, seed: int) -> Trained:
    seed_everything(seed)
    return trainer.fit(architecture, data)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


CASES = [("mlp-24", name, trainer) for name, trainer in ALIKE.items()]
CASES += [
    ("allconv", name, replace(ALIKE[name], epochs=1, subset=120))
    for name in ("standard", "random-perturbation", "gat", "gat-dropout")
]


@pytest.mark.parametrize(("architecture", "name", "trainer"), CASES, ids=lambda value: str(value).partition("(")[0])
def test_a_network_beside_others_is_the_network_alone(
    architecture: str, name: str, trainer: Trainer, digits: Dataset
) -> None:
    together = fit(trainer, architecture, digits, SEEDS)
    assert len(together) == len(SEEDS)
    for seed, (model, history) in zip(SEEDS, together, strict=True):
        wanted, said = alone(trainer, architecture, digits, seed)
        start = weights(alone(replace(trainer, epochs=0), architecture, digits, seed).model)
        moved = (weights(wanted) - start).norm()
        # far closer to what it would be alone than training took it, and no weight of another seed
        assert (weights(model) - weights(wanted)).norm() < 1e-3 * moved
        assert list(model.state_dict()) == list(wanted.state_dict())
        assert not model.training
        assert [line.epoch for line in history] == [line.epoch for line in said]
        assert history[-1].accuracy == pytest.approx(said[-1].accuracy, abs=0.011)
        assert history[-1].validation_loss == pytest.approx(said[-1].validation_loss, rel=1e-3)
    losses = [alone(trainer, architecture, digits, seed).history[-1].loss for seed in SEEDS]
    assert together[0].history[-1].loss == pytest.approx(sum(losses) / len(losses), rel=1e-3)


def test_batch_norm_counts_each_networks_images(digits: Dataset) -> None:
    trainer = FastGradient(epochs=1, batch_size=32, subset=64, norm="l2", eps=0.5, optimizer="sgd", lr=0.01)
    for seed, (model, _) in zip(SEEDS, fit(trainer, "resnet", digits, SEEDS), strict=True):
        wanted = alone(trainer, "resnet", digits, seed).model
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, wanted.state_dict()[name], rtol=1e-3, atol=1e-4, msg=name)


def test_an_architecture_that_drops_units_itself_learns(digits: Dataset) -> None:
    first, second = fit(Standard(epochs=3, subset=600, lr=5e-3), "maxout", digits, SEEDS[:2])
    assert min(first.history[-1].accuracy, second.history[-1].accuracy) > 0.5
    assert not torch.equal(weights(first.model), weights(second.model))


def test_logits_come_network_by_network() -> None:
    networks = []
    for seed in SEEDS:
        seed_everything(seed)
        networks.append(build_model("lenet", (1, 12, 12), 10))
    together = Ensemble(networks)
    x = torch.rand(3 * 5, 1, 12, 12)
    seen: list[str] = []

    def tap(stage: str, out: Tensor) -> Tensor:
        seen.append(stage)
        assert len(out) == 15
        return out

    wanted = torch.cat([network(part) for network, part in zip(networks, x.split(5), strict=True)])
    torch.testing.assert_close(together(x, tap=tap), wanted)
    assert seen == list(networks[0].stages)
    assert together.hidden == networks[0].hidden
    assert sum(p.numel() for p in together.parameters()) == 3 * sum(p.numel() for p in networks[0].parameters())


def test_the_generators_are_side_by_side_too(digits: Dataset) -> None:
    trainer = GenerativeAdversarialTrainer(epochs=1, generator_lr=1e-3)
    opponents = [trainer.opponent(digits.info) for _ in SEEDS]
    game = trainer.against(Beside(opponents))
    assert isinstance(game, Playing)
    grads = torch.randn(6, 1, 8, 8)
    wanted = torch.cat([opponent(part) for opponent, part in zip(opponents, grads.split(2), strict=True)])
    torch.testing.assert_close(game.generator(grads), wanted)


def test_draws_are_those_of_each_stream_alone() -> None:
    def streams() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in SEEDS]

    like = torch.ones(3 * 50, 4)
    with Draws(streams()):
        found = [torch.randn_like(like), torch.rand_like(like), torch.rand(150), torch.randn(150, 2)]
        found.append(F.dropout(like, 0.25))
    for member, seed in enumerate(SEEDS):
        torch.manual_seed(seed)
        part, mine = like[:50], slice(50 * member, 50 * member + 50)
        wanted = [torch.randn_like(part), torch.rand_like(part), torch.rand(50), torch.randn(50, 2)]
        wanted.append(F.dropout(part, 0.25))
        assert all(torch.equal(one[mine], other) for one, other in zip(found, wanted, strict=True))


def test_dropout_keeps_the_mean_and_does_nothing_in_eval() -> None:
    like = torch.ones(2 * 5000, 2)
    with Draws([torch.Generator().manual_seed(seed) for seed in (1, 2)]):
        dropped = F.dropout(like, 0.25)
        assert F.dropout(like, 0.25, training=False) is like
    assert dropped.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert float(dropped.mean()) == pytest.approx(1, abs=0.02)


def test_progress_is_told_of_all_together(digits: Dataset) -> None:
    told: list[tuple[int, int, float]] = []
    made = fit(
        Standard(epochs=2, subset=100),
        "mlp-8",
        digits,
        SEEDS,
        progress=lambda done, total, values: told.append((done, total, values["accuracy"])),
    )
    means = [sum(one.history[epoch].accuracy for one in made) / 3 for epoch in (0, 1)]
    assert told == [(1, 2, pytest.approx(means[0])), (2, 2, pytest.approx(means[1]))]


def test_no_epochs_give_the_initial_weights(digits: Dataset) -> None:
    for seed, (model, history) in zip(SEEDS, fit(Standard(epochs=0), "mlp-8", digits, SEEDS), strict=True):
        assert history == []
        assert torch.equal(weights(model), weights(alone(Standard(epochs=0), "mlp-8", digits, seed).model))


def test_divergence_has_a_name(digits: Dataset) -> None:
    with pytest.raises(Diverged, match="try a lower lr"):
        fit(Standard(epochs=2, optimizer="sgd", lr=1e30, subset=100), "mlp-8", digits, SEEDS)


@dataclass(frozen=True, kw_only=True)
class Unknown(Trainer):
    name: ClassVar[str] = "unknown"


@pytest.mark.parametrize(
    ("trainer", "reason"),
    [
        (Unknown(), "plain means"),
        (Contractive(), "plain means"),
        (Standard(validation=0.1, patience=2), "patience is of one network"),
        (Standard(validation=0.1, refit=2), "refit is of one network"),
        (Standard(max_norm=1.0), "max_norm is of one network"),
        (Standard(decayed="dense"), "decayed"),
    ],
)
def test_what_cannot_train_side_by_side_is_said(trainer: Trainer, reason: str, digits: Dataset) -> None:
    with pytest.raises(UserError, match=reason):
        fit(trainer, "mlp-8", digits, SEEDS)


def test_layers_without_labels_cannot_either(digits: Dataset) -> None:
    with pytest.raises(UserError, match="without labels"):
        fit(Standard(epochs=1), "ae-400", digits, SEEDS)


# ---------------------------------------------------------------- as models of a plan

DIGITS = DATASETS["digits"]
ONE = ModelSpec(dataset="digits", architecture="mlp-8", defense=Standard(epochs=2, subset=100), seed=1)
TOGETHER = replace(ONE, beside=(0, 1, 2))


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(Home(tmp_path), {"digits": DataSource("digits")})


def planned(*models: ModelSpec, attacks: tuple[Attack, ...] = ()) -> Plan:
    suite = Suite(
        name="small", summary="", attacks={"l2": attacks} if attacks else {}, budgets={"l2": (0.5,)}, batch=10
    )
    return plan(suite, models, {"digits": DIGITS}, samples=20)


def stamps(home: Home, models: Sequence[ModelSpec]) -> list[int]:
    return [(home.model(spec.key) / "weights.safetensors").stat().st_mtime_ns for spec in models]


def test_a_network_beside_others_is_another_model_with_the_same_numbers() -> None:
    assert "beside" not in canonical(ONE)
    assert len({ONE.key, TOGETHER.key, replace(ONE, beside=(1, 2)).key}) == 3
    assert TOGETHER.training_seed == ONE.training_seed
    assert ONE.group == (ONE,)
    assert [spec.seed for spec in TOGETHER.group] == [0, 1, 2]
    assert TOGETHER.group[1] == TOGETHER
    assert {spec.label(DIGITS) for spec in TOGETHER.group} == {f"{ONE.label(DIGITS)} [seeds 0 1 2 side by side]"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"seed": 3}, "seed 3"),
        ({"beside": (1, 1)}, "train side by side; got"),
        ({"base": ONE}, "without a base"),
        ({"defense": Contractive(epochs=1)}, "plain means"),
    ],
)
def test_a_group_that_cannot_be_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        replace(TOGETHER, **fields)


def test_what_a_transfer_is_crafted_on_is_trained_alone() -> None:
    made = planned(TOGETHER, attacks=(Transfer(attack=Gradient(), defense=Standard(epochs=1), seed_offset=100),))
    source = made.cells[0].source
    assert source is not None
    assert (source.seed, source.beside) == (101, ())


def test_a_group_is_one_task_that_stores_all_its_members(context: Context) -> None:
    home, group = context.home, TOGETHER.group
    made = planned(*group[:2], attacks=(Gradient(),))
    graph = Graph(made, home, print)
    assert (graph.count(Train), graph.models) == (1, 3)
    task = graph.take()
    assert task is not None
    assert graph.take() is None  # all else waits for it
    work = Worker(context).run
    work(task.payload)
    graph.done(task.name)
    assert graph.take() is not None  # what waited for either may start
    assert all(has_model(home, spec) for spec in group)
    assert Graph(made, home, print).count(Train) == 0
    for spec in group:
        alone = replace(spec, beside=())
        work(Train(alone))
        torch.testing.assert_close(
            weights(load_model(home, spec, DIGITS)), weights(load_model(home, alone, DIGITS)), rtol=1e-3, atol=1e-4
        )
        card, other = load_card(home, spec), load_card(home, alone)
        assert card["seed"] == spec.seed
        assert card["test_accuracy"] == pytest.approx(other["test_accuracy"], abs=0.01)
        assert len(card["history"]) == card["epochs"] == 2


def test_a_missing_member_alone_is_stored_again(context: Context) -> None:
    home, group, work = context.home, TOGETHER.group, Worker(context).run
    work(Train(group[0]))
    before, kept = stamps(home, group), weights(load_model(home, group[1], DIGITS))
    shutil.rmtree(home.model(group[1].key))
    assert Graph(planned(*group), home, print).count(Train) == 1
    work(Train(group[0]))
    after = stamps(home, group)
    assert (after[0], after[2]) == (before[0], before[2])
    assert torch.equal(weights(load_model(home, group[1], DIGITS)), kept)


def test_the_failure_of_a_group_is_that_of_its_members(context: Context) -> None:
    wild = replace(TOGETHER, defense=Standard(epochs=1, subset=100, optimizer="sgd", lr=1e30))
    with pytest.raises(Diverged):
        Worker(context).run(Train(wild.group[0]))
    assert all((context.home.model(spec.key) / "failed.json").exists() for spec in wild.group)


def test_training_and_judging_keep_all_digits_of_float32(context: Context) -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    work = Worker(context)
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = True  # as a user's code may have it
        work.run(Train(ONE))
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (False, False)
        matmul.allow_tf32 = cudnn.allow_tf32 = True
        work.run(Judge(planned(ONE, attacks=(Gradient(),)).cells[0], 0))
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (False, False)
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.slow
def test_a_run_trains_a_group_once(context: Context) -> None:
    made = planned(*TOGETHER.group, attacks=(Gradient(),))
    seen: list[int] = []
    ended = run(made, context, jobs=2, command="", observe=lambda watch: seen.append(watch.models_done))
    assert ended.failures == ()
    assert set(seen) == {0, 3}
    assert all(is_finished(context.home.cell(cell.key)) for cell in made.cells)


def test_the_setting_of_the_study_changes_no_profile_and_can_be_raised() -> None:
    study = studies()["lee2017"]
    info = DATASETS["cifar10"]
    full = study.profiles["full"]
    assert all(
        not spec.beside for profile in study.profiles.values() for spec in study.models(profile, info, 3).values()
    )
    raised = replace(full, settings={**full.settings, "beside": 10})
    for seed, first in ((3, 0), (17, 10)):
        models = study.models(raised, info, seed)
        others = {spec.beside for name, spec in models.items() if name != OTHER}
        assert others == {tuple(range(first, first + 10))}
        assert models[OTHER].beside == tuple(range(1000 + first, 1010 + first))
