"""The probe: every fault shows in its facts, none in an honest network's; the remedy is found by itself."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad as imported_before

from defenses.fast_gradient import FastGradient
from defenses.gaussian_noise import GaussianNoise
from defenses.pgd import Pgd
from harness.attacks.base import Attack
from harness.datasets.registry import Dataset
from harness.determinism import seed_everything
from harness.errors import UserError
from harness.selftest.linear_victim import LinearVictim
from harness.selftest.masked_gradients import BROKEN, WRONG_GRADIENTS, RandomInput, ScaledLogits
from harness.threat import Threat
from harness.trust import measurements
from harness.trust.measurements import GradientDiagnostics, backward_calls
from harness.trust.probe import DRAWS, FEW, GAP, diagnose, gradient_fault, probe, stochastic, wavers
from harness.victims.adaptation import Remedy
from harness.victims.victim import PassCount, Victim, VictimError
from tests.helpers.zoo.masked import SineBumps


def measured(*arguments: Any, **named: Any) -> dict[str, Any]:
    return probe(*arguments, **named).model_dump()


THREAT = Threat("linf", 0.1)
HONEST = ("plain", "gaussian-noise", "fast-gradient", "pgd")
Facts = dict[str, Any]


@pytest.fixture(scope="module")
def sample(digits: Dataset) -> tuple[Tensor, Tensor]:
    x, y = digits.test_sample(60)[1]
    return x, y


@pytest.fixture(scope="module")
def honest(digits: Dataset, trained_once: nn.Module) -> dict[str, nn.Module]:
    models = {"plain": trained_once}
    for name, trainer in (("gaussian-noise", GaussianNoise), ("fast-gradient", FastGradient), ("pgd", Pgd)):
        seed_everything(0)
        models[name] = trainer(epochs=8, lr=5e-3).fit("mlp-32", digits).model
    return models


@pytest.fixture(scope="module")
def facts_of(honest: dict[str, nn.Module], sample: tuple[Tensor, Tensor]) -> Callable[[str], Facts]:
    """Facts of an honest network, or of a broken one around the plain network, with its remedy."""

    @cache
    def measure(name: str) -> Facts:
        broken = BROKEN.get(name)
        model = broken.wrap(honest["plain"]) if broken else honest[name]
        return measured(model, *sample, THREAT, classes=10, remedy=broken.remedy if broken else None)

    return measure


def gain(seen: Facts) -> float:
    """What dividing the logits gains the plain attack."""
    value: float = seen["scale"]["1"] - seen["scale"]["0.05"]
    return value


def healthy(seen: Facts) -> bool:
    """As an honest network looks, with room for a few images."""
    return (
        not (seen["probabilities"] or seen["detached"] or seen["inner_optimisation"])
        and max(seen["zero_gradient"], seen["small_gradient"], seen["non_finite_gradient"]) <= 0.01
        and seen["uphill"] >= 0.95
        and gain(seen) <= 0.03
        and seen["unbounded"] <= 0.01
        and seen["losses"]["ce"] <= seen["losses"]["dlr"] + 0.03
        and seen["steps"]["100"] <= seen["one_step"] + 0.03
        and seen["steps"]["100"] - seen["steps"]["200"] <= 0.05
        and seen["restarts"]["2"] - seen["restarts"]["5"] <= 0.05
        and (seen["rising"] is None or seen["rising"] < 0.02)
        and not seen["errors"]
    )


SHOWS: dict[str, Callable[[Facts], bool]] = {
    "logit-scale": lambda facts: gain(facts["seen"]["raw"]) > 0.2,
    "outputs-are-probabilities": lambda facts: facts["seen"]["raw"]["probabilities"],
    "detached-gradients": lambda facts: facts["seen"]["raw"]["detached"],
    "vanishing-gradients": lambda facts: facts["seen"]["raw"]["small_gradient"] > 0.3,
    "misleading-gradients": lambda facts: facts["seen"]["raw"]["uphill"] < 0.6,
    "optimisation-in-forward": lambda facts: facts["seen"]["raw"]["inner_optimisation"],
    "stochastic-predictions": lambda facts: facts["stochastic"]["labels"] > 0,
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_network_is_healthy(name: str, facts_of: Callable[[str], Facts]) -> None:
    facts = facts_of(name)
    assert healthy(facts["seen"]["raw"]), facts
    assert facts["seen"]["attacked"] == facts["seen"]["raw"]
    assert facts["stochastic"] == {"draws": 8, "labels": 0, "logits": 0}
    assert facts["remedy"] == ""
    assert 50 <= facts["n"] <= 60
    assert (facts["norm"], facts["eps"]) == ("linf", 0.1)


@pytest.mark.parametrize("name", BROKEN)
def test_a_fault_shows(name: str, facts_of: Callable[[str], Facts]) -> None:
    shows = SHOWS[BROKEN[name].fault]
    assert shows(facts_of(name))
    assert not any(shows(facts_of(honest)) for honest in HONEST)


def test_a_fault_is_not_named_as_another(facts_of: Callable[[str], Facts]) -> None:
    """A fault that shows as another would send people the wrong way."""
    found = {
        name: {fault for fault, shows in SHOWS.items() if name != "zero-gradient" and shows(facts_of(name))}
        for name in BROKEN
    }
    assert found["scaled-logits"] == {"logit-scale"}
    assert found["probabilities"] == {"outputs-are-probabilities"}
    assert found["corrugated-loss"] == {"misleading-gradients"}
    assert found["optimising-forward"] == {"optimisation-in-forward"}
    assert found["random-input"] == {"stochastic-predictions"}


def test_saturation_is_told_from_dead_units(facts_of: Callable[[str], Facts]) -> None:
    scaled, dead = (facts_of(name)["seen"]["raw"] for name in ("scaled-logits", "dead-units"))
    assert scaled["zero_gradient"] > 0.5
    assert scaled["small_gradient"] == 0
    assert dead["small_gradient"] == dead["zero_gradient"] > 0.5


def test_losses_part_where_the_surface_lies(facts_of: Callable[[str], Facts]) -> None:
    losses = facts_of("corrugated-loss")["seen"]["raw"]["losses"]
    assert losses["ce"] > losses["dlr"] + 0.2
    assert losses["dlr"] == pytest.approx(facts_of("plain")["seen"]["raw"]["losses"]["dlr"], abs=0.05)


@pytest.mark.parametrize("name", ["rounded-inputs", "dead-units"])
def test_without_a_slope_no_budget_is_enough(name: str, facts_of: Callable[[str], Facts]) -> None:
    raw = facts_of(name)["seen"]["raw"]
    assert raw["unbounded"] == raw["small_gradient"]


@pytest.mark.parametrize("name", ["scaled-logits", "probabilities", "rounded-inputs", "zero-gradient", "random-input"])
def test_the_remedy_heals_what_attacks_see(name: str, facts_of: Callable[[str], Facts]) -> None:
    facts, plain = facts_of(name), facts_of("plain")["seen"]["raw"]
    assert facts["remedy"] == str(BROKEN[name].remedy)
    assert healthy(facts["seen"]["attacked"]), facts
    assert facts["seen"]["attacked"]["steps"]["200"] <= plain["steps"]["200"] + 0.05


def test_what_needs_a_gradient_is_null_without_one(facts_of: Callable[[str], Facts]) -> None:
    facts = facts_of("zero-gradient")["seen"]["raw"]
    needs = {
        name for name in facts if name not in ("probabilities", "detached", "inner_optimisation", "jumps", "errors")
    }
    assert {name for name in needs if facts[name] is not None} == set()
    assert len(facts["errors"]) == 1
    assert facts["errors"][0].startswith("gradient: RuntimeError: ")


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_linear_victim_is_measured_exactly(norm: str) -> None:
    victim = LinearVictim.random(classes=2, shape=(1, 6, 6))
    x, y = victim.images(100, spread=0.02)
    distance = victim.distance(x, y, norm)  # type: ignore[arg-type]
    eps = float(distance.quantile(0.4))
    clear = (distance / eps - 1).abs() > 1e-3
    facts = measured(victim.model, x[clear], y[clear], Threat(norm, eps), classes=2)["seen"]["raw"]  # type: ignore[arg-type]
    left = float((distance[clear] > eps).double().mean())
    assert healthy(facts)
    assert facts["uphill"] == 1
    assert facts["unbounded"] == 0
    assert facts["scale"] == {"0.05": left, "1": left, "20": left}
    assert facts["one_step"] == left
    assert facts["steps"] == {"25": left, "50": left, "100": left, "200": left}
    assert facts["restarts"] == {"1": left, "2": left, "5": left}
    assert facts["losses"] == {"ce": left, "dlr": left}


def test_facts_are_plain_and_repeat(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    x, y = sample[0][:20], sample[1][:20]
    model = RandomInput(copy.deepcopy(trained)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def look() -> Facts:
        facts = measured(model, x, y, THREAT, classes=10, remedy=Remedy(draws=2), seed=7)
        return {name: value for name, value in facts.items() if name != "seconds"}

    seed_everything(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()
    first = look()
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.random.get_rng_state(), states[2])
    seed_everything(2)
    assert look() == first
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert first["forwards"] > first["backwards"] > 0


def test_misclassified_images_are_left_out(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    x, y = sample[0][:12], trained(sample[0][:12]).argmax(1)
    wrong = (y + 1) % 10
    some = measured(trained, x, torch.where(torch.arange(12) < 5, y, wrong), THREAT, classes=10)
    same = measured(trained, x[:5], y[:5], THREAT, classes=10)
    assert some["n"] == same["n"] == 5
    assert some["seen"] == same["seen"]
    none = measured(trained, x, wrong, THREAT, classes=10)
    assert none["n"] == 0
    assert none["seen"]["raw"]["errors"] == ()
    assert none["seen"]["raw"]["zero_gradient"] is none["seen"]["raw"]["steps"] is none["seen"]["raw"]["uphill"] is None
    assert diagnose(trained, x, wrong, classes=10) == Remedy()


@pytest.mark.parametrize("threat", [Threat("l0", 5), Threat("linf"), Threat("l2", 0.0)])
def test_a_probe_needs_a_ball(threat: Threat, trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UserError, match="eps above 0 in linf, l2 or l1"):
        measured(trained, *sample, threat, classes=10)


class Fussy(nn.Module):
    """Raises under circumstances."""

    def __init__(self, base: nn.Module, when: str) -> None:
        super().__init__()
        self.base, self.when = base, when

    def forward(self, x: Tensor) -> Tensor:
        if self.when == "always" or (self.when == "gradients" and torch.is_grad_enabled()):
            raise TypeError("no luck\nwith this one")
        logits: Tensor = self.base(x)
        return logits * torch.nan if self.when == "nan" else logits


def test_a_model_that_raises_with_gradients_is_detached(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    facts = measured(Fussy(trained, "gradients"), *sample, THREAT, classes=10)["seen"]["raw"]
    assert facts["detached"]
    assert facts["losses"] is None
    assert facts["errors"] == ("gradient: TypeError: no luck", "forward: TypeError: no luck")
    assert diagnose(Fussy(trained, "gradients"), *sample, classes=10) == Remedy()


@pytest.mark.parametrize(("when", "error"), [("always", TypeError), ("nan", VictimError)])
def test_a_model_that_answers_nothing_is_refused(
    when: str, error: type[Exception], trained: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    before = torch.random.get_rng_state()
    for look in (lambda m: measured(m, *sample, THREAT, classes=10), lambda m: diagnose(m, *sample, classes=10)):
        with pytest.raises(error):
            look(Fussy(trained, when))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_how_much_outputs_vary_is_measured(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    x = sample[0]
    small, large = (stochastic(Victim(RandomInput(trained, sigma)), x, 0) for sigma in (1e-3, 0.5))
    assert small.labels <= 0.02 < 0.5 < large.labels
    assert 0 < small.logits < 0.02 < 0.2 < large.logits
    assert wavers(small), "labels stay here, but will change near a boundary"
    assert not wavers(stochastic(Victim(trained), x, 0))


def by_grad(x: Tensor) -> None:
    torch.autograd.grad((x**2).sum(), x)


def by_imported_grad(x: Tensor) -> None:
    imported_before((x**2).sum(), x)


def by_backward(x: Tensor) -> None:
    (x**2).sum().backward()


def by_optimizer(x: Tensor) -> None:
    optimizer = torch.optim.SGD([x], lr=0.1)
    torch.autograd.backward((x**2).sum())
    optimizer.step()


@pytest.mark.parametrize("way", [by_grad, by_imported_grad, by_backward, by_optimizer])
def test_autograd_is_noticed_however_it_is_called(way: Callable[[Tensor], None]) -> None:
    x = torch.ones(3, requires_grad=True)
    before = torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward
    with backward_calls() as calls:
        assert (x * 2).sum() == 6
        assert calls == []
        way(x)
    assert calls
    assert before == (torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward)
    with pytest.raises(KeyError), backward_calls():
        raise KeyError
    assert before == (torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward)


@dataclass(frozen=True, kw_only=True)
class Walk(Attack):
    """Goes the same way in every step, or no further after some."""

    name: ClassVar[str] = "walk"

    loss: str = "ce"
    steps: int = 100
    stop: ClassVar[int] = 100

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        assert isinstance(threat.eps, float)
        for number in range(self.steps + 1):
            x_adv = x + threat.eps * min(number, self.stop) / self.stop
            victim(x_adv)
        return x_adv


@pytest.mark.parametrize(("stop", "late"), [(100, 0.1), (95, 5 / 95), (50, 0.0)])
def test_a_loss_that_still_rises_is_seen(stop: int, late: float, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0] * 4, [1.0] * 4]))
        layer.bias.copy_(torch.tensor([9.0, 0.0]))
    victim, x, y = Victim(nn.Sequential(nn.Flatten(), layer)), torch.full((3, 1, 2, 2), 0.2), torch.tensor([0, 0, 0])
    monkeypatch.setattr(measurements, "APGD", Walk)
    monkeypatch.setattr(Walk, "stop", stop)
    rising = GradientDiagnostics(victim, victim, x, y, Threat("linf", 0.5)).rising(torch.tensor([True, False, True]))
    assert rising == pytest.approx(late, abs=1e-4)


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_network_needs_no_remedy(
    name: str, honest: dict[str, nn.Module], sample: tuple[Tensor, Tensor]
) -> None:
    spent = PassCount()
    assert diagnose(honest[name], *sample, classes=10) == Remedy()
    assert gradient_fault(honest[name], *sample, Remedy(), classes=10, spent=spent) == ("sound", "")
    assert spent.forwards + spent.backwards <= 25 * FEW


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("zero-gradient", "no gradient reaches the images (RuntimeError: element 0 of tensors does not require grad"),
        ("rounded-inputs", "the gradient is zero on 1"),
        ("dead-units", "the gradient is zero on"),
        ("optimising-forward", "the gradient is not that of the outputs on 1"),
        ("flipped", "the gradient is not that of the outputs on 1"),
        ("drowned", "the gradient is not that of the outputs on 1"),
        ("sine-bumps", "the gradient is not that of the outputs on 1"),  # but over the shortest steps
        ("random-input", ""),
        ("scaled-logits", ""),
    ],
)
def test_gradients_that_are_missing_or_wrong_are_told(
    name: str, fault: str, trained: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    wraps = {key: broken.wrap for key, broken in BROKEN.items()} | WRONG_GRADIENTS | {"sine-bumps": SineBumps}
    remedy = BROKEN[name].remedy if name in BROKEN else None
    right = trained(sample[0]).argmax(1) == sample[1]
    x, y = sample[0][right], sample[1][right]
    kind, found = gradient_fault(wraps[name](trained), x, y, Remedy(), classes=10)
    assert (kind == "sound") == (fault == "")
    assert found.startswith(fault)
    assert bool(found) == bool(fault)
    if remedy is not None:  # a stand-in's gradient need not be the model's, and draws are no fault
        assert gradient_fault(wraps[name](trained), x, y, remedy, classes=10) == ("sound", "")
    assert gradient_fault(wraps[name](trained), x[:0], y[:0], Remedy(), classes=10) == ("sound", "")


@pytest.mark.parametrize(
    ("raises", "kind"),
    [
        (lambda n: True, "missing"),
        (lambda n: n <= FEW, "wrong"),
        (lambda n: n > 1, "wrong"),
        (lambda n: n > 2, "wrong"),
    ],
)
def test_gradients_that_some_batches_have_are_not_missing(
    raises: Any, kind: str, trained: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            if x.requires_grad:
                x.register_hook(self.refuse)
            out: Tensor = trained(x)
            return out

        def refuse(self, grad: Tensor) -> None:
            if raises(len(grad)):
                raise RuntimeError("not so many")

    found, fault = gradient_fault(Picky(), *sample, Remedy(), classes=10)
    assert found == kind
    assert "not so many" in fault


@pytest.mark.parametrize("name", BROKEN)
def test_the_remedy_is_found(name: str, trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    stand_ins = BROKEN[name].remedy.stand_ins if BROKEN[name].remedy else ()
    found = diagnose(BROKEN[name].wrap(trained), *sample, classes=10, stand_ins=stand_ins)
    if name != "scaled-logits":
        assert found == (BROKEN[name].remedy or Remedy())
        return
    top = 100 * trained(sample[0]).detach().topk(2, 1).values
    assert found == Remedy(temperature=found.temperature)
    assert found.temperature == float(f"{found.temperature:.0e}")
    assert found.temperature == pytest.approx(float((top[:, 0] - top[:, 1]).median()) / GAP, rel=0.3)


def test_remedies_add_up(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    found = diagnose(RandomInput(ScaledLogits(trained, 1000)), *sample, classes=10)
    assert found.draws == DRAWS
    assert found.temperature > 1000 / GAP
    assert not found.probabilities


def test_a_stand_in_that_fits_nothing_is_refused(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UserError, match="unknown part of the model"):
        diagnose(trained, *sample, classes=10, stand_ins=(("front", "identity"),))
    with pytest.raises(UserError, match="unknown part of the model"):
        measured(trained, *sample, THREAT, classes=10, remedy=Remedy(stand_ins=(("front", "identity"),)))


class FrameWatcher(nn.Module):
    """Answers by the sign of small weights, and by brightness, which eps cannot change, once the black frame is lit."""

    def __init__(self, frame: float = 0.01) -> None:
        super().__init__()
        weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
        self.inside = torch.zeros(8, 8)
        self.inside[1:-1, 1:-1] = 1
        self.weight = weight * self.inside + frame * weight * (1 - self.inside)

    def images(self, n: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(n) % 2
        side = (2 * y - 1).view(-1, 1, 1, 1)
        return (0.5 + side * (0.2 + 0.03 * self.weight.sign())) * self.inside, y

    def forward(self, x: Tensor) -> Tensor:
        weak = ((x - 0.5) * self.weight * self.inside + x * self.weight * (1 - self.inside)).sum((1, 2, 3))
        weak = weak - (x - 0.5).sign().mul(0.2 * self.weight * self.inside).sum((1, 2, 3))
        bright = 10 * ((x * self.inside).sum((1, 2, 3)) / 36 - 0.5)
        light = (x * (1 - self.inside)).sum((1, 2, 3)) / 28
        lit = ((light - 5e-4) / 5e-4).clamp(0, 1)
        score = (1 - lit) * weak + lit * bright * (1 - light)  # steps are drawn to the frame, and stay there
        return torch.stack([-score, score], 1)


def test_steps_on_part_of_the_values_break_what_watches_the_others() -> None:
    model = FrameWatcher()
    seen = measured(model, *model.images(40), THREAT, classes=2)["seen"]["attacked"]
    assert seen["losses"] == {"ce": 1.0, "dlr": 1.0}
    assert seen["parts"] == {"1": 1.0, "0.5": 0.0, "0.25": 0.0, "differing": 0.0}


@pytest.mark.parametrize("threat", [THREAT, Threat("l2", 0.8)], ids=str)
def test_steps_where_images_differ_break_what_has_its_largest_gradients_where_it_watches(threat: Threat) -> None:
    model = FrameWatcher(frame=100.0)
    seen = measured(model, *model.images(40), threat, classes=2)["seen"]["attacked"]
    assert seen["losses"] == {"ce": 1.0, "dlr": 1.0}
    assert seen["parts"] == {"1": 1.0, "0.5": 1.0, "0.25": 1.0, "differing": 0.0}


def test_steps_on_part_of_the_values_take_nothing_from_honest_models(facts_of: Callable[[str], Facts]) -> None:
    for name in HONEST:
        left = facts_of(name)["seen"]["attacked"]["parts"]
        assert left["1"] - left["differing"] < 0.02, name


def test_in_l2_too_honest_models_lose_nothing_to_steps_on_part_of_the_values(
    honest: dict[str, nn.Module], sample: tuple[Tensor, Tensor]
) -> None:
    for name, model in honest.items():
        left = measured(model, *sample, Threat("l2", 0.5), classes=10)["seen"]["attacked"]["parts"]
        assert left["1"] - left["differing"] < 0.02, name


@pytest.mark.parametrize("images", [torch.rand(20, 1, 8, 8), torch.rand(1, 1, 8, 8).repeat(20, 1, 1, 1)])
def test_where_images_differ_everywhere_or_nowhere_nothing_is_told_apart(
    images: Tensor, honest: dict[str, nn.Module]
) -> None:
    labels = honest["plain"](images).argmax(1)
    seen = measured(honest["plain"], images, labels, THREAT, classes=10)["seen"]["attacked"]
    assert set(seen["parts"]) == {"1", "0.5", "0.25"}
