"""The least value of a linear function over ball and box, against a general solver."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from harness.certify.balls import Ball
from harness.threat import Norm, Threat


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("eps", [0.05, 0.4, 1.3, 9.0])
def test_least_is_the_optimum(norm: Norm, eps: float) -> None:
    torch.manual_seed(0)
    x = torch.rand(3, 7)
    x[0, :2] = torch.tensor([0.0, 1.0])
    ball = Ball.of(Threat(norm, eps), x)
    slopes = torch.randn(3, 2, 7, dtype=torch.float64)
    slopes[:, 0, 3] = 0
    found = ball.least(slopes)
    shared = ball.least(slopes[:1])
    for image in range(3):
        centre = x[image].double().numpy()
        for row in range(2):
            slope = slopes[image, row].numpy()
            assert found[image, row] == pytest.approx(optimum(slope, centre, norm, ball.radius), abs=1e-6)
            same = optimum(slopes[0, row].numpy(), centre, norm, ball.radius)
            assert shared[image, row] == pytest.approx(same, abs=1e-6)


def optimum(slope: np.ndarray, x: np.ndarray, norm: Norm, radius: float) -> float:
    n = len(x)
    if norm == "linf":
        return float(np.minimum(slope * (x - radius).clip(0), slope * (x + radius).clip(None, 1)).sum())
    if norm == "l1":  # up and down apart
        rules = np.ones((1, 2 * n))
        reach = [(0, room) for room in np.concatenate((1 - x, x))]
        return float(slope @ x + linprog(np.concatenate((slope, -slope)), rules, [radius], bounds=reach).fun)
    rules = {"type": "ineq", "fun": lambda z: radius**2 - ((z - x) ** 2).sum(), "jac": lambda z: -2 * (z - x)}
    found = minimize(
        lambda z: slope @ z, x, jac=lambda z: slope, bounds=[(0, 1)] * n, constraints=[rules], options={"ftol": 1e-12}
    )
    return float(found.fun)


def test_zero_slopes_and_tiny_ones() -> None:
    for norm in ("linf", "l2", "l1"):
        ball = Ball.of(Threat(norm, 0.1), torch.tensor([[0.0, 1.0, 0.5]]))
        assert ball.least(torch.zeros(1, 1, 3, dtype=torch.float64)).abs().max() < 1e-12
        tiny = ball.least(torch.full((1, 1, 3), 1e-200, dtype=torch.float64))
        assert tiny.isfinite().all()
        assert tiny.abs().max() < 1e-100
