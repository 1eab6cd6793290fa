"""Autograd against central differences: honest networks of every kind pass, wrong gradients show."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.datasets.registry import Dataset
from harness.determinism import seed_everything
from harness.schema.probes import Diagnostics, Slopes
from harness.selftest.linear_victim import LinearVictim
from harness.selftest.masked_gradients import BROKEN, WRONG_GRADIENTS, KWinners, Masked
from harness.threat import Threat
from harness.trust import probe_checks
from harness.trust.checks import grade_of
from harness.trust.measurements import GradientDiagnostics
from harness.trust.slopes import RUGGED, WRONG, SlopeComparison
from harness.victims.adaptation import Remedy
from harness.victims.victim import Victim

LINF = Threat("linf", 0.1)
THREATS = (LINF, Threat("l2", 0.5), Threat("l1", 2.0))


class Attention(nn.Module):
    """Patches, one block of attention with layer norms and GELU, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 2, 2)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu", norm_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block(self.patches(x).flatten(2).transpose(1, 2)).mean(1))
        return logits


class Maxout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pieces, self.head = nn.Linear(64, 120), nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pieces(x.flatten(1)).unflatten(1, (40, 3)).amax(2))
        return logits


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.block, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        logits: Tensor = self.head(F.relu(x + self.block(x)).mean((2, 3)))
        return logits


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def dense(part: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 80), part(), nn.Linear(80, 40), part(), nn.Linear(40, 10))


HONEST: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(dense, nn.ReLU),
    "sigmoid": partial(dense, nn.Sigmoid),
    "max-pool": pooled,
    "maxout": Maxout,
    "residual": Residual,
    "attention": Attention,
}


class InFloat32(Masked):
    """Has a constant that is no buffer, so that there is no copy in float64."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.scale = [torch.eye(8)]

    def forward(self, x: Tensor) -> Tensor:
        return self.honest(x @ self.scale[0])


class StraightThrough(Masked):
    """Pixels on the levels of 8 bits, with the gradient of the identity."""

    def forward(self, x: Tensor) -> Tensor:
        return self.honest(x + ((255 * x).round() / 255 - x).detach())


class PrivateNoise(Masked):
    """Draws from a generator that no seed reaches."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.state = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.state[0] += 1
        generator = torch.Generator().manual_seed(self.state[0])
        return self.honest(x + 0.3 * torch.randn(x.shape, generator=generator).to(x))


class Boxed(Masked):
    """Notes the range of what it is given."""

    low, high = 0.0, 1.0

    def forward(self, x: Tensor) -> Tensor:
        seen = x.detach()
        self.low, self.high = min(self.low, float(seen.min())), max(self.high, float(seen.max()))
        return self.honest(x)


@pytest.fixture(scope="module")
def images(digits: Dataset) -> Tensor:
    """With a black background, which ties windows of a max-pooling."""
    x: Tensor = digits.test_sample(40)[1][0]
    return x


def compare(model: nn.Module, x: Tensor, threat: Threat = LINF) -> Slopes:
    victim = Victim(model.eval(), classes=10)
    return SlopeComparison(victim, x, victim.predict(x), threat).facts()


class Balanced(Masked):
    """An untrained network tends to one class: its logits, standardised over some images."""

    def __init__(self, base: nn.Module, x: Tensor) -> None:
        super().__init__(base.eval())
        with torch.no_grad():
            logits = base(x)
        self.register_buffer("mean", logits.mean(0))
        self.register_buffer("std", logits.std(0))

    def forward(self, x: Tensor) -> Tensor:
        return (self.honest(x) - self.mean) / self.std


def seeded(make: Callable[[], nn.Module], x: Tensor) -> nn.Module:
    seed_everything(0)
    return Balanced(make(), x)


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("name", HONEST)
def test_an_honest_network_has_the_gradients_of_its_outputs(name: str, threat: Threat, images: Tensor) -> None:
    found = compare(seeded(HONEST[name], images), images, threat)
    assert found.float64
    assert set(found.error) == {"clean", "boundary"}
    assert max(found.error.values()) < 1e-4 < WRONG / 100
    assert max(found.wrong.values()) == 0
    assert max(found.coarse.values()) <= 0.1


@pytest.mark.parametrize("name", HONEST)
def test_without_float64_larger_steps_do(name: str, images: Tensor) -> None:
    found = compare(InFloat32(seeded(HONEST[name], images)), images)
    assert not found.float64
    assert max(found.error.values()) < 0.05
    assert max(found.wrong.values()) <= 0.025


@pytest.mark.parametrize("front", [lambda base: base, InFloat32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", WRONG_GRADIENTS)
def test_a_wrong_gradient_shows(name: str, front: Any, images: Tensor) -> None:
    found = compare(front(WRONG_GRADIENTS[name](seeded(HONEST["relu"], images))), images)
    assert found.float64 == (front is not InFloat32)
    assert min(found.wrong.values()) > 0.8
    assert min(found.error.values()) > 1.2 * WRONG


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_gradients_that_hold_for_no_distance_show(threat: Threat, images: Tensor) -> None:
    """Those of k-winners-take-all are right where they are taken."""
    winners = partial(KWinners, 0.15)
    network = seeded(
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(64, 400), winners(), nn.Linear(400, 400), winners(), nn.Linear(400, 10)
        ),
        images,
    )
    found = compare(network, images, threat)
    assert max(found.error.values()) < 1e-4
    assert max(found.coarse.values()) > 0.4


def test_a_straight_through_part_that_hardly_rounds_is_right(images: Tensor) -> None:
    found = compare(StraightThrough(seeded(HONEST["relu"], images)), images)
    assert max(found.error.values()) > WRONG
    assert max(found.wrong.values()) <= probe_checks.WRONG["C"]
    assert max(found.coarse.values()) <= 0.05


def test_outputs_that_do_not_repeat_cannot_be_compared(images: Tensor) -> None:
    found = compare(PrivateNoise(seeded(HONEST["relu"], images)), images)
    assert found.error == found.wrong == {}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_linear_victim_is_compared_exactly(norm: Any) -> None:
    linear = LinearVictim.random(classes=3, shape=(1, 6, 6))
    x, y = linear.images(30, spread=0.02)
    found = SlopeComparison(Victim(linear.model), x, y, Threat(norm, 0.1)).facts()
    assert max(found.error.values()) < 1e-6
    assert max(found.coarse.values()) == max(found.wrong.values()) == 0


@pytest.mark.parametrize("wrap", [lambda base: base, WRONG_GRADIENTS["flipped"]], ids=["honest", "flipped"])
def test_points_near_the_boundary_are_found_without_gradients_too(
    wrap: Any, trained: nn.Module, images: Tensor
) -> None:
    victim = Victim(wrap(trained), classes=10)
    y = victim.predict(images)
    near, known = SlopeComparison(victim, images, y, LINF).near_boundary()
    assert known.all()
    top = victim.logits(near).topk(2).values
    assert torch.equal(victim.predict(near), y)
    clean = victim.logits(images).topk(2).values
    assert ((top[:, 0] - top[:, 1]) < 0.02 * (clean[:, 0] - clean[:, 1]).clamp_min(1)).all()


def test_one_class_alone_has_points_where_an_attack_finds_them(images: Tensor) -> None:
    victim = Victim(seeded(HONEST["relu"], images), classes=10)
    y = victim.predict(images)
    x = images[y == y[0]]
    _, known = SlopeComparison(victim, x, y[y == y[0]], Threat("linf", 1e-4)).near_boundary()
    assert not known.any()
    found = SlopeComparison(victim, x, y[y == y[0]], Threat("linf", 1e-4)).facts()
    assert set(found.error) == {"clean"}


def test_the_model_sees_images_alone(images: Tensor) -> None:
    model = Boxed(seeded(HONEST["relu"], images))
    victim = Victim(model, classes=10, own=True)
    SlopeComparison(victim, images, victim.predict(images), Threat("linf", 0.5)).facts()
    assert (model.low, model.high) == (0, 1)


def test_facts_repeat_and_leave_the_generator_alone(images: Tensor) -> None:
    model = WRONG_GRADIENTS["drowned"](seeded(HONEST["relu"], images))
    before = torch.random.get_rng_state()
    first = compare(model, images)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(9)
    assert compare(model, images) == first


def test_passes_of_the_copy_are_counted(images: Tensor) -> None:
    victim = Victim(seeded(HONEST["relu"], images), classes=10)
    y = victim.predict(images)
    with victim.counted() as cost:
        SlopeComparison(victim, images, y, LINF).facts()
    assert 80 < cost.forwards / len(images) < 140
    assert {parameter.dtype for parameter in victim.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "raw", "seen"),
    [
        ("scaled-logits", "A", "A"),
        ("probabilities", "A", "A"),
        ("random-input", "A", "A"),
        ("dead-units", "A", "A"),
        ("rounded-inputs", "C", "C"),  # a stand-in's gradient is not the model's
        ("corrugated-loss", "C", "C"),
        ("optimising-forward", "C", "C"),
    ],
)
def test_masked_victims_with_and_without_their_remedy(name: str, raw: str, seen: str, images: Tensor) -> None:
    broken, x = BROKEN[name], images[:20]
    model = broken.wrap(seeded(HONEST["relu"], images))
    remedy = Remedy(draws=2) if name == "random-input" else broken.remedy
    y = Victim(model, classes=10).predict(x)
    answers = []
    for view in (None, remedy):
        slopes = SlopeComparison(Victim(model, classes=10, remedy=view), x, y, LINF).facts()
        facts = Diagnostics(probabilities=False, detached=False, inner_optimisation=False, slopes=slopes)
        answer = probe_checks._differences(facts, len(x))
        assert answer is not None
        answers.append(answer[0])
    assert answers == [raw, seen]


def test_the_probe_holds_them_against_each_other(images: Tensor) -> None:
    model = WRONG_GRADIENTS["decoy"](seeded(HONEST["relu"], images))
    victim = Victim(model, classes=10)
    y = victim.predict(images[:8])
    facts = GradientDiagnostics(victim, victim, images[:8], y, LINF).facts()
    assert facts.slopes is not None
    assert facts.slopes.n == 8
    assert min(facts.slopes.wrong.values()) > 0.8


def test_thresholds_lie_between_what_is_sound_and_what_is_broken() -> None:
    assert WRONG < 0.5 < RUGGED < 1  # half of the gradient lost; kinks; a gradient of something else
    assert grade_of(64, 64, probe_checks.WRONG) == grade_of(64, 64, probe_checks.RUGGED) == "C"
