"""Victims that only look robust: their decisions are their base's, their robustness is not there."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.datasets.registry import Dataset
from harness.selftest.masked_gradients import (
    BROKEN,
    CorrugatedLoss,
    DeadUnits,
    OptimisingForward,
    RandomInput,
    RoundedInputs,
)
from harness.threat import Threat
from harness.trust.measurements import PlainPgd, cross_entropy, margin
from harness.victims.adaptation import Remedy
from harness.victims.victim import Victim, input_gradient

THREAT = Threat("linf", 0.1)
IDENTICAL = [name for name in BROKEN if name not in ("rounded-inputs", "random-input", "optimising-forward")]
MASKED = ("scaled-logits", "rounded-inputs", "dead-units", "corrugated-loss")
"""Those on which the plain attack fails."""


@pytest.fixture(scope="module")
def sample(digits: Dataset, trained_once: nn.Module) -> tuple[Tensor, Tensor]:
    x, y = digits.test_sample(120)[1]
    right = trained_once(x).argmax(1) == y
    return x[right], y[right]


def left(attacked: nn.Module, judged: nn.Module, x: Tensor, y: Tensor, remedy: Remedy | None = None) -> float:
    """Accuracy of one model on images that the plain attack made on another."""
    x_adv = PlainPgd()(Victim(attacked, remedy=remedy), x, y, THREAT)
    return float((Victim(judged).predict(x_adv) == y).float().mean())


def test_the_table() -> None:
    assert {"scaled-logits", "probabilities", "rounded-inputs", "zero-gradient", "random-input"} < set(BROKEN)
    assert {"dead-units", "corrugated-loss"} < set(BROKEN)
    for name, broken in BROKEN.items():
        assert broken.name == name
        assert broken.summary
        assert broken.remedy is None or broken.remedy


@pytest.mark.parametrize("name", BROKEN)
def test_a_wrapper_holds_its_base_and_survives_pickling(name: str, trained: nn.Module, sample: tuple) -> None:
    model = BROKEN[name].wrap(trained).eval()
    assert dict(model.named_children())["base"] is trained
    assert all(torch.equal(value, trained.state_dict()[key[5:]]) for key, value in model.state_dict().items())
    copy = pickle.loads(pickle.dumps(model))
    x = sample[0][:8]
    torch.manual_seed(3)
    first = model(x)
    torch.manual_seed(3)
    assert torch.equal(copy(x), first)
    Victim(model, remedy=BROKEN[name].remedy)(x)  # the remedy names parts that are there


@pytest.mark.parametrize("name", IDENTICAL)
def test_decisions_are_those_of_the_base(name: str, trained: nn.Module, sample: tuple) -> None:
    model = BROKEN[name].wrap(trained).eval()
    torch.manual_seed(0)
    x = torch.cat([sample[0], torch.rand(500, *sample[0].shape[1:])])  # also where nobody is sure
    assert torch.equal(Victim(model).predict(x), Victim(trained).predict(x))


@pytest.mark.parametrize("name", [name for name in BROKEN if name not in IDENTICAL])
def test_the_others_hardly_move_them(name: str, trained: nn.Module, sample: tuple) -> None:
    torch.manual_seed(0)
    x, y = sample
    assert (Victim(BROKEN[name].wrap(trained)).predict(x) == y).float().mean() > 0.85


@pytest.mark.parametrize("name", MASKED)
def test_they_look_robust_and_are_not(name: str, trained: nn.Module, sample: tuple) -> None:
    x, y = sample
    model, honest = BROKEN[name].wrap(trained), left(trained, trained, x, y)
    assert left(model, model, x, y) > honest + 0.2
    assert left(trained, model, x, y) < honest + 0.1, "what breaks the base breaks it too"


@pytest.mark.parametrize("name", ["scaled-logits", "rounded-inputs", "zero-gradient", "probabilities"])
def test_the_remedy_shows_the_weakness(name: str, trained: nn.Module, sample: tuple) -> None:
    x, y = sample
    model = BROKEN[name].wrap(trained)
    assert left(model, model, x, y, BROKEN[name].remedy) <= left(trained, trained, x, y) + 0.02


def test_remedies_that_undo_exactly(trained: nn.Module, sample: tuple) -> None:
    x, y = sample
    scaled, soft, cut = (BROKEN[name] for name in ("scaled-logits", "probabilities", "zero-gradient"))
    torch.testing.assert_close(Victim(scaled.wrap(trained), remedy=scaled.remedy)(x), trained(x))
    seen = Victim(soft.wrap(trained), remedy=soft.remedy)(x)
    torch.testing.assert_close(seen, trained(x).log_softmax(1), rtol=1e-5, atol=1e-5)
    expected = input_gradient(Victim(trained), x, lambda z: margin(z, y))[1]
    actual = input_gradient(Victim(cut.wrap(trained), remedy=cut.remedy), x, lambda z: margin(z, y))[1]
    torch.testing.assert_close(actual, expected)


def test_saturated_logits_have_no_cross_entropy_left(trained: nn.Module, sample: tuple) -> None:
    x, y = sample
    victim = Victim(BROKEN["scaled-logits"].wrap(trained))
    flat = input_gradient(victim, x, lambda z: cross_entropy(z, y))[1].flatten(1).abs().amax(1) == 0
    assert flat.float().mean() > 0.5
    assert (input_gradient(victim, x, lambda z: margin(z, y))[1].flatten(1).abs().amax(1) > 0).all()


def test_rounding_keeps_its_levels(trained: nn.Module) -> None:
    front = RoundedInputs(trained, levels=3).front
    assert front(torch.tensor([0.0, 0.2, 0.3, 0.7, 0.8, 1.0])).tolist() == [0, 0, 0.5, 0.5, 1, 1]


def test_a_detached_step_stops_autograd(trained: nn.Module, sample: tuple) -> None:
    x, y = sample
    with pytest.raises(RuntimeError, match="grad"):
        input_gradient(Victim(BROKEN["zero-gradient"].wrap(trained)), x, lambda z: margin(z, y))


def test_random_inputs_differ_from_call_to_call(trained: nn.Module, sample: tuple) -> None:
    model, x = RandomInput(trained, sigma=0.1), sample[0][:4]
    torch.manual_seed(0)
    first, second = model(x), model(x)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(model(x), first)
    assert torch.equal(RandomInput(trained, sigma=0.0)(x), trained(x))


def test_dead_units_are_flat_where_the_base_is_sure(trained: nn.Module, sample: tuple) -> None:
    x, y = sample
    x = torch.cat([x, 0.5 * (x + x.roll(1, 0))])  # and mixtures, of which nobody is sure
    y = Victim(trained).predict(x)
    sure = trained(x).softmax(1).amax(1) > 0.95  # the others are then below 1/20: cut off as well
    slope = input_gradient(Victim(DeadUnits(trained)), x, lambda z: margin(z, y))[1].flatten(1).abs().amax(1)
    assert 0 < sure.sum() < len(sure)
    assert (slope[sure] == 0).all()
    assert (slope[trained(x).softmax(1).amax(1) < 0.9] > 0).all()


def test_the_corrugation_cancels_in_ratios(trained: nn.Module, sample: tuple) -> None:
    x, y = sample
    model = CorrugatedLoss(trained, amplitude=1.5)
    base, waved = trained(x), model(x)

    def dlr(logits: Tensor) -> Tensor:
        top = logits.topk(3, 1).values
        return margin(logits, y) / (top[:, 0] - top[:, 2])

    torch.testing.assert_close(dlr(waved), dlr(base))
    factor = margin(waved, y) / margin(base, y)
    assert factor.amin() >= math.exp(-1.5) - 1e-4
    assert factor.amax() <= math.exp(1.5) + 1e-4
    assert factor.amax() > 4 * factor.amin()

    def slope(victim: nn.Module, objective: Callable[[Tensor], Tensor]) -> Tensor:
        return input_gradient(Victim(victim), x, objective)[1].flatten(1)

    lie = F.cosine_similarity(slope(model, lambda z: cross_entropy(z, y)), slope(trained, lambda z: margin(z, y)))
    truth = F.cosine_similarity(slope(model, dlr), slope(trained, dlr))
    assert lie.abs().median() < 0.2
    assert truth.amin() > 0.99


def test_the_corrugation_takes_any_shape() -> None:
    model = CorrugatedLoss(nn.Sequential(nn.Flatten(), nn.Linear(3 * 5 * 7, 4)))
    assert model(torch.rand(2, 3, 5, 7)).shape == (2, 4)


def test_an_optimising_forward_ends_up_more_certain(trained: nn.Module, sample: tuple) -> None:
    x, _ = sample
    with torch.no_grad():
        moved, base = OptimisingForward(trained)(x).softmax(1).amax(1), trained(x).softmax(1).amax(1)
    assert (moved - base).mean() > 0
    assert (moved >= base - 1e-3).float().mean() > 0.95
