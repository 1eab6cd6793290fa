"""RayS: near the optimum by labels alone, whatever hides the gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.attacks.line_search import fooled
from harness.attacks.per_image_rng import Draws
from harness.attacks.rays import CHANGES, RayS, _Blocks, _z_order
from harness.datasets.registry import Dataset
from harness.determinism import seed_everything
from harness.selftest.linear_victim import LinearVictim
from harness.selftest.masked_gradients import CorrugatedLoss, DeadUnits, RandomInput, RoundedInputs, ZeroGradient
from harness.threat import Threat
from harness.victims.adaptation import Remedy
from harness.victims.victim import Victim

LP = ("linf", "l2", "l1")


def right(victim: Victim, digits: Dataset, n: int = 40) -> tuple[Tensor, Tensor]:
    """Test images that the victim gets right."""
    x, y = digits.test
    keep = (victim.predict(x) == y).nonzero().squeeze(1)[:n]
    return x[keep], y[keep]


def run(attack: RayS, victim: Victim, x: Tensor, y: Tensor, norm: str) -> Tensor:
    seed_everything(0)
    return attack(victim, x, y, Threat(norm))


@pytest.mark.parametrize(("norm", "most"), [("linf", 1.02), ("l2", 1.15), ("l1", 1.02)])
def test_two_linear_classes_are_near_the_closed_form(norm, most):
    victim = LinearVictim.random(2, shape=(1, 6, 6), seed=2)
    x, y = victim.images(40)
    x_adv = run(RayS(), victim, x, y, norm)
    inside = victim.perturbation(x, y, norm).abs().flatten(1).amax(1) < 0.4
    assert inside.sum() > 20
    ratio = (Threat(norm).distance(x, x_adv) / victim.distance(x, y, norm))[inside]
    assert ratio.median() < most
    assert ratio.max() < most + 0.1
    assert ratio.min() > 1


@pytest.mark.parametrize("norm", LP)
def test_results_are_in_the_box_clearly_across_and_get_nearer(norm, trained, digits):
    victim = Victim(trained, classes=10)
    x, y = right(victim, digits)
    few, many = (run(RayS(queries=queries), victim, x, y, norm) for queries in (60, 400))
    for x_adv in (few, many):
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        assert fooled(victim, x_adv, y).float().mean() > 0.95
    distance = Threat(norm).distance
    assert distance(x, many).mean() < 0.9 * distance(x, few).mean()
    # the same start, and the nearest is kept; the last step outward is a thousandth
    assert (distance(x, many) <= 1.002 * distance(x, few)).all()


@pytest.mark.parametrize("norm", LP)
def test_only_decisions_count(norm, trained, digits):
    class Decision(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot(trained(x).argmax(1), 10).float()

    plain, masked = Victim(trained, classes=10), Victim(Decision(), classes=10)
    x, y = right(plain, digits)
    attack = RayS(queries=150)
    assert torch.equal(run(attack, plain, x, y, norm), run(attack, masked, x, y, norm))


@pytest.mark.parametrize("hide", [ZeroGradient, DeadUnits, CorrugatedLoss, RoundedInputs])
def test_masked_gradients_are_no_obstacle(hide, trained, digits):
    plain, masked = Victim(trained, classes=10), Victim(hide(trained), classes=10)
    x, y = right(plain, digits)
    keep = masked.predict(x) == y
    x, y = x[keep], y[keep]
    a, b = (Threat("linf").distance(x, run(RayS(queries=300), victim, x, y, "linf")) for victim in (plain, masked))
    assert (b > 0).all()
    # pixels rounded to 8 levels change by 0.14 at a time: the boundary itself is elsewhere
    assert b.median() < (a.median() + 0.1 if hide is RoundedInputs else 1.01 * a.median())


@pytest.mark.parametrize("norm", LP)
def test_an_image_fares_the_same_in_any_batch(norm, trained, digits):
    victim = Victim(trained, classes=10)
    x, y = right(victim, digits)
    attack = RayS(queries=200)
    whole = run(attack, victim, x, y, norm)
    assert torch.equal(run(attack, victim, x, y, norm), whole)
    rows = torch.tensor([31, 4, 17, 25])
    distance = Threat(norm).distance
    torch.testing.assert_close(
        distance(x[rows], run(attack, victim, x[rows], y[rows], norm)), distance(x, whole)[rows], rtol=2e-3, atol=0
    )


@pytest.mark.parametrize("queries", [3, 4, 50, 333])
def test_queries_are_the_forward_passes(queries, trained, digits):
    victim = Victim(trained, classes=10)
    x, y = right(victim, digits, 10)
    with victim.counted() as cost:
        run(RayS(queries=queries), victim, x, y, "linf")
    assert (cost.forwards, cost.backwards) == (queries * len(x), 0)


@pytest.mark.parametrize("norm", LP)
def test_the_misclassified_and_the_hopeless_come_back(norm):
    victim = LinearVictim.random(3)
    x, y = victim.images(8)
    with victim.counted() as cost:
        assert torch.equal(run(RayS(queries=20), victim, x, (y + 1) % 3, norm), x)
    assert cost.forwards == 8

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.0]).expand(len(x), 2)

    assert torch.equal(run(RayS(queries=20), Victim(Constant()), x, torch.zeros_like(y), norm), x)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 3), (1, 2, 7)])
def test_odd_shapes(shape):
    victim = LinearVictim.random(2, shape=shape, seed=1)
    x, y = victim.images(6)
    for norm in LP:
        x_adv = run(RayS(queries=300), victim, x, y, norm)
        assert x_adv.shape == x.shape
        assert (victim.predict(x_adv) != y).float().mean() > 0.8


def test_on_a_stochastic_victim_it_is_no_matter_of_luck(trained, digits):
    noisy = RandomInput(trained)
    judge = Victim(noisy, classes=10, votes=25)
    victim = Victim(noisy, classes=10, remedy=Remedy(draws=8))
    x, y = right(judge, digits, 30)
    x_adv = run(RayS(queries=100), victim, x, y, "linf")
    assert (judge.predict(x_adv) != y).float().mean() > 0.7


def test_no_images(trained):
    victim = Victim(trained, classes=10)
    x, y = torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64)
    assert RayS()(victim, x, y, Threat("linf")).shape == x.shape


def test_bad_fields_are_refused():
    with pytest.raises(ValueError, match="must be"):
        RayS(queries=2)


def test_what_it_is():
    attack = RayS()
    assert (attack.kind, attack.access, attack.family) == ("minimal", "decisions", "decision")
    assert attack.supported_norms == LP


def test_z_order():
    assert _z_order(torch.zeros(1, 1, 4, 4))[0].tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]
    odd = _z_order(torch.zeros(1, 3, 5, 6))
    assert sorted(odd.flatten().tolist()) == list(range(90))
    assert torch.equal(odd[1], odd[0] + 1)


@pytest.mark.parametrize("norm", LP)
def test_blocks_cover_the_image_at_every_level_and_change_as_declared(norm):
    x = torch.zeros(1, 1, 3, 4)
    blocks, kinds = _Blocks(x, CHANGES[norm]), len(CHANGES[norm])
    assert len(blocks) == (1 + 2 + 4 + 6 + 12) * kinds
    assert blocks.singles == (1 + 2 + 4 + 6) * kinds
    turns = torch.arange(len(blocks))
    ray = torch.ones(len(turns), 1, 3, 4)

    def changed_all(rays):
        out = rays.clone()
        place, owner = blocks.places(torch.ones_like(turns, dtype=torch.bool), turns)
        out.view(-1)[place] = blocks.changed(out.view(-1)[place], owner, turns)
        return out

    changed = changed_all(ray)
    touched = (changed != ray).flatten(1).sum(1)
    assert touched[:kinds].tolist() == [12] * kinds
    assert touched[blocks.singles :].tolist() == [1] * (12 * kinds)
    first = [float(changed[i, 0, 0, 0]) for i in range(kinds)]
    assert first == [factor for factor, _ in CHANGES[norm]]
    if norm == "l1":
        assert changed_all(torch.zeros_like(ray))[:2].flatten(1).mean(1).tolist() == [1, -1]
    few = turns % 3 == 1
    place, owner = blocks.places(few, turns)
    assert sorted(set(owner.tolist())) == turns[few].tolist()
    assert torch.equal(place // ray[0].numel(), owner)


def test_random_signs_come_in_blocks():
    x = torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    draws, blocks = Draws(x), _Blocks(x, CHANGES["linf"])
    whole, quarters = blocks.signs(draws, 0), blocks.signs(draws, 2)
    assert (whole.flatten(1) == whole[:, 0, 0, :1]).all()
    assert (quarters[:, :, :2, :2].flatten(1) == quarters[:, 0, 0, :1]).all()
    assert set(quarters[:, 0, ::2, ::2].flatten(1).sum(1).tolist()) == {-4, -2, 0, 2, 4}
    assert blocks.signs(draws, 5).shape == whole.shape
