"""Steps on part of the values: weaker on an honest model, and unseen by what watches the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.attacks.partial_pgd import PartialPGD
from harness.datasets.registry import Dataset
from harness.errors import UserError
from harness.selftest.linear_victim import LinearVictim
from harness.threat import Threat
from harness.victims.victim import Victim

THREAT = Threat("linf", 0.1)
THREATS = {"linf": THREAT, "l2": Threat("l2", 0.5)}


@pytest.fixture
def sample(digits: Dataset) -> tuple[Tensor, Tensor]:
    x, y = digits.test_sample(60)[1]
    return x, y


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("part", [0.1, 0.5, 1.0])
def test_it_keeps_to_the_part_the_budget_and_the_box(
    trained: nn.Module, sample: tuple[Tensor, Tensor], part: float, norm: str
) -> None:
    x, y = sample
    x_adv = PartialPGD(part=part, steps=10)(Victim(trained), x, y, THREATS[norm])
    moved = (x_adv != x).flatten(1).sum(1)
    assert moved.min() > 0
    assert moved.max() <= round(part * 64)
    assert bool(THREATS[norm].within(x, x_adv).all())
    assert 0 <= x_adv.min() <= x_adv.max() <= 1


def test_it_changes_what_counts_most() -> None:
    """On a linear model, with room on all sides: the largest weights, each by eps."""
    weight = torch.zeros(2, 16)
    weight[1] = torch.linspace(-1, 1, 16)
    victim = Victim(LinearVictim(weight, torch.tensor([3.0, 0.0]), (1, 4, 4)))
    x, y = torch.full((3, 1, 4, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    x_adv = PartialPGD(part=0.25, steps=8)(victim, x, y, THREAT)
    expected = torch.zeros(16)
    expected[:2], expected[-2:] = -0.1, 0.1
    torch.testing.assert_close((x_adv - x).flatten(1), expected.expand(3, 16))


def test_nothing_to_do_and_bad_options(trained: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    x, y = sample
    assert PartialPGD()(Victim(trained), x[:0], y[:0], THREAT).shape == (0, 1, 8, 8)
    for options in ({"part": 0.0}, {"part": 1.5}, {"part": float("nan")}, {"steps": 0}):
        with pytest.raises(UserError):
            PartialPGD(**options)  # type: ignore[arg-type]
