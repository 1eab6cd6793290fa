from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linprog, minimize
from torch import Tensor

from defenses.fast_gradient import FastGradient
from defenses.gradient_regularization import GradientRegularization, dual_norm
from harness.attacks.fast_gradient import Gradient
from harness.attacks.unclipped import Unclipped
from harness.datasets.registry import DATASETS, Dataset
from harness.determinism import seed_everything
from harness.errors import UserError
from harness.identity import key
from harness.models.registry import build_model
from harness.models.stages import Stages
from harness.threat import Threat, dual_exponent
from harness.victims.victim import Victim

SHAPE = (1, 8, 8)
EXPONENTS = (1.0, 1.5, 2.0, 4.0, math.inf)


@pytest.fixture
def model() -> Stages:
    seed_everything(0)
    return build_model("mlp-12-9", SHAPE, 10).train()


@pytest.fixture
def batch(digits: Dataset) -> tuple[Tensor, Tensor]:
    _, (x, y) = digits.train_sample(20)
    return x, y


def gradient(model: Stages, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)[0].flatten(1)


def lengths(r: Tensor, p: float) -> Tensor:
    return torch.linalg.vector_norm(r.flatten(1), ord=p, dim=1)


# ---------------------------------------------------------------- the perturbation


@pytest.mark.parametrize("p", EXPONENTS)
def test_no_optimiser_finds_a_better_step(p: float) -> None:
    seed_everything(1)
    small = build_model("mlp-6", (1, 2, 3), 4).double()
    x, y = torch.rand(3, 1, 2, 3).double(), torch.tensor([0, 1, 3])
    sigma = 0.7
    step = GradientRegularization(p=p, sigma=sigma).perturbation(small, x, y).flatten(1)
    grad = gradient(small, x, y)
    torch.testing.assert_close(lengths(step, p), torch.full((3,), sigma).double())
    for g, mine in zip(grad.numpy(), (grad * step).sum(1).tolist(), strict=True):
        assert mine == pytest.approx(sigma * largest(g, p), rel=1e-5)


def largest(g: Any, p: float) -> float:
    """The maximum of <g, r> over the unit ball, by a linear programme or from several starts."""
    if math.isinf(p):
        return -float(linprog(-g, bounds=(-1, 1)).fun)
    if p == 1:  # r = a - b with a, b >= 0
        both = np.concatenate([g, -g])
        return -float(linprog(-both, A_ub=np.ones((1, len(both))), b_ub=[1.0], bounds=(0, None)).fun)
    starts = np.random.default_rng(2).standard_normal((4, len(g)))
    found = [
        minimize(lambda r: -(g @ r) / np.linalg.norm(r, ord=p), start, method="BFGS", options={"gtol": 1e-10})
        for start in starts
    ]
    return max(-float(one.fun) for one in found)


@pytest.mark.parametrize("p", EXPONENTS)
def test_the_linear_gain_is_the_dual_norm(p: float, model: Stages, batch: Any) -> None:
    x, y = batch
    step = GradientRegularization(p=p, sigma=0.5).perturbation(model, x, y).flatten(1)
    grad = gradient(model, x, y)
    torch.testing.assert_close((grad * step).sum(1), 0.5 * lengths(grad, dual_exponent(p)), rtol=1e-4, atol=1e-7)


def test_infinity_is_the_fast_gradient_sign_method(model: Stages, batch: Any) -> None:
    x, y = batch
    x_adv = x + GradientRegularization(p=math.inf, sigma=0.1).perturbation(model, x, y)
    expected = Unclipped(attack=Gradient(p=math.inf))(Victim(model), x, y, Threat("linf", 0.1))
    assert torch.equal(x_adv, expected)
    assert torch.equal(x_adv.clamp(0, 1), Gradient(p=math.inf)(Victim(model), x, y, Threat("linf", 0.1)))


def test_limits_of_the_family(model: Stages, batch: Any) -> None:
    x, y = batch
    grad = gradient(model, x, y)

    def step(p: float) -> Tensor:
        return GradientRegularization(p=p, sigma=1.0).perturbation(model, x, y).flatten(1)

    torch.testing.assert_close(step(2.0), grad / grad.norm(dim=1, keepdim=True))
    one = torch.zeros_like(grad).scatter(1, grad.abs().argmax(1, keepdim=True), 1.0) * grad.sign()
    torch.testing.assert_close(step(1.0), one)
    torch.testing.assert_close(step(1 + 1e-6), one, rtol=0, atol=1e-3)
    moved = grad.abs() > 1e-6
    torch.testing.assert_close(step(1e6)[moved], step(math.inf)[moved], rtol=0, atol=1e-4)


@pytest.mark.parametrize("p", EXPONENTS)
def test_a_pixel_that_no_weight_reads_stays(p: float, model: Stages, batch: Any) -> None:
    x, y = batch
    with torch.no_grad():
        model.stages["hidden1"][0].weight[:, :5] = 0  # type: ignore[index]
    step = GradientRegularization(p=p).perturbation(model, x, y).flatten(1)
    assert (step[:, :5] == 0).all()
    assert step[:, 5:].abs().sum() > 0


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("form", ["perturbed", "penalty"])
def test_a_flat_network_is_no_trouble(form: Any, p: float, model: Stages, batch: Any) -> None:
    x, y = batch
    with torch.no_grad():
        model.stages["hidden1"][0].weight.zero_()  # type: ignore[index]
    loss = GradientRegularization(p=p, form=form).loss(model, x, y)
    torch.testing.assert_close(loss.value, F.cross_entropy(model(x), y))
    loss.value.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


# ---------------------------------------------------------------- the objectives


def test_at_infinity_it_is_fast_gradient_training_without_clean_images(model: Stages, batch: Any) -> None:
    x, y = batch
    mine = GradientRegularization(p=math.inf, sigma=0.1).loss(model, x, y)
    theirs = FastGradient(norm="linf", eps=0.1, alpha=0.0).loss(model, x.clone(), y)
    torch.testing.assert_close(mine.value, theirs.value)


@pytest.mark.parametrize("p", EXPONENTS)
def test_for_short_steps_both_forms_are_one(p: float, model: Stages, batch: Any) -> None:
    x, y = batch
    model = model.double()
    values = {
        form: GradientRegularization(p=p, sigma=1e-4, form=form).loss(model, x.double(), y).value  # type: ignore[arg-type]
        for form in ("perturbed", "penalty")
    }
    plain = F.cross_entropy(model(x.double()), y)
    assert values["penalty"] > plain
    torch.testing.assert_close(values["perturbed"] - plain, values["penalty"] - plain, rtol=1e-2, atol=1e-9)


@pytest.mark.parametrize("p", EXPONENTS)
def test_the_penaltys_gradient_is_that_of_finite_differences(p: float) -> None:
    seed_everything(3)
    model = build_model("mlp-sigmoid-5", SHAPE, 4).double()
    x, y = torch.rand(6, *SHAPE).double(), torch.arange(6) % 4
    trainer = GradientRegularization(p=p, sigma=0.8, form="penalty")
    weights = list(model.parameters())
    found = torch.autograd.grad(trainer.loss(model, x, y).value, weights)
    for weight, slope in zip(weights, found, strict=True):
        direction = torch.randn_like(weight)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight += sign * 1e-6 * direction
            ends.append(float(trainer.loss(model, x, y).value.detach()))
            with torch.no_grad():
                weight -= sign * 1e-6 * direction
        expected = (ends[0] - ends[1]) / 2e-6
        assert float((slope * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("p", EXPONENTS)
def test_the_penalty_is_the_formulas(p: float, model: Stages, batch: Any) -> None:
    x, y = batch
    grad = gradient(model, x, y)
    torch.testing.assert_close(dual_norm(grad, p), lengths(grad, dual_exponent(p)), rtol=1e-4, atol=1e-8)
    loss = GradientRegularization(p=p, sigma=2.0, form="penalty").loss(model, x, y).value
    expected = F.cross_entropy(model(x), y) + 2.0 * lengths(grad, dual_exponent(p)).mean()
    torch.testing.assert_close(loss, expected)


def test_no_step_is_plain_training(model: Stages, batch: Any) -> None:
    x, y = batch
    for form in ("perturbed", "penalty"):
        loss = GradientRegularization(sigma=0.0, form=form).loss(model, x, y)  # type: ignore[arg-type]
        torch.testing.assert_close(loss.value, F.cross_entropy(model(x), y))


def test_the_loss_nearby_falls(digits: Dataset) -> None:
    _, (x, y) = digits.test_sample(200)

    def nearby(sigma: float) -> float:
        seed_everything(0)
        trained = GradientRegularization(sigma=sigma, epochs=10, lr=5e-3).fit("mlp-32", digits).model
        assert isinstance(trained, Stages)
        return float(GradientRegularization(sigma=0.5).loss(trained, x, y).value.detach())

    assert nearby(0.5) < 0.8 * nearby(0.0)


@pytest.mark.parametrize("bad", [{"p": 0.5}, {"p": math.nan}, {"sigma": -1.0}, {"sigma": math.inf}, {"form": "both"}])
def test_bad_fields_are_refused(bad: Any) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        GradientRegularization(**bad)


def test_the_declaration() -> None:
    info = DATASETS["digits"]
    assert GradientRegularization().label(info) == "gradient-regularization"
    assert GradientRegularization(p=math.inf, sigma=0.1).label(info) == "gradient-regularization(p=inf, sigma=0.1)"
    kinds = [GradientRegularization(), GradientRegularization(p=math.inf), GradientRegularization(form="penalty")]
    assert len({key(kind) for kind in kinds}) == 3
