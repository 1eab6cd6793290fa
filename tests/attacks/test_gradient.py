from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from harness.attacks.fast_gradient import Gradient, adv_loss
from harness.attacks.line_search import first_crossing, is_fooled, log_odds, shorten
from harness.selftest.linear_victim import LinearVictim
from harness.threat import EXPONENT, Threat, magnitude
from harness.victims.victim import Victim
from tests.helpers.linear import worst_loss

NORMS = ("linf", "l2", "l1")
EPS = {"linf": 0.05, "l2": 0.2, "l1": 0.3}


def flat_victim(classes: int = 3) -> Victim:
    """Logits that do not depend on the image: every gradient is zero."""
    layer = nn.Linear(16, classes)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.arange(classes, 0, -1.0))
    return Victim(nn.Sequential(nn.Flatten(), layer), classes=classes)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("objective", ["loss", "probability", "log-odds"])
def test_budget_reaches_the_largest_loss(norm, objective):
    victim = LinearVictim.random(2, seed=3)
    x, y = victim.images(20)
    x_adv = Gradient(objective=objective)(victim, x, y, Threat(norm, EPS[norm]))
    loss = F.cross_entropy(victim(x_adv), y, reduction="none")
    torch.testing.assert_close(loss, worst_loss(victim, x, y, norm, EPS[norm]), rtol=1e-4, atol=1e-6)
    assert Threat(norm, EPS[norm]).within(x, x_adv).all()


@pytest.mark.parametrize("norm", NORMS)
def test_minimal_reaches_the_boundary(norm):
    victim = LinearVictim.random(2, seed=3)
    x, y = victim.images(40)
    x_adv = Gradient(mode="minimal")(victim, x, y, Threat(norm))
    assert (victim.predict(x_adv) != y).all()
    ratio = Threat(norm).distance(x, x_adv) / victim.distance(x, y, norm).double()
    inside = ratio.new_ones(len(x), dtype=torch.bool)
    if norm == "l1":  # the single largest pixel has to stay in the box
        inside = (x_adv - x).flatten(1).abs().amax(1) < 0.44
        assert inside.sum() > 10
    assert (ratio[inside] - 1).abs().max() < 0.01


def test_minimal_returns_the_misclassified_and_the_hopeless_unchanged():
    victim = LinearVictim.random(3)
    x, y = victim.images(8)
    wrong = (y + 1) % 3
    assert torch.equal(Gradient(mode="minimal")(victim, x, wrong, Threat("l2")), x)
    flat = flat_victim()
    assert torch.equal(Gradient(mode="minimal")(flat, x, torch.zeros(8, dtype=torch.int64), Threat("l2")), x)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 4.0, math.inf])
@pytest.mark.parametrize("norm", NORMS)
def test_step_of_any_exponent_has_length_eps(p, norm):
    victim = LinearVictim.random(4)
    x, y = victim.images(6)
    x_adv = Gradient(p=p)(victim, x, y, Threat(norm, 0.05))
    torch.testing.assert_close(magnitude(x_adv - x, norm), torch.full((6,), 0.05), rtol=1e-4, atol=0)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 4.0, math.inf])
def test_direction_is_optimal_in_its_own_norm(p):
    victim = LinearVictim.random(2, seed=9)
    x, y = victim.images(5)
    step = Gradient(p=p).direction(victim, x, y, "l2").flatten(1)
    step = step / torch.linalg.vector_norm(step, ord=p, dim=1, keepdim=True)
    normal = victim.weight[1 - y] - victim.weight[y]
    dual = 1.0 if math.isinf(p) else math.inf if p == 1 else p / (p - 1)
    torch.testing.assert_close((step * normal).sum(1), torch.linalg.vector_norm(normal, ord=dual, dim=1))


def test_named_members_of_the_family():
    victim = LinearVictim.random(5)
    x, y = victim.images(7)
    x_grad = x.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(F.cross_entropy(victim(x_grad), y, reduction="sum"), x_grad)
    torch.testing.assert_close(Gradient(p=math.inf)(victim, x, y, Threat("linf", 0.1)), x + 0.1 * grad.sign())
    torch.testing.assert_close(
        Gradient(p=math.inf, objective="probability")(victim, x, y, Threat("l2", 0.4)), x + 0.1 * grad.sign()
    )
    unit = grad / magnitude(grad, "l2").view(-1, 1, 1, 1)
    torch.testing.assert_close(adv_loss()(victim, x, y, Threat("l2", 0.4)), x + 0.4 * unit)


def test_log_odds_move_a_saturated_victim_and_the_loss_does_not():
    victim = LinearVictim.random(3, scale=4e3)
    x, y = victim.images(10)
    threat = Threat("linf", 0.2)
    assert (Gradient(objective="probability")(victim, x, y, threat) == x).flatten(1).all(1).any()
    x_adv = Gradient(objective="log-odds")(victim, x, y, threat)
    assert (victim.predict(x_adv) != y).all()


@pytest.mark.parametrize("objective", ["loss", "probability", "log-odds"])
@pytest.mark.parametrize("norm", NORMS)
def test_zero_gradient_gives_the_image_back(objective, norm):
    x = torch.rand(4, 1, 4, 4)
    x_adv = Gradient(objective=objective, p=3.0)(flat_victim(), x, torch.zeros(4, dtype=torch.int64), Threat(norm, 0.1))
    assert torch.equal(x_adv, x)


def test_box_is_kept_and_one_pass_each_is_paid():
    victim = LinearVictim.random(3)
    x = torch.rand(300, 1, 4, 4).round()
    y = victim.predict(x)
    with victim.counted() as cost:
        x_adv = Gradient(p=math.inf)(victim, x, y, Threat("linf", 0.3))
    assert x_adv.min() == 0
    assert x_adv.max() == 1
    assert (cost.forwards, cost.backwards) == (300, 300)


def test_result_does_not_depend_on_the_batch():
    victim = LinearVictim.random(3)
    x, y = victim.images(9)
    for attack, threat in ((Gradient(), Threat("l2", 0.1)), (Gradient(mode="minimal"), Threat("l2"))):
        whole = attack(victim, x, y, threat)
        single = torch.cat([attack(victim, x[i : i + 1], y[i : i + 1], threat) for i in range(9)])
        torch.testing.assert_close(whole, single, rtol=0, atol=1e-5)


def test_no_images():
    victim = LinearVictim.random(3)
    x, y = victim.images(0)
    for attack, threat in ((Gradient(), Threat("l2", 0.1)), (Gradient(mode="minimal"), Threat("l2"))):
        assert attack(victim, x, y, threat).shape == (0, 1, 4, 4)


@pytest.mark.parametrize("bad", [{"p": 0.5}, {"p": math.nan}, {"objective": "lose"}, {"mode": "max"}])
def test_bad_fields_are_refused(bad):
    with pytest.raises(ValueError, match=r"must be|unknown"):
        Gradient(**bad)


def test_kind_and_norms():
    assert Gradient().kind == "budget"
    assert Gradient(mode="minimal").kind == "minimal"
    victim = LinearVictim.random(3)
    x, y = victim.images(2)
    with pytest.raises(ValueError, match="no l0 form"):
        Gradient()(victim, x, y, Threat("l0", 3))
    with pytest.raises(ValueError, match="needs an eps"):
        Gradient()(victim, x, y, Threat("l2"))


def test_first_crossing_finds_the_first_of_two():
    class Band(nn.Module):
        """Class 1 only while the mean is within [0.30, 0.45] or above 0.8."""

        def forward(self, x):
            mean = x.flatten(1).mean(1)
            score = torch.minimum(mean - 0.30, 0.45 - mean).maximum(mean - 0.8)
            return torch.stack((torch.zeros_like(score), score), 1)

    x = torch.full((3, 1, 2, 2), 0.1)
    found = first_crossing(Victim(Band()), x, torch.zeros(3, dtype=torch.int64), torch.ones_like(x), 1.0)
    torch.testing.assert_close(found, torch.full_like(x, 0.30), rtol=0, atol=1e-3)
    assert (found >= 0.30).all()


def test_shorten_never_lengthens_nor_touches_failures():
    victim = LinearVictim.random(3)
    x, y = victim.images(10)
    far = (x + 3 * victim.perturbation(x, y, "l2")).clamp(0, 1)
    far[0] = x[0]
    far[1] = x[1] + 0.1 * victim.perturbation(x, y, "l2")[1]
    near = shorten(victim, x, y, far)
    assert torch.equal(near[:2], far[:2])
    fooled = victim.predict(near) != y
    assert fooled[2:].all()
    ratio = magnitude(near - x, "l2")[2:] / victim.distance(x, y, "l2")[2:]
    assert ratio.max() < 1.02
    assert ratio.min() >= 1 - 1e-4


def test_log_odds_and_fooled_agree_with_their_definitions():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    y = torch.tensor([0, 1, 0])
    p = logits.double().softmax(1).gather(1, y[:, None]).squeeze(1)
    torch.testing.assert_close(log_odds(logits, y).double(), torch.log((1 - p) / p), rtol=1e-5, atol=1e-6)
    assert is_fooled(logits, y).tolist() == [False, False, True]
    assert EXPONENT["l2"] == 2
