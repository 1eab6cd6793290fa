"""A model that a batch is too much for is called on fewer images at once, and no number changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from defenses.standard import Standard
from harness import determinism
from harness.attacks.alpha import Alpha
from harness.attacks.apgd import APGD
from harness.attacks.base import Attack
from harness.attacks.class_jacobian import class_gradients
from harness.attacks.fast_gradient import Gradient
from harness.attacks.lbfgs import LBFGS
from harness.attacks.noise import Noise
from harness.attacks.square import Square
from harness.attacks.toolkits.art import Art
from harness.attacks.toolkits.foolbox import Foolbox
from harness.datasets.registry import Dataset, DataSource
from harness.execution import jobs, worker
from harness.judging.proposal import Bench
from harness.judging.shard import craft, run_shard
from harness.planning.specs import Cell, ModelSpec
from harness.records.home import Home
from harness.records.prepared import prepared_record
from harness.threat import Threat
from harness.training.gradient_descent import score
from harness.trust.inspection import inspect
from harness.trust.probe import diagnose, probe
from harness.victims.victim import Victim


class Hungry(nn.Module):
    """A small network that has memory for so many images at once."""

    def __init__(self, limit: int = 10**9, backwards: int = 10**9) -> None:
        super().__init__()
        with determinism.isolated(0):
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
        self.limit, self.backwards = limit, backwards
        self.largest = 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > (min(self.limit, self.backwards) if x.requires_grad else self.limit):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate a lot.\nOn two lines.")
        self.largest = max(self.largest, len(x))
        out: Tensor = self.net(x) * 10
        return out


@pytest.fixture
def x() -> Tensor:
    return torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def victims(limit: int) -> tuple[Victim, Victim]:
    return Victim(Hungry(), classes=10), Victim(Hungry(limit), classes=10)


@pytest.mark.parametrize(
    ("attack", "threat"),
    [
        (Noise(draws=5), Threat("linf", 0.1)),
        (Gradient(), Threat("linf", 0.1)),
        (APGD(steps=8), Threat("l2", 0.5)),
        (APGD(steps=5, loss="dlr", targets=3), Threat("linf", 0.1)),
        (Alpha(mode="minimal"), Threat("l2", None)),
        (LBFGS(), Threat("l2", None)),
        (Square(queries=30), Threat("linf", 0.1)),
        (Foolbox("LinfPGD", steps=5), Threat("linf", 0.1)),
        (Art("ProjectedGradientDescentPyTorch", max_iter=5), Threat("linf", 0.1)),
    ],
    ids=str,
)
def test_an_attack_finds_the_same(attack: Attack, threat: Threat, x: Tensor) -> None:
    roomy, tight = victims(limit=6)
    y = roomy.predict(x)
    expected, found = (craft(victim, attack, threat, x, y, seed=3) for victim in (roomy, tight))
    assert expected.errors == found.errors == ()
    assert isinstance(expected.x_adv, Tensor)
    torch.testing.assert_close(found.x_adv, expected.x_adv, atol=2e-4, rtol=0)
    assert (found.forwards, found.backwards) == (expected.forwards, expected.backwards)
    assert 1 <= tight.model.largest <= 6
    assert tight.chunk == 5  # 20 images were halved twice


def test_gradients_of_all_classes_are_the_same(x: Tensor) -> None:
    roomy, tight = victims(limit=6)
    tight.chunk = 6
    for found, expected in zip(class_gradients(tight, x), class_gradients(roomy, x), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_whole_shard_is_judged_the_same(x: Tensor) -> None:
    y = Victim(Hungry()).predict(x)
    frames = []
    for limit in (10**9, 3):
        bench = Bench.of(Hungry(limit), 10, "cpu")
        frames.append(
            run_shard(bench, APGD(steps=5), Threat("linf", 0.1), index=torch.arange(20), x=x, y=y, seed=0).samples
        )
    assert frames[0]["adversarial"].any()
    assert frames[0]["adversarial"].tolist() == frames[1]["adversarial"].tolist()


@pytest.mark.parametrize("images", [1, 2])
def test_runs_side_by_side_make_larger_batches_than_an_attack_was_given(images: int, x: Tensor) -> None:
    """What did not fit is halved, not the images of the attack: one image has four runs in a batch of its own."""
    roomy, tight = victims(limit=4)
    attack, threat = APGD(steps=5, loss="dlr", targets=9), Threat("linf", 0.01)
    y = roomy.predict(x)
    expected, found = (craft(victim, attack, threat, x[:images], y[:images], seed=3) for victim in (roomy, tight))
    assert roomy.model.largest > 4
    assert isinstance(found.x_adv, Tensor), found.errors
    torch.testing.assert_close(found.x_adv, expected.x_adv, atol=2e-4, rtol=0)
    assert 1 < (tight.chunk or 0) <= 4


def test_one_image_too_many_is_a_crash_with_one_line(x: Tensor) -> None:
    victim = Victim(Hungry(0), classes=10)
    found = craft(victim, Gradient(), Threat("linf", 0.1), x, torch.zeros(20, dtype=torch.int64), seed=0)
    assert found.x_adv is None
    (error,) = found.errors
    assert error.startswith("out of memory, even image by image: OutOfMemoryError")
    assert "\n" not in error
    with pytest.raises(torch.OutOfMemoryError):
        victim.predict(x)


def test_memory_is_really_spared(x: Tensor) -> None:
    """What a pass keeps for the way back is that of one chunk: counted in saved tensors, larger than the images."""
    victim = Victim(Hungry(), classes=10)

    def kept() -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        images = x.clone().requires_grad_(True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = victim(images)
        before = sum(sizes)
        torch.autograd.grad(logits.sum(), images)
        return before

    whole = kept()
    victim.chunk = 5
    assert kept() < whole


def test_what_did_not_fit_is_not_counted(x: Tensor) -> None:
    victim = Victim(Hungry(6), classes=10)

    def work() -> Tensor:
        victim(x[:6])
        logits: Tensor = victim(x)
        return logits

    with victim.counted() as cost:
        victim.sparing(20, work)
    assert (cost.forwards, cost.backwards) == (26, 0)


def test_gradients_of_all_classes_that_do_not_fit_are_not_asked_for_again_one_by_one(x: Tensor) -> None:
    victim = Victim(Hungry(6), classes=10)
    with pytest.raises(torch.OutOfMemoryError):
        class_gradients(victim, x)
    assert victim.cost.forwards == 20


TIGHT = [{"limit": 6}, {"backwards": 6}]


@pytest.mark.parametrize("memory", TIGHT, ids=str)
def test_a_probe_measures_the_same(memory: dict[str, int], x: Tensor) -> None:
    y = Victim(Hungry()).predict(x)
    expected, found = (probe(model, x, y, Threat("linf", 0.05), classes=10) for model in (Hungry(), Hungry(**memory)))
    assert found.stochastic.labels == 0
    assert not found.seen.raw.errors
    apart = {"seconds", "stochastic", "seen"}
    assert found.model_dump(exclude=apart) == expected.model_dump(exclude=apart)
    one, other = expected.seen.raw, found.seen.raw
    assert other.rising == pytest.approx(one.rising, abs=1e-3)
    assert one.slopes is not None
    assert other.slopes is not None
    assert other.slopes.error == pytest.approx(one.slopes.error, rel=0.01, abs=1e-4)
    assert other.slopes.model_copy(update={"error": one.slopes.error}) == one.slopes
    assert other.model_copy(update={"rising": one.rising, "slopes": one.slopes}) == one


@pytest.mark.parametrize("memory", TIGHT, ids=str)
def test_a_guest_is_looked_at_the_same(memory: dict[str, int], x: Tensor) -> None:
    models = Hungry(), Hungry(**memory)
    for model in models:
        model.net[-1].weight.data *= 100  # type: ignore[union-attr,operator]
    y = Victim(models[0]).predict(x)
    expected, found = (diagnose(model, x, y, classes=10) for model in models)
    assert found == expected
    assert found.temperature > 1
    assert inspect(models[1], x, y, 10) == inspect(models[0], x, y, 10)


CELL = Cell(
    victim=ModelSpec(dataset="digits", architecture="mlp-8", defense=Standard()),
    attack=LBFGS(c="dataset", search_images=20, searches=4, max_evaluations=30),
    threat=Threat("l2"),
    n=20,
    batch=20,
)


@pytest.mark.parametrize("memory", TIGHT, ids=str)
def test_an_attack_learns_the_same(memory: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = []
    for model in (Hungry(), Hungry(**memory)):
        home = Home(tmp_path / str(model.limit + model.backwards)).create()
        monkeypatch.setattr(worker, "load_model", lambda *_, model=model: model)
        worker.Worker(jobs.Context(home, {"digits": DataSource("digits")})).run(jobs.Prepare(CELL))
        records.append(prepared_record(home.prepared(str(CELL.prepared_key))))
    expected, found = records
    assert found.fields["c"] == pytest.approx(expected.fields["c"], rel=1e-3)
    assert found.cost.forwards == expected.cost.forwards > 0
    assert found.cost.backwards == expected.cost.backwards > 0


def test_a_trained_model_is_scored_whatever_the_memory(digits: Dataset) -> None:
    test = digits.x_test, digits.y_test
    expected, tight = score(Hungry(), digits, *test), Hungry(50)
    assert score(tight, digits, *test) == pytest.approx(expected, rel=1e-6)
    assert tight.largest == 32  # a batch of 128 was halved twice
    with pytest.raises(torch.OutOfMemoryError):
        score(Hungry(0), digits, *test)
