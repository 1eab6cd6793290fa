"""What the suite quick leaves of small networks, against the exact optimum."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

from defenses.pgd import Pgd
from defenses.standard import Standard
from harness.attacks.alpha import Alpha
from harness.attacks.base import Attack
from harness.attacks.lbfgs import LBFGS
from harness.datasets.registry import Dataset
from harness.determinism import seed_everything
from harness.judging.referee import judge
from harness.threat import Norm, Threat
from harness.victims.victim import Victim
from suites import suites

QUICK: Final = suites()["quick"]
IMAGES: Final = 200
SURE: Final = 1e-6
"""Margin by which a class has to win: less is lost in the rounding of float32."""


def breakable(model: nn.Module, x: Tensor, y: int, eps: float) -> bool:
    """Whether any image of the ball and the box is misclassified, for a network of one hidden layer of ReLUs.

    For every wrong class a mixed-integer program: the pixels, the units' values, and whether each unit is on. It is
    asked for any point where that class wins, which is faster by an order than for the best one.
    """
    first, second = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
    weight, bias, out, shift = (
        part.detach().double().numpy() for part in (first.weight, first.bias, second.weight, second.bias)
    )
    image = x.flatten().double().numpy()
    low, high = (image - eps).clip(0, 1), (image + eps).clip(0, 1)
    middle, reach = weight @ (low + high) / 2 + bias, np.abs(weight) @ (high - low) / 2
    least, most = middle - reach, (middle + reach).clip(0)
    pixels, units = len(image), len(bias)
    unit, none, pixel = np.eye(units), np.zeros((units, units)), np.zeros((units, pixels))
    rules = np.block([[-weight, unit, none], [-weight, unit, -np.diag(least)], [pixel, unit, -np.diag(most)]])
    below = np.concatenate((bias, np.full(2 * units, -np.inf)))
    above = np.concatenate((np.full(units, np.inf), bias - least, np.zeros(units)))
    bounds = Bounds(
        np.concatenate((low, np.zeros(units), least >= 0)),
        np.concatenate((high, most, most > 0)),
    )
    whole = np.concatenate((np.zeros(pixels + units), np.ones(units)))
    for rival in set(range(len(shift))) - {y}:
        wins = np.concatenate((np.zeros(pixels), out[rival] - out[y], np.zeros(units)))
        lead = shift[y] - shift[rival] + SURE
        limits = LinearConstraint(np.vstack((rules, wins)), np.append(below, lead), np.append(above, np.inf))
        found = milp(np.zeros_like(wins), constraints=limits, integrality=whole, bounds=bounds)
        assert found.status in (0, 2), found.message  # solved, or proved to have no solution
        if found.status == 0:
            return True
    return False


def standing(victim: Victim, x: Tensor, y: Tensor, norm: Norm, eps: float) -> Tensor:
    """Which images the suite leaves, bool (N,)."""
    left = torch.ones_like(y, dtype=torch.bool)
    for attack in QUICK.attacks[norm]:
        threat = Threat(norm, eps if attack.kind == "budget" else None)
        seed_everything(0)
        verdict = judge(victim, x, y, attack(victim, x.clone(), y, threat), threat)
        assert verdict.valid.all()
        left &= ~(verdict.adversarial & (verdict.distances[norm] <= eps * (1 + 1e-6)))
    return left


@pytest.mark.parametrize(
    ("defense", "eps"),
    [(Pgd(eps=0.2, epochs=30), 0.2), (Pgd(eps=0.2, epochs=30), 0.1), (Standard(epochs=30), 0.1)],
    ids=("pgd-0.2", "pgd-0.1", "standard-0.1"),
)
def test_what_is_left_cannot_be_broken(defense: Any, eps: float, digits: Dataset) -> None:
    """Without APGD towards nine classes quick missed three images of each of the first two, ten of a larger set."""
    seed_everything(0)
    victim = Victim(defense.fit("mlp-32", digits).model, classes=10)
    _, (x, y) = digits.test_sample(IMAGES)
    right = victim.predict(x) == y
    x, y = x[right], y[right]
    left = standing(victim, x, y, "linf", eps)
    missed = [row for row in left.nonzero().flatten().tolist() if breakable(victim.model, x[row], int(y[row]), eps)]
    assert len(missed) <= 0.005 * IMAGES
    assert 0.1 * IMAGES < left.sum() < len(x)
    fallen = (~left).nonzero().flatten()[:5].tolist()
    assert all(breakable(victim.model, x[row], int(y[row]), eps) for row in fallen)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_kind_of_attack_is_there(norm: Norm) -> None:
    """What the checks of an evaluation hold against one another, and what the project is there for."""
    attacks = QUICK.attacks[norm]
    assert {attack.family for attack in attacks} >= {"noise", "one-step", "iterated", "minimum-norm", "score"}
    assert {attack.toolkit for attack in attacks} == {"gauntlet", "art", "foolbox"}
    kinds: set[type[Attack]] = {type(attack) for members in QUICK.attacks.values() for attack in members}
    assert kinds >= {Alpha, LBFGS}
