"""The zoo: what hides its weakness is found by whoever reads its code, and by the house within seconds."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

import gauntlet
from harness.attacks.apgd import APGD
from harness.attacks.square import Square
from harness.errors import UserError
from harness.planning.suite import Suite
from harness.threat import Threat
from tests.helpers.zoo.adaptive import snapped, stands
from tests.helpers.zoo.honest import TABLE, honest
from tests.helpers.zoo.masked import MECHANISMS, itself, masked, on_grid, plain
from tests.helpers.zoo.split import half
from tests.helpers.zoo.training import digits

THREAT = Threat("linf", 0.1)
SUITE = Suite(name="few", summary="", attacks={"linf": (APGD(steps=20), Square(queries=200))}, budgets={"linf": (0.1,)})
SLOW = ("hard-votes", "noise-by-content", "iterated-purifier", "shifted", "random-input")
"""Left to the slow judgement: seconds each."""
ASKED = [name for name in MECHANISMS if half(name) == "seen" and name not in SLOW]
HONEST = ("softmax-pgd", "mlp-64", "maxout", "convolution-max")


pytestmark = pytest.mark.usefixtures("few_questions")


@pytest.fixture(scope="module")
def sample() -> tuple[Tensor, Tensor]:
    return digits().test_sample(40)[1]


def test_half_of_either_kind_is_held_out() -> None:
    for names in (MECHANISMS, TABLE):
        counts = Counter(map(half, names))
        assert abs(counts["seen"] - counts["held out"]) <= 0.3 * len(names)
    assert len(MECHANISMS) >= 25
    assert len(TABLE) >= 25
    assert not set(MECHANISMS) & set(TABLE)
    assert half("grid-routing") == "seen"  # a name's half never moves
    assert half("mlp-200-200") == "held out"


@pytest.mark.parametrize("name", ASKED)
def test_what_hides_its_weakness_is_not_believed(name: str, sample: tuple[Tensor, Tensor]) -> None:
    """Refused, graded C or worse, or a number that is no higher than what is left by hand."""
    x, y = sample
    left = float(stands(MECHANISMS[name], masked(name), x, y, THREAT, steps=12).double().mean())
    clean = float((masked(name)(x).argmax(1) == y).double().mean())
    assert left < clean - 0.1  # it is weak
    try:
        frame = gauntlet.evaluate(masked(name), x, y, SUITE, dataset=digits().info)
    except UserError:  # refused, as it should be: it could not be judged
        return
    grade, reasons = frame.attrs["trust"]["linf"]
    assert grade in ("C", "D") or frame.worst_case("linf", 0.1) <= left + 1e-6, reasons


@pytest.mark.parametrize("name", HONEST)
def test_what_is_honest_is_believed(name: str, sample: tuple[Tensor, Tensor]) -> None:
    frame = gauntlet.evaluate(honest(name), *sample, SUITE, dataset=digits().info)
    grade, reasons = frame.attrs["trust"]["linf"]
    assert grade in ("A", "B"), reasons


def test_candidates_on_the_grid_keep_the_budget() -> None:
    x = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    file = snapped(x, THREAT.project(x, x + THREAT.eps * torch.randn_like(x).sign()), THREAT)
    assert bool(on_grid(file).all())
    assert bool(THREAT.within(x, file).all())


def test_by_hand_an_honest_network_loses_as_much_as_to_the_best_attack(sample: tuple[Tensor, Tensor]) -> None:
    from harness.victims.victim import Victim
    from tests.helpers.zoo.masked import Mechanism

    x, y = sample
    victim = Victim(plain())
    best = victim.predict(APGD(loss="dlr", targets=9, steps=50)(victim, x, y, THREAT)) == y
    mechanism = Mechanism("plain", "", plain, itself)
    assert stands(mechanism, plain(), x, y, THREAT).sum() <= (best & (victim.predict(x) == y)).sum()
