from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from harness.schema.eps import TOLERANCE
from harness.threat import (
    EXPONENT,
    NORMS,
    Norm,
    Threat,
    dual_exponent,
    magnitude,
    per_sample,
    project_ball,
    root_mean_square,
    steepest,
)

CONVEX: tuple[Norm, ...] = ("linf", "l2", "l1")
RADII = {"linf": 0.3, "l2": 0.8, "l1": 1.5, "l0": 3.0}
EXPONENTS = (1.0, 1.5, 2.0, 3.0, math.inf)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", NORMS)
def test_magnitude_is_numpys_norm(norm: Norm) -> None:
    delta = normal(7, 2, 3, 3)
    delta[:, 0, 0] = 0
    expected = [np.linalg.norm(row, ord=EXPONENT[norm]) for row in delta.flatten(1).numpy()]
    np.testing.assert_allclose(magnitude(delta, norm).numpy(), expected, rtol=1e-12)
    assert magnitude(delta.float(), norm).dtype == torch.float32


@pytest.mark.parametrize("norm", NORMS)
def test_magnitude_of_no_samples_and_of_zero(norm: Norm) -> None:
    assert magnitude(torch.zeros(0, 1, 2, 2), norm).shape == (0,)
    assert magnitude(torch.zeros(3, 1, 2, 2), norm).tolist() == [0, 0, 0]


def test_root_mean_square_is_the_l2_norm_per_pixel() -> None:
    delta = normal(4, 1, 5, 5)
    np.testing.assert_allclose(root_mean_square(delta), (delta.flatten(1) ** 2).mean(1).sqrt(), rtol=1e-12)
    assert root_mean_square(torch.full((1, 3, 4, 4), 0.1)).item() == pytest.approx(0.1)


def test_per_sample_broadcasts() -> None:
    assert per_sample(torch.arange(3), torch.zeros(3, 1, 4, 4)).shape == (3, 1, 1, 1)


@pytest.mark.parametrize("eps", [-1e-9, -1, math.nan, math.inf])
def test_a_budget_is_finite_and_not_negative(eps: float) -> None:
    with pytest.raises(ValueError, match="eps must be a finite number >= 0"):
        Threat("l2", eps)


def test_an_unknown_norm_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="choose from linf, l2, l1, l0"):
        Threat("l3")  # type: ignore[arg-type]


def test_text() -> None:
    assert (str(Threat("l2", 0.5)), str(Threat("linf"))) == ("l2 0.5", "linf")


@pytest.mark.parametrize("norm", NORMS)
def test_distances_are_measured_in_float64(norm: Norm) -> None:
    x = torch.full((1, 1, 1, 2), 0.5)
    x_adv = x + torch.tensor([0.1, 0.2])
    exact = np.array([float(a) - 0.5 for a in x_adv.flatten()])
    distance = Threat(norm).distance(x, x_adv)
    assert distance.dtype == torch.float64
    assert distance.item() == pytest.approx(np.linalg.norm(exact, ord=EXPONENT[norm]), rel=1e-15)


@pytest.mark.parametrize("norm", CONVEX)
def test_the_budget_has_the_tolerance_and_no_more(norm: Norm) -> None:
    x, eps = torch.zeros(1, 1, 1, 1, dtype=torch.float64), 0.25
    inside, outside = x + eps * (1 + 0.9 * TOLERANCE), x + eps * (1 + 1.1 * TOLERANCE)
    assert Threat(norm, eps).within(x, torch.cat([inside])).item()
    assert not Threat(norm, eps).within(x, outside).item()
    assert Threat(norm).within(x, outside).item()


@pytest.mark.parametrize("eps", [0.3, 1e-3, 1e-4, 1e-5, 1e-6])
def test_an_eps_in_float32_is_within_itself_however_small(eps: float) -> None:
    x = torch.rand(2, 1, 300, 300, generator=torch.Generator().manual_seed(0))
    x[1] = 0.99
    threat = Threat("linf", eps)
    assert threat.within(x, (x + eps).clamp(max=1)).all()
    assert threat.within(x, x + (x + 1.2 * eps - x).clamp(-eps, eps)).all()
    assert not threat.within(x, x + 1.1 * eps + 1.2e-7).any()


def test_a_budget_of_components_is_a_whole_number() -> None:
    x = torch.zeros(3, 1, 2, 2)
    x_adv = x.clone()
    x_adv[0, 0, 0, 0], x_adv[1, 0, 0], x_adv[2, 0] = 1, 1, 1  # one, two, four components
    assert Threat("l0", 2).within(x, x_adv).tolist() == [True, True, False]
    assert Threat("l0", 1.9).within(x, x_adv).tolist() == [True, False, False]


def test_nan_is_never_within() -> None:
    x = torch.zeros(1, 1, 2, 2)
    assert not any(Threat(norm, 1).within(x, x + torch.nan).item() for norm in ("linf", "l2", "l1"))


@pytest.mark.parametrize("norm", CONVEX)
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_the_ball_projection_is_the_nearest_point(norm: Norm, scale: float) -> None:
    """p is the projection of z onto a convex set iff no point c of it has <z - p, c - p> > 0. The largest <z - p, c>
    over a norm ball is eps times the dual norm of z - p, so this is a proof for each sample."""
    z, eps = scale * normal(200, 1, 3, 3), RADII[norm]
    p = project_ball(z, norm, eps)
    assert (magnitude(p, norm) <= eps * (1 + 1e-12)).all()
    residual = (z - p).flatten(1)
    support = eps * torch.linalg.vector_norm(residual, ord=dual_exponent(EXPONENT[norm]), dim=1)
    assert (support - (residual * p.flatten(1)).sum(1) <= 1e-9 * scale).all()


@pytest.mark.parametrize("eps", [0, 1, 2, 2.9, 6, 100])
def test_the_l0_projection_is_the_best_of_all_supports(eps: float) -> None:
    z = normal(20, 1, 2, 3)
    p = project_ball(z, "l0", eps).flatten(1)
    kept = min(int(eps), 6)
    assert ((p != 0).sum(1) <= kept).all()
    for row, found in zip(z.flatten(1), p, strict=True):
        best = min(
            float(row.index_fill(0, torch.tensor(support, dtype=torch.int64), 0).norm())
            for support in itertools.combinations(range(6), kept)
        )
        assert float((row - found).norm()) == pytest.approx(best)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_is_feasible_and_idempotent(norm: Norm) -> None:
    x, threat = uniform(100, 1, 4, 4).round(decimals=1), Threat(norm, RADII[norm])
    x_adv = threat.project(x, x + normal(100, 1, 4, 4, dtype=torch.float32))
    assert x_adv.dtype == torch.float32
    assert threat.within(x, x_adv).all()
    assert (x_adv >= 0).all()
    assert (x_adv <= 1).all()
    torch.testing.assert_close(threat.project(x, x_adv), x_adv, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_leaves_what_is_inside(norm: Norm) -> None:
    x = 0.25 + 0.5 * uniform(20, 1, 4, 4)
    x_adv = x.clone()
    x_adv[:, :, 0, :2] += 0.01
    torch.testing.assert_close(Threat(norm, RADII[norm]).project(x, x_adv), x_adv, rtol=0, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_a_budget_of_nothing_gives_the_image_back(norm: Norm) -> None:
    x = uniform(5, 1, 3, 3)
    assert torch.equal(Threat(norm, 0).project(x, 1 - x), x)


def test_no_budget_projects_onto_the_box_alone() -> None:
    x = torch.full((1, 1, 1, 3), 0.5)
    x_adv = torch.tensor([[[[-1.0, 0.7, 3.0]]]])
    assert Threat("l2").project(x, x_adv).flatten().tolist() == pytest.approx([0, 0.7, 1])


@pytest.mark.parametrize("norm", CONVEX)
def test_projection_keeps_the_budget_on_large_images(norm: Norm) -> None:
    x = uniform(2, 3, 224, 224)
    for eps in (1e-3, 1.0, 60.0):
        threat = Threat(norm, eps)
        assert threat.within(x, threat.project(x, x + normal(2, 3, 224, 224, dtype=torch.float32))).all()


def test_dual_exponents() -> None:
    assert [dual_exponent(p) for p in (1, 2, math.inf, 3, 1.5)] == [math.inf, 2, 1, 1.5, pytest.approx(3)]


@pytest.mark.parametrize("p", [0, 0.999, -1, math.nan])
def test_exponents_below_one_are_refused(p: float) -> None:
    with pytest.raises(ValueError, match="p must be in"):
        steepest(torch.ones(1, 1, 1, 1), p)


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steepest_attains_hoelders_bound(p: float, scale: float, dtype: torch.dtype) -> None:
    """<g, r> <= ||g||_q ||r||_p for every r: a direction of unit p-norm that attains it is the best there is."""
    unit = normal(50, 1, 3, 4, dtype=dtype)
    r = steepest(unit * scale, p)
    assert r.dtype == dtype
    assert r.isfinite().all()
    tight = {"rtol": 1e-5, "atol": 0.0} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 0.0}
    length = torch.linalg.vector_norm(r.flatten(1), ord=p, dim=1)
    torch.testing.assert_close(length, torch.ones_like(length), **tight)
    bound = torch.linalg.vector_norm(unit.flatten(1), ord=dual_exponent(p), dim=1)
    torch.testing.assert_close((unit * r).flatten(1).sum(1), bound, **tight)


@pytest.mark.parametrize("p", [1.5, 2.0, 3.0])
def test_steepest_is_what_an_optimiser_finds(p: float) -> None:
    grad = normal(3, 1, 1, 4, seed=3)
    for row, direction in zip(grad.flatten(1).numpy(), steepest(grad, p).flatten(1).numpy(), strict=True):
        found = minimize(
            lambda r, g=row: -g @ r,
            np.full(4, 0.1),
            constraints={"type": "ineq", "fun": lambda r: 1 - (np.abs(r) ** p).sum()},
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 500},
        )
        np.testing.assert_allclose(direction, found.x, atol=1e-4)


@pytest.mark.parametrize("p", EXPONENTS)
def test_a_zero_gradient_has_no_direction(p: float) -> None:
    grad = torch.zeros(2, 1, 2, 2)
    grad[1, 0, 0, 0] = -3
    r = steepest(grad, p)
    assert r[0].abs().sum() == 0
    assert r[1].flatten().tolist() == [-1, 0, 0, 0]


def test_components_tied_for_the_largest_share_evenly() -> None:
    r = steepest(torch.tensor([[2.0, -2.0, 1.0, 0.0], [5.0, 4.9, 0.0, 0.0]]).view(2, 1, 2, 2), 1)
    assert r.flatten(1).tolist() == [[0.5, -0.5, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("p", [1.0001, 1.01, 50, 1000])
def test_steepest_near_its_ends(p: float) -> None:
    grad = normal(20, 1, 3, 3, dtype=torch.float32)
    length = torch.linalg.vector_norm(steepest(grad, p).flatten(1).double(), ord=p, dim=1)
    torch.testing.assert_close(length, torch.ones_like(length), rtol=1e-5, atol=0)
