"""Attacks of the suites on models that answer in another form than most."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from harness.attacks.base import Attack
from harness.attacks.transfer import Transfer
from harness.datasets.registry import Dataset
from harness.determinism import seed_everything
from harness.threat import Norm, Threat
from harness.victims.victim import Victim
from suites import suite

EPS: dict[Norm, float] = {"linf": 0.06, "l2": 0.4, "l1": 1.5}
ATTACKS = [
    pytest.param(norm, attack, id=f"{name}-{norm}-{attack.label}")
    for name in ("linf", "l2", "l1", "black-box")
    for norm, attacks in suite(name).attacks.items()
    for attack in attacks
    if not isinstance(attack, Transfer)
]


@pytest.mark.parametrize(("norm", "attack"), ATTACKS)
def test_a_model_that_answers_in_float64_is_attacked_like_its_float32_self(
    norm: Norm, attack: Attack, trained: nn.Module, digits: Dataset
) -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return trained(x).double()

    x, y = (part[:24] for part in digits.test)
    left = []
    for model in (trained, Double()):
        victim = Victim(model, classes=10)
        seed_everything(0)
        x_adv = attack(victim, x, y, Threat(norm, EPS[norm]))
        assert x_adv.dtype == torch.float32
        left.append(float((victim.predict(x_adv) == y).float().mean()))
    assert math.isclose(*left, abs_tol=2 / 24)
