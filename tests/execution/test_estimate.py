"""What a plan will cost, as far as its declarations and a probe can say."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from defenses.denoising_autoencoder import DenoisingAutoencoder
from defenses.gaussian_blur import GaussianBlur
from defenses.generative_adversarial_trainer import GenerativeAdversarialTrainer
from defenses.standard import Standard
from harness.attacks.apgd import APGD
from harness.attacks.fast_gradient import Gradient
from harness.attacks.learned_generator import Generator
from harness.attacks.noise import Noise
from harness.attacks.square import Square
from harness.attacks.toolkits.art import Art
from harness.attacks.transfer import Transfer
from harness.cli.main import cli
from harness.datasets.registry import DATASETS, DataSource
from harness.execution import estimate as module
from harness.execution.estimate import CostEstimate, estimate, judged, noise, passes, preparation
from harness.execution.jobs import Context, Train
from harness.execution.worker import Worker
from harness.planning.plan import Plan, plan, specs
from harness.planning.specs import ModelSpec
from harness.planning.suite import Suite
from harness.records.home import Home
from harness.threat import Norm

DIGITS = DATASETS["digits"]
GRID: dict[Norm, tuple[float, ...]] = {"linf": (0.1, 0.2), "l2": (0.5,)}


def made(attacks: Any, *trainers: Any, seeds: Any = (0,), samples: int = 20, **more: Any) -> Plan:
    suite = Suite(name="small", summary="for tests", attacks=attacks, budgets=GRID)
    models = specs([DIGITS], ["mlp-8"], trainers or [Standard(epochs=3)], seeds)
    return plan(suite, models, {"digits": DIGITS}, samples=samples, **more)


def counted(*plans: Plan, home: Path, **more: Any) -> CostEstimate:
    return estimate(plans, Home(home), **more)


@pytest.mark.parametrize(
    ("attack", "wanted"),
    [
        (Gradient(), 1),
        (Noise(draws=7), 7),
        (APGD(steps=20, restarts=3), 60),
        (APGD(steps=20, loss="dlr", targets=4), 80),
        (Square(queries=300), 300),
        (Transfer(attack=APGD(steps=20), defense=Standard()), 20),
        (Art("AutoProjectedGradientDescent", max_iter=50, nb_random_init=2), 100),
    ],
    ids=lambda value: getattr(value, "label", str(value)),
)
def test_passes_are_those_that_a_declaration_speaks_of(attack: Any, wanted: int) -> None:
    assert passes(attack) == wanted


def test_what_an_attack_learns_from() -> None:
    assert preparation(Generator(images=200, epochs=5)) == 1000


@pytest.mark.parametrize(
    ("trainer", "wanted"),
    [
        (Standard(epochs=3), 3 * 1438),
        (Standard(epochs=3, subset=100), 300),
        (Standard(epochs=3, subset=100, validation=0.1), 270),
        (Standard(epochs=0), 0),
    ],
)
def test_images_that_training_shows(trainer: Standard, wanted: int) -> None:
    spec = ModelSpec(dataset="digits", architecture="mlp-8", defense=trainer)
    assert spec.defense.images_shown(DIGITS) == wanted
    assert spec.defense.images_shown(replace(DIGITS, train_size=0)) == 0  # nobody knows


def test_a_plan_is_counted(tmp_path: Path) -> None:
    found = counted(made({"linf": [APGD(steps=20), Gradient()]}, seeds=(0, 1)), home=tmp_path)
    assert (found.trainings, found.images) == (2, 2 * 3 * 1438)
    assert (found.pairs, found.passes) == (2 * 2 * 2, 2 * 2 * 20 * (20 + 1))  # seeds, eps, images, passes
    assert found.missed == 0
    assert 0 < found.training_hours < 0.1  # type: ignore[operator]
    assert 0 < found.attack_hours < 0.1  # type: ignore[operator]


def test_models_and_pairs_of_two_plans_count_once(tmp_path: Path) -> None:
    both = made({"linf": [Gradient()]}), made({"linf": [Gradient()], "l2": [Gradient()]})
    found = counted(*both, home=tmp_path)
    assert (found.trainings, found.pairs) == (1, 3)


def test_images_that_are_crafted_once_count_once(tmp_path: Path) -> None:
    attack = Transfer(attack=APGD(steps=10), defense=Standard(epochs=3), seed_offset=1)
    found = counted(made({"l2": [attack]}, Standard(epochs=3), Standard(epochs=4)), home=tmp_path)
    assert (found.pairs, found.passes) == (2, 20 * 10)


def test_what_is_there_costs_nothing(tmp_path: Path) -> None:
    wanted = made({})
    Worker(Context(Home(tmp_path), {"digits": DataSource("digits")})).run(Train(wanted.models[0]))
    found = counted(wanted, home=tmp_path)
    assert str(found) == "nothing to do"
    assert (found.training_hours, found.attack_hours) == (0.0, 0.0)


def test_twice_the_epochs_take_twice_as_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module._Probe, "_train", lambda self, spec: 0.5)
    monkeypatch.setattr(module._Probe, "_pass", lambda self, spec, batch: (0.25, 1.0))
    one, two = (counted(made({"l2": [Gradient()]}, Standard(epochs=n)), home=tmp_path) for n in (1, 2))
    assert one.training_hours == pytest.approx(1438 * 0.5 / 3600)
    assert two.training_hours == pytest.approx(2 * 1438 * 0.5 / 3600)
    assert one.attack_hours == pytest.approx(20 * 1.0 / 3600)
    scores = counted(made({"linf": [Square(queries=10)]}), home=tmp_path)
    assert scores.attack_hours == pytest.approx(2 * 20 * 10 * 0.25 / 3600)  # without backward passes


def test_what_the_probe_does_not_come_to_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = made({"l2": [Gradient()]}, Standard(epochs=1), GenerativeAdversarialTrainer(epochs=1))
    nothing = counted(wanted, home=tmp_path, limit=0.0)
    assert nothing.training_hours is None
    assert "no estimate of hours" in str(nothing)

    def fails(self: Any, spec: ModelSpec) -> float:
        if isinstance(spec.defense, GenerativeAdversarialTrainer):
            raise RuntimeError("not here")
        return 0.5

    monkeypatch.setattr(module._Probe, "_train", fails)
    part = counted(wanted, home=tmp_path)
    assert part.missed == 1
    assert part.training_hours == pytest.approx(2 * 1438 * 0.5 / 3600)
    assert "1 of the declarations taken for the mean" in str(part)


@pytest.mark.parametrize("trainer", [GaussianBlur(), DenoisingAutoencoder(epochs=2)], ids=lambda one: one.name)
def test_what_is_built_upon_another_is_probed_too(trainer: Any, tmp_path: Path) -> None:
    found = counted(made({"l2": [Gradient()]}, [Standard(epochs=2), trainer]), home=tmp_path)
    assert found.missed == 0
    assert found.trainings == 2
    assert found.attack_hours is not None


def test_the_probe_leaves_no_trace(tmp_path: Path) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    counted(made({"l2": [Gradient()]}), home=tmp_path / "none")
    assert torch.equal(torch.rand(2), wanted)
    assert torch.get_num_threads() == threads
    assert not (tmp_path / "none").exists()


def test_random_images_make_a_data_set() -> None:
    data = noise(DIGITS, 40)
    assert data.x_train.shape == (40, 1, 8, 8)
    assert int(data.x_train.max()) <= DIGITS.levels
    spec = ModelSpec(dataset="digits", architecture="mlp-8", defense=Standard(epochs=1))
    model = judged(spec, {"digits": DIGITS})
    assert isinstance(model, nn.Module)
    assert model(data.train.x).shape == (40, 10)


@pytest.mark.parametrize("hours", [(0.001, "4 s"), (0.5, "30 min"), (12.34, "12.3 h")])
def test_hours_are_said_for_people(hours: tuple[float, str]) -> None:
    one = CostEstimate(
        trainings=1,
        images=94_500_000,
        pairs=2,
        passes=1500,
        training_hours=hours[0],
        attack_hours=0.0,
        device="cpu",
        seconds=3.2,
        missed=0,
    )
    assert f"rough estimate: {hours[1]} of one worker on cpu" in str(one)
    assert "94.5 M images" in str(one)
    assert "1.5 k passes" in str(one)


COMMANDS = {
    "plan": "plan quick --defense standard --samples 10 --home {home}",
    "run": "run quick --defense standard --samples 10 --dry-run --home {home}",
    "reproduce": "reproduce lee2017 --profile smoke --only table-2a --dry-run --home {home}",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_say_it_below_the_table_and_do_nothing(name: str, tmp_path: Path) -> None:
    home = tmp_path / "runs"
    done = CliRunner().invoke(cli, COMMANDS[name].format(home=home).split())
    assert done.exit_code == 0, done.output
    last = done.output.strip().splitlines()[-1]
    assert re.match(r"to do: \d+ trainings? .* pairs? .*; rough estimate: .* of one worker on cpu .* a probe", last)
    assert not home.exists()
