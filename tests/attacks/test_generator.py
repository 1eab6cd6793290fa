from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses.standard import Standard
from harness.api import evaluate
from harness.attacks.fast_gradient import Gradient
from harness.attacks.learned_generator import Generator
from harness.attacks.transfer import Transfer
from harness.datasets.registry import Dataset
from harness.determinism import seed_everything
from harness.errors import UserError
from harness.identity import canonical, key
from harness.models.perturbation_generator import generator_loss
from harness.planning.specs import Cell, ModelSpec
from harness.planning.suite import Suite
from harness.records.files import read_json
from harness.records.prepared import prepared_record, read_prepared, write_prepared
from harness.schema.base import Cost, Provenance
from harness.threat import Threat, magnitude
from harness.victims.victim import Victim

DECLARED = Generator(c=0.5, images=300, epochs=8, batch_size=32, lr=1e-3)
ANY = Threat("l2", None)


def powered(power: float) -> Generator:
    return replace(DECLARED, c=None, mode="minimal", power=power, epochs=10)


@pytest.fixture(scope="module")
def victim(trained_once: nn.Module) -> Victim:
    return Victim(trained_once)


@pytest.fixture(scope="module")
def ready(victim: Victim, digits: Dataset) -> Generator:
    _, (x, y) = digits.train_sample(300)
    seed_everything(0)
    return DECLARED.prepare(victim, x, y)


@pytest.fixture
def sample(digits: Dataset) -> tuple[Tensor, Tensor]:
    _, (x, y) = digits.test_sample(150)
    return x, y


def accuracy(victim: Victim, x: Tensor, y: Tensor) -> float:
    return float((victim.predict(x) == y).float().mean())


def test_preparation_lowers_the_loss_on_other_images(
    victim: Victim, ready: Generator, sample: tuple[Tensor, Tensor]
) -> None:
    x, y = sample
    raw = replace(ready, mode="minimal")
    moved = raw(victim, x, y, ANY)
    still = float(generator_loss(victim(x), y, torch.zeros_like(x), DECLARED.c))
    assert float(generator_loss(victim(moved), y, moved - x, DECLARED.c)) < still - 0.05
    assert accuracy(victim, moved, y) < accuracy(victim, x, y) - 0.05


@pytest.mark.parametrize("power", [0.1, 0.4])
def test_it_is_stronger_than_gradient_steps_of_the_same_power(
    power: float, victim: Victim, digits: Dataset, sample: tuple[Tensor, Tensor]
) -> None:
    x, y = sample
    seed_everything(0)
    attack = powered(power).prepare(victim, *digits.train_sample(300)[1])
    moved = attack(victim, x, y, ANY)
    step = Gradient(p=2.0)(victim, x, y, Threat("l2", power))
    # clipping shortens either; neither is given more power than the other
    assert float(magnitude(moved - x, "l2").square().mean().sqrt()) <= power * 1.001
    assert accuracy(victim, moved, y) < accuracy(victim, step, y) - 0.02


def test_c_is_adapted_to_the_power(victim: Victim, digits: Dataset, sample: tuple[Tensor, Tensor]) -> None:
    x, y = sample
    natural = []
    for power in (0.1, 0.5):
        seed_everything(0)
        made = powered(power).prepare(victim, *digits.train_sample(300)[1])
        as_it_is = replace(made, c=1.0, power=None)(victim, x, y, ANY)
        natural.append(float(magnitude(as_it_is - x, "l2").square().mean().sqrt()))
    assert 0.04 < natural[0] < 0.25
    assert 0.2 < natural[1] < 1.0
    assert natural[0] < natural[1] / 1.8


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_a_budget_is_spent_and_kept(norm: Any, victim: Victim, ready: Generator, sample: tuple[Tensor, Tensor]) -> None:
    x, y = sample
    threat = Threat(norm, 0.02)
    moved = ready(victim, x, y, threat)
    assert threat.within(x, moved).all()
    assert ((moved >= 0) & (moved <= 1)).all()
    inside = 0.2 + 0.6 * x  # nothing is clipped here
    length = magnitude(ready(victim, inside, y, threat) - inside, norm)
    torch.testing.assert_close(length, torch.full_like(length, 0.02), rtol=1e-3, atol=1e-6)


def test_power_is_the_root_mean_square_of_lengths(
    victim: Victim, ready: Generator, sample: tuple[Tensor, Tensor]
) -> None:
    x, y = 0.2 + 0.6 * sample[0], sample[1]  # far from black and white, where clipping would shorten
    wanted = [replace(ready, mode="minimal", c=None, power=power)(victim, x, y, ANY) - x for power in (0.02, 0.05)]
    for scaled, power in zip(wanted, (0.02, 0.05), strict=True):
        assert float(magnitude(scaled, "l2").square().mean().sqrt()) == pytest.approx(power, rel=1e-3)
    torch.testing.assert_close(2.5 * wanted[0], wanted[1], rtol=1e-2, atol=1e-5)
    lengths = magnitude(wanted[1], "l2")
    assert float(lengths.max()) > 1.5 * float(lengths.min())  # not as long everywhere


def test_training_stops_early_and_keeps_the_best(victim: Victim, digits: Dataset) -> None:
    _, (x, y) = digits.train_sample(100)
    wild = replace(DECLARED, lr=1.0, epochs=50, patience=2)
    seed_everything(0)
    with victim.counted() as cost:
        made = wild.prepare(victim, x, y)
    assert cost.backwards < 100 + 90 * 20  # the gradients once, and a few epochs
    seed_everything(0)
    assert made.weights is not None
    held = slice(90, 100)
    moved = replace(made, mode="minimal").run(victim, x[held], y[held], ANY)
    still = float(generator_loss(victim(x[held]), y[held], torch.zeros_like(x[held]), wild.c))
    assert float(generator_loss(victim(moved), y[held], moved - x[held], wild.c)) < still + 0.05


def test_the_seed_fixes_the_generator(victim: Victim, digits: Dataset) -> None:
    _, (x, y) = digits.train_sample(64)
    made = []
    for seed in (0, 0, 1):
        seed_everything(seed)
        made.append(replace(DECLARED, epochs=1).prepare(victim, x, y).weights)
    first, again, other = (torch.cat([value.flatten() for value in (found or {}).values()]) for found in made)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_weights_are_no_part_of_the_identity(ready: Generator) -> None:
    assert ready == DECLARED
    assert hash(ready) == hash(DECLARED)
    assert key(ready) == key(DECLARED)
    assert ready.label == DECLARED.label
    assert "weights" not in canonical(ready)
    assert "tensor" not in repr(ready)


def cell(attack: Any, threat: Threat) -> Cell:
    spec = ModelSpec(dataset="digits", architecture="mlp-8", defense=Standard(epochs=1))
    return Cell(victim=spec, attack=attack, threat=threat, n=10, batch=10)


def test_one_preparation_serves_every_eps() -> None:
    forms = [(DECLARED, Threat("l2", 0.1)), (DECLARED, Threat("l2", 0.2)), (replace(DECLARED, mode="minimal"), ANY)]
    keys = {cell(attack, threat).prepared_key for attack, threat in forms}
    assert len(keys) == 1
    assert keys == {cell(Transfer(attack=DECLARED, defense=Standard()), Threat("l2", 0.1)).prepared_key}
    assert cell(replace(DECLARED, c=0.4), Threat("l2", 0.1)).prepared_key not in keys
    assert len({cell(attack, threat).key for attack, threat in forms}) == 3
    assert cell(powered(0.1), ANY).prepared_key != cell(powered(0.2), ANY).prepared_key
    assert Transfer(attack=DECLARED, defense=Standard()).preparation_samples == DECLARED.preparation_samples == 300


COST = Cost(seconds=1.0, forwards=2, backwards=3)


def test_what_was_learned_comes_back_from_disk(
    tmp_path: Path, ready: Generator, victim: Victim, sample: tuple[Tensor, Tensor]
) -> None:
    x, y = sample
    path = tmp_path / "prepared" / "abc.json"
    write_prepared(path, DECLARED, ready, COST, Provenance())
    again = read_prepared(path, DECLARED)
    assert isinstance(again, Generator)
    threat = Threat("l2", 0.3)
    assert torch.equal(again(victim, x, y, threat), ready(victim, x, y, threat))
    assert read_json(path)["fields"] == {}
    assert prepared_record(path).cost == COST
    file = tmp_path / "prepared" / "abc.weights.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-4] + b"oops")
    with pytest.raises(UserError, match=r"abc.weights.safetensors is damaged .*delete .*abc.json"):
        read_prepared(path, DECLARED)
    file.unlink()
    with pytest.raises(UserError, match=r"cannot read .*abc.weights.safetensors .*delete"):
        read_prepared(path, DECLARED)


def test_plain_fields_come_back_as_before(tmp_path: Path) -> None:
    path = tmp_path / "abc.json"
    found = replace(DECLARED, c=0.25)
    write_prepared(path, DECLARED, found, COST, Provenance())
    assert prepared_record(path).tensors == {}
    assert read_prepared(path, DECLARED) == found
    assert [file.name for file in tmp_path.iterdir()] == ["abc.json"]


def test_it_runs_in_an_evaluation(trained: nn.Module, digits: Dataset) -> None:
    _, (x, y) = digits.test_sample(60)
    attack = replace(DECLARED, images=40, epochs=2)
    suite = Suite(name="made-up", summary="", attacks={"l2": (attack,)}, budgets={"l2": (0.2,)})
    frame = evaluate(trained, x, y, suite=suite)
    assert (frame["status"] == "ok").all()
    assert len(frame) == 1


def test_unprepared_it_says_so(victim: Victim, sample: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UserError, match="has to be prepared on training images"):
        DECLARED(victim, *sample, Threat("l2", 0.1))
    with pytest.raises(UserError, match="2 at least, got 1"):
        DECLARED.prepare(victim, sample[0][:1], sample[1][:1])


def test_no_images(victim: Victim, ready: Generator, sample: tuple[Tensor, Tensor]) -> None:
    x, y = sample[0][:0], sample[1][:0]
    assert ready(victim, x, y, Threat("l2", 0.1)).shape == x.shape


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"mode": "both"}, "unknown mode"),
        ({"c": 0.0}, "c must be positive"),
        ({"lr": float("inf")}, "lr must be positive"),
        ({"c": None}, "either c, or c=None and a power"),
        ({"power": 0.3, "mode": "minimal"}, "either c, or c=None and a power"),
        ({"c": None, "power": 0.3}, "a power with mode='minimal'"),
        ({"c": None, "mode": "minimal", "power": -1.0}, "power must be positive"),
        ({"validation": 1.0}, r"validation must be in \(0, 1\)"),
        ({"images": 1}, "images must be >= 2"),
        ({"patience": 0}, "patience"),
    ],
)
def test_bad_settings(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Generator(**settings)
