"""Planted adversarials: they are there, noise does not find them, gradient attacks do unless the model hides them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from harness.attacks.apgd import APGD
from harness.attacks.base import Attack
from harness.attacks.fast_gradient import Gradient
from harness.attacks.fmn import MinimumNorm
from harness.attacks.noise import Noise
from harness.attacks.square import Square
from harness.datasets.registry import Dataset
from harness.errors import UserError
from harness.judging.referee import judge
from harness.leaderboard import leaderboard
from harness.schema.probes import PlantedFacts
from harness.selftest.masked_gradients import BROKEN, RoundedInputs, ZeroGradient
from harness.selftest.victims import plain_network
from harness.threat import Norm, Threat
from harness.tracking.payloads import planted_metrics
from harness.trust import planting
from harness.trust.checks import Check
from harness.trust.grade import trust
from harness.trust.planting import Garden, Plot, fisher, last_layer, on_grid, plant
from harness.victims.adaptation import Remedy
from harness.victims.victim import Victim
from tests.helpers.boards import amend, sound
from tests.helpers.planted import planted

LINF = Threat("linf", 0.1)
THREATS = (LINF, Threat("l2", 0.5), Threat("l1", 2.0))
FRONT = Remedy(stand_ins=(("front", "identity"),))
GRADIENTS: tuple[Attack, ...] = (Gradient(), APGD(steps=20), MinimumNorm(steps=50))


@pytest.fixture(scope="module")
def sample(digits: Dataset) -> tuple[Tensor, Tensor]:
    x, y = digits.test_sample(40)[1]
    return x, y


def facts(model: nn.Module, sample: tuple[Tensor, Tensor], threat: Threat = LINF, **named: Any) -> PlantedFacts:
    attacks = named.pop("attacks", GRADIENTS)
    return plant(model, *sample, threat, attacks, classes=10, **named)


def found(one: PlantedFacts) -> float:
    share = one.share("gradients")
    assert share is not None
    return share


def garden(model: nn.Module, sample: tuple[Tensor, Tensor], threat: Threat = LINF) -> Garden:
    x, y = sample
    right = Victim(model).predict(x) == y
    device = torch.device("cpu")
    return Garden(model, x[right], y[right], threat, classes=10, device=device, votes=None, seed=0)


def plot(model: nn.Module, sample: tuple[Tensor, Tensor], threat: Threat = LINF) -> Plot:
    return garden(model, sample, threat).plot(last_layer(Victim(model), sample[0][:2], 10))


# ---------------------------------------------------------------- what is planted


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_every_planted_image_has_an_adversarial_and_keeps_its_label(
    threat: Threat, trained: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    made = plot(trained, sample, threat)
    assert len(made.x) >= 20
    verdict = judge(made.sow(Victim(trained, classes=10)), made.x, made.y, made.x_adv, threat)
    assert verdict.stands.all()
    assert verdict.adversarial.all()
    assert threat.within(made.x, made.x_adv).all()
    on_files = ((made.x_adv * 255).round() / 255 == made.x_adv).flatten(1).all(1)
    assert torch.equal(on_files, made.grid)
    assert 0.3 < float(made.grid.double().mean()) < 0.7
    assert int(made.noise.sum()) <= planting.NOISY * len(made.x)


def test_noise_of_the_suites_finds_next_to_nothing(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    made = plot(trained, sample)
    victim = made.sow(Victim(trained, classes=10))
    for noise in (Noise(distribution="uniform"), Noise(distribution="signs")):
        met = [victim.predict(noise(victim, made.x, made.y, LINF)) != made.y for _ in range(20)]
        assert int(torch.stack(met).any(0).sum()) <= planting.NOISY * len(made.x)


def test_an_image_gets_the_same_logits_beside_others(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    made = plot(trained, sample)
    victim = made.sow(Victim(trained, classes=10))
    rows = torch.arange(len(made.x)).flip(0)[::3]
    assert torch.allclose(victim.logits(made.x_adv)[rows], victim.logits(made.x_adv[rows]), atol=1e-5)


def test_logits_look_like_the_models_own(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    """A margin that saturates nothing, and other classes that cannot win and are no constants."""
    made = plot(trained, sample)
    own = Victim(trained).logits(made.x).sort(1, descending=True).values
    seen = made.sow(Victim(trained, classes=10)).logits(made.x).sort(1, descending=True).values
    assert (seen[:, 0] - seen[:, 1]).median() == pytest.approx(float((own[:, 0] - own[:, 1]).median()), rel=0.2)
    assert (seen[:, 1] > seen[:, 2]).all()
    assert (seen[:, 0] - seen[:, -1]).median() == pytest.approx(float((own[:, 0] - own[:, -1]).median()), rel=0.3)


def test_images_whose_balls_touch_are_left_out(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    x, y = sample
    twice = (torch.cat([x[:20], (x[:20] + 0.01).clamp(0, 1)]), torch.cat([y[:20], y[:20]]))
    assert len(garden(trained, twice).x) == len(garden(trained, (x[:20], y[:20])).x)


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_points_on_the_grid_stay_in_the_ball(threat: Threat, sample: tuple[Tensor, Tensor]) -> None:
    x, _ = sample
    assert threat.eps is not None
    far = threat.project(x, x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    near = on_grid(x, far, threat)
    assert ((near * 255).round() / 255 == near).all()
    assert threat.within(x, near).all()
    assert not torch.equal(near, x)


def test_fishers_direction_is_that_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    inner, far = torch.randn(2, 30, 50, generator=generator), torch.randn(2, 50, generator=generator)
    for one, at, slope in zip(inner.double(), far.double(), fisher(inner, far, planting.RIDGE), strict=True):
        spread = one - one.mean(0)
        scatter = spread.T @ spread / 30
        ridge = planting.RIDGE * spread.square().mean()
        expected = torch.linalg.solve(scatter + ridge * torch.eye(50, dtype=torch.float64), at - one.mean(0))
        assert torch.allclose(slope.double(), expected / expected.norm(), atol=1e-5)


# ---------------------------------------------------------------- who finds it


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_gradients_find_it_in_an_honest_network(
    threat: Threat, trained: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    one = facts(trained, sample, threat)
    assert one.asked
    assert one.place == "stages.logits"
    assert found(one) >= 0.95
    assert one.share("black_box") is None


@pytest.mark.parametrize("wrap", [ZeroGradient, RoundedInputs])
def test_hidden_gradients_find_nothing_without_their_remedy(
    wrap: type[nn.Module], trained: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    model = wrap(trained)
    one = facts(model, sample, attacks=(APGD(steps=10), Square(queries=300)))
    assert found(one) == 0
    assert (one.share("black_box") or 0) > 0.7  # it is there
    assert found(facts(model, sample, remedy=FRONT)) >= 0.95


def test_a_cut_graph_is_an_error_and_not_found(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    (attack,) = facts(ZeroGradient(trained), sample, attacks=(APGD(steps=5),)).attacks
    assert attack.found == 0
    assert "grad" in attack.errors[0]


def test_what_comes_after_the_last_layer_is_tested_too(sample: tuple[Tensor, Tensor]) -> None:
    one = facts(BROKEN["dead-units"].wrap(plain_network()), sample, attacks=(Gradient(), APGD(steps=20)))
    assert one.place == "base.stages.logits"
    assert found(one) < 0.5


class Parted(nn.Module):
    """One network for images on the grid of files, another for all others."""

    def __init__(self, files: nn.Module, others: nn.Module) -> None:
        super().__init__()
        self.files, self.others = files, others

    def forward(self, x: Tensor) -> Tensor:
        on = ((x * 255).round() / 255 == x).flatten(1).all(1, keepdim=True)
        return torch.where(on, self.files(x), self.others(x))


def test_a_model_that_treats_files_otherwise_is_found_out(
    trained: nn.Module, digits: Dataset, sample: tuple[Tensor, Tensor]
) -> None:
    smooth = nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), trained)
    one = facts(Parted(trained, smooth), sample)
    assert one.floats.gradients >= 0.95 * one.floats.planted
    assert one.grid.gradients < 0.5 * one.grid.planted


class Answers(nn.Module):
    """Labels alone, without a layer to read."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.hidden = [base]

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(self.hidden[0](x).argmax(1), 10).float()


def test_where_nothing_can_be_planted_nobody_is_asked(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    x, y = sample
    one = facts(Answers(trained), (x, y), Threat("linf", 0.01))
    assert not one.asked
    assert one.attacks == ()
    assert one.share("gradients") is None


def test_a_model_that_gets_nothing_right(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    x, _ = sample
    wrong = (Victim(trained).predict(x) + 1) % 10
    one = facts(trained, (x, wrong))
    assert (one.asked, one.planted, one.place) == (False, 0, "")


def test_each_side_is_shown_what_it_has_not_found(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    attacks = (Noise(), Gradient(), Square(queries=20), APGD(steps=20), Square(queries=300))
    one = facts(trained, sample, attacks=attacks)
    step, iterated = (each for each in one.attacks if each.side == "gradients")
    few, many = (each for each in one.attacks if each.side == "black_box")
    assert step.shown == few.shown == one.planted
    assert iterated.shown == one.planted - step.found
    assert many.shown == one.planted - few.found
    assert one.floats.gradients + one.grid.gradients == step.found + iterated.found


@dataclass(frozen=True, kw_only=True)
class Learner(Attack):
    """Has to look at images first."""

    name: ClassVar[str] = "learner"
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    looked: int = 0

    def prepare(self, victim: Victim, x: Tensor, y: Tensor) -> Attack:
        raise ValueError("saw nothing")

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        return x


def test_an_attack_that_cannot_prepare_finds_nothing(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    (learner,) = facts(trained, sample, attacks=(Learner(),)).attacks
    assert (learner.found, learner.errors) == (0, ("ValueError: saw nothing",))


def test_the_same_again_and_nothing_left_behind(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    state, numbers = torch.get_rng_state(), random.getstate()
    one = facts(trained, sample, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == numbers
    torch.manual_seed(9)
    assert facts(trained, sample, seed=3).model_copy(update={"seconds": one.seconds}) == one
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert not any(part._forward_hooks for part in trained.modules())


@pytest.mark.parametrize("threat", [Threat("l0", 4.0), Threat("linf", None), Threat("linf", 0.0)], ids=str)
def test_a_threat_without_a_ball_is_refused(threat: Threat, trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UserError, match="planting needs an eps above 0"):
        facts(trained, sample, threat)


# ---------------------------------------------------------------- the check


def check(one: PlantedFacts | None) -> Check:
    board = sound()
    amend(board, lambda found: found.update(planted=one and one.model_dump()))
    graded = trust(board, "m0", "linf")
    assert graded is not None
    return next(each for each in graded.checks if each.name == "planted-found")


@pytest.mark.parametrize(
    ("floats", "grid", "grade"),
    [(32, 32, "A"), (31, 31, "A"), (30, 30, "B"), (27, 32, "D"), (32, 27, "D"), (0, 0, "D"), (28, 29, "D")],
)
def test_grades(floats: int, grid: int, grade: str) -> None:
    answer = check(planted(floats=floats, grid=grid))
    assert answer.grade == grade
    assert f"gradient attacks found {floats} of 32 on floats and {grid} of 32 on the 8-bit grid" in answer.finding
    assert "black-box attacks 60 of 64" in answer.finding
    assert answer.finding.startswith("the battery cannot find what is known to be there") == (grade == "D")


def test_not_asked_is_no_a() -> None:
    assert (check(None).status, check(None).grade) == ("skipped", "B")


def test_why_nothing_was_asked() -> None:
    few = check(planted(n=5, floats=0, grid=0, black_box=0, asked=False, attacks=()))
    assert few.grade == "B"
    assert "could be planted for 5 images on floats and 5 on the 8-bit grid alone" in few.finding
    part = {"planted": 32, "noise": 8, "gradients": 0, "black_box": 0}
    noisy = check(PlantedFacts(**planted(asked=False, attacks=()).model_dump() | {"floats": part, "grid": part}))
    assert noisy.grade == "B"
    assert "noise finds 16 of 64" in noisy.finding


def test_shares_are_metrics_and_columns() -> None:
    board = sound()
    amend(board, lambda found: found.update(planted=planted(floats=30, grid=32).model_dump()))
    assert planted_metrics(board.health["m0"]) == {
        "planted/gradients linf 0.1": 62 / 64,
        "planted/black_box linf 0.1": 60 / 64,
    }
    rows = leaderboard(board)
    assert set(rows["planted_found"]) == {62 / 64}
    assert set(rows["planted_black_box"]) == {60 / 64}
    amend(board, lambda found: found.update(planted=None))
    assert planted_metrics(board.health["m0"]) == {}
    assert leaderboard(board)["planted_found"].isna().all()
