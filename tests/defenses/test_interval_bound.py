"""Interval bounds hold, the schedule is the paper's, and what it cannot bound is refused by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defenses import defenses
from defenses.interval_bound import IntervalBound
from defenses.standard import Standard
from harness.datasets.registry import DATASETS, Dataset
from harness.determinism import seed_everything
from harness.errors import UserError
from harness.models.registry import build_model
from harness.models.stages import Stages
from harness.training.interval import Box, through, worst_margins

DIGITS = DATASETS["digits"]
SHAPE = (1, 12, 12)


def network(architecture: str) -> tuple[Stages, Tensor, Tensor]:
    seed_everything(0)
    return build_model(architecture, SHAPE, 5).double().eval(), torch.rand(6, *SHAPE).double(), torch.arange(6) % 5


def box(x: Tensor, eps: float) -> Box:
    return Box((x - eps).clamp(0, 1), (x + eps).clamp(0, 1))


@pytest.mark.parametrize("architecture", ["softmax", "mlp-20-10", "mlp-sigmoid-20", "lenet", "lenet-32", "ae-400"])
def test_no_point_of_the_box_is_worse_than_the_bounds(architecture: str) -> None:
    model, x, y = network(architecture)
    around = box(x, 0.1)
    worst = worst_margins(model, around, y)
    assert torch.equal(worst.gather(1, y.unsqueeze(1)), torch.zeros(6, 1).double())
    for i in range(200):
        share = torch.rand_like(x).round() if i % 2 else torch.rand_like(x)
        logits = model(around.low + share * (around.high - around.low))
        assert (logits - logits.gather(1, y.unsqueeze(1)) <= worst + 1e-9).all()


def test_of_an_affine_model_the_bound_is_the_worst_case() -> None:
    model, x, y = network("softmax")
    (weight, bias), flat = model.stages["logits"].parameters(), x.flatten(1)
    difference = weight - weight[y].unsqueeze(1)
    low, high = (flat - 0.1).clamp(0, 1).unsqueeze(1), (flat + 0.1).clamp(0, 1).unsqueeze(1)
    exact = torch.where(difference > 0, difference * high, difference * low).sum(2) + bias - bias[y].unsqueeze(1)
    torch.testing.assert_close(worst_margins(model, box(x, 0.1), y), exact)


def test_the_elided_last_layer_is_tighter() -> None:
    model, x, y = network("mlp-20-10")
    elided = worst_margins(model, box(x, 0.1), y)
    around = box(x, 0.1)
    for stage in model.stages.values():
        around = through(stage, around)
    plain = around.high - around.low.gather(1, y.unsqueeze(1))
    other = F.one_hot(y, 5) == 0
    assert (elided[other] < plain[other]).all()


def test_without_a_radius_the_worst_logits_are_the_logits() -> None:
    model, x, y = network("lenet")
    logits = model(x)
    torch.testing.assert_close(worst_margins(model, box(x, 0.0), y), logits - logits.gather(1, y.unsqueeze(1)))


def test_the_objective_goes_from_clean_to_worst_as_the_paper_says() -> None:
    model, x, y = network("mlp-20")
    trainer = IntervalBound(eps=0.1, kappa=0.25, warmup=0.2, ramp=0.4)
    clean = F.cross_entropy(model(x), y)

    def wanted(eps: float, kappa: float) -> Tensor:
        return kappa * clean + (1 - kappa) * F.cross_entropy(worst_margins(model, box(x, eps), y), y)

    for progress, eps, kappa in ((0.0, 0, 1), (0.1, 0, 1), (0.4, 0.05, 0.625), (0.6, 0.1, 0.25), (1.0, 0.1, 0.25)):
        found = trainer.objective(model, x, y, progress)
        torch.testing.assert_close(found.value, wanted(eps, kappa), msg=f"at {progress}")
        assert ("bounded" in found.logged) == (eps > 0)
    torch.testing.assert_close(trainer.loss(model, x, y).value, wanted(0.1, 0.25))


def test_training_goes_through_the_schedule(digits: Dataset) -> None:
    seen: list[float] = []

    class Watched(IntervalBound):
        def objective(self, model: Stages, x: Tensor, y: Tensor, progress: float) -> Any:
            seen.append(progress)
            return super().objective(model, x, y, progress)

    Watched(epochs=2, batch_size=50, eps=0.1).fit("mlp-8", digits.first(200))
    assert seen == [step / 8 for step in range(8)]


def test_it_can_be_proved_more_than_of_plain_training(digits: Dataset) -> None:
    x, y = digits.test.x[:200], digits.test.y[:200]

    def proved(trainer: Any) -> float:
        seed_everything(0)
        model, history = trainer.fit("mlp-32", digits)
        assert (model(x).argmax(1) == y).float().mean() > 0.8
        if isinstance(trainer, IntervalBound):
            assert history[-1].logged["bounded"] > 0.4
        return float((worst_margins(model, box(x, 0.05), y).argmax(1) == y).float().mean())

    assert proved(IntervalBound(epochs=12, lr=5e-3)) > 0.6 > 0.35 > proved(Standard(epochs=12, lr=5e-3))


def test_it_trains_lenet(digits: Dataset) -> None:
    model, history = IntervalBound(epochs=1, warmup=0.0, ramp=0.5).fit("lenet", digits.first(120))
    assert math.isfinite(history[-1].loss)
    assert model(digits.test.x[:3]).shape == (3, 10)


@pytest.mark.parametrize(
    ("architecture", "part"),
    [("resnet", "BatchNorm2d"), ("maxout", "Dropout"), ("allconv", "last stage that is a Sequential")],
)
def test_what_cannot_be_bounded_is_refused_with_the_choices(architecture: str, part: str, digits: Dataset) -> None:
    state = torch.get_rng_state()
    said = rf"interval-bound cannot take {architecture}: no interval bounds for a {part}; choose from .*lenet"
    with pytest.raises(UserError, match=said):
        IntervalBound(epochs=0).build(architecture, DIGITS)
    with pytest.raises(UserError, match=said):
        IntervalBound(epochs=0).fit(architecture, digits)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_last_stage_that_is_no_dense_layer_is_refused() -> None:
    model, x, y = network("mlp-20")
    model.stages["logits"] = nn.Sequential(model.stages["logits"])
    with pytest.raises(UserError, match="last stage that is a Sequential"):
        worst_margins(model, box(x, 0.1), y)


def test_eps_is_the_data_sets() -> None:
    assert IntervalBound().resolve(DIGITS).eps == DIGITS.eps["linf"]
    assert defenses()["interval-bound"] is IntervalBound


@pytest.mark.parametrize("name", ["kappa", "warmup", "ramp"])
def test_shares_outside_their_range(name: str) -> None:
    with pytest.raises(UserError, match=rf"interval-bound: {name} must be in \[0, 1\]"):
        IntervalBound(**{name: 1.5})
