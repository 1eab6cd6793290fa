"""Bounds lie below whatever is found, on networks of everything that is covered."""

from __future__ import annotations

import math
import re
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.attacks.apgd import APGD
from harness.attacks.fmn import MinimumNorm
from harness.certify import certify, prepare
from harness.certify.balls import Ball
from harness.certify.bounds import Network
from harness.certify.nodes import Image, Interval
from harness.errors import UserError
from harness.judging.referee import judge
from harness.schema.eps import TOLERANCE
from harness.threat import Norm, Threat, project_ball
from harness.victims.victim import Victim
from tests.helpers.networks import SEEDS, SHAPE, random_network

EPS: dict[Norm, float] = {"linf": 0.03, "l2": 0.15, "l1": 0.5}


@lru_cache
def case(seed: int) -> tuple[nn.Module, Network, Tensor, Tensor]:
    model, _ = random_network(seed)
    x = torch.rand(4, *SHAPE).round(decimals=2)
    x[0, 0, 0] = torch.tensor([0.0, 1, 0, 1, 0.01, 0.99])  # the box cuts the ball
    return model, prepare(model, x), x, model(x).argmax(1)


def margins(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Smallest margin of float32 logits, in float64."""
    logits = model(x).double()
    own = logits.gather(1, y.unsqueeze(1))
    return (own - logits.scatter(1, y.unsqueeze(1), -math.inf)).amin(1)


def granted(x: Tensor, norm: Norm, eps: float, n: int) -> Tensor:
    """Images (n, N, ...) all over the ball and on its far side, up to the referee's tolerance."""
    torch.manual_seed(1)
    edge = eps * (1 + 0.99 * TOLERANCE)
    noise = torch.randn(n, *x.shape) * torch.logspace(-2, 3, n).view(-1, 1, 1, 1, 1)
    sparse = noise * (torch.rand_like(noise) < torch.linspace(0.02, 1, n).view(-1, 1, 1, 1, 1))
    delta = torch.cat([noise, sparse, edge * noise.sign()])
    return (x + project_ball(delta.flatten(0, 1), norm, edge).view_as(delta)).clamp(0, 1)


def descended(model: nn.Module, x: Tensor, y: Tensor, norm: Norm, eps: float) -> Tensor:
    """The images that gradient steps down the margin to each class end in, (classes, N, ...)."""
    edge = eps * (1 + 0.99 * TOLERANCE)
    found = []
    for rival in range(4):
        z = x.clone()
        for step in range(30):
            z.requires_grad_(True)
            logits = model(z)
            loss = (logits.gather(1, y.unsqueeze(1)).squeeze(1) - logits[:, rival]).sum()
            (grad,) = torch.autograd.grad(loss, z)
            grad = (
                grad.sign() if norm == "linf" else grad / grad.flatten(1).norm(dim=1).clamp_min(1e-9).view(-1, 1, 1, 1)
            )
            moved = z.detach() - 2 * eps / (1 + step / 3) * grad
            z = (x + project_ball(moved - x, norm, edge)).clamp(0, 1)
        found.append(z)
    return torch.stack(found)


def test_every_kind_is_there() -> None:
    kinds = set().union(*(random_network(seed)[1] for seed in SEEDS))
    assert kinds >= {
        *("relu", "leaky", "sigmoid", "tanh", "hardtanh", "relu6", "standardize", "conv", "maxout-conv", "batch-norm"),
        *("residual", "max-pool", "overlapping-max-pool", "average-pool", "global-pool", "flatten", "dense", "maxout"),
        *("joined", "largest", "log-softmax"),
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_bounds_lie_below_a_dense_search(seed: int) -> None:
    model, network, x, y = case(seed)
    for norm, eps in EPS.items():
        threat = Threat(norm, eps)
        made = network.bounds(x, y, threat)
        assert not made.uncovered
        z = torch.cat([granted(x, norm, eps, 300), descended(model, x, y, norm, eps)])
        within = threat.within(x.repeat(len(z), 1, 1, 1), z.flatten(0, 1)).view(len(z), -1)
        assert within.double().mean() > 0.8  # sums of float32 may come out longer
        z = torch.where(within.view(*within.shape, 1, 1, 1), z, x)
        found = margins(model, z.flatten(0, 1), y.repeat(len(z))).view(len(z), -1).amin(0)
        assert (made.margins <= found).all()
        alone = network.bounds(x, y, threat, lines=False)
        assert (alone.margins <= made.margins).all()
        assert torch.equal(made.certified, made.margins > 0)
        near = network.bounds(x, y, Threat(norm, 1e-7)).margins
        assert (margins(model, x, y) - near < 2e-3).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_no_value_of_a_node_leaves_its_bounds(seed: int) -> None:
    _, network, x, _ = case(seed)
    for norm, eps in EPS.items():
        known = network._intervals(Ball.of(Threat(norm, eps), x), lines=True)
        for z in granted(x, norm, eps, 5):
            at: dict[object, Interval] = {}
            for node in network.nodes:
                value = z.double()
                if not isinstance(node, Image):
                    made = node.interval(*(at[parent] for parent in node.parents))
                    value = (made.low + made.high) / 2
                at[node] = Interval(value, value)
                assert (known[node].low <= value + 1e-12).all()
                assert (value - 1e-12 <= known[node].high).all()


@pytest.mark.slow
def test_no_attack_breaks_what_is_certified() -> None:
    broken = proved = 0
    for seed in (3, 5, 9, 14):
        model, network, x, y = case(seed)
        victim = Victim(model, classes=4)
        for threat in (Threat("linf", eps) for eps in (0.003, 0.03, 0.3)):
            certified = network.bounds(x, y, threat).certified
            for attack in (APGD(steps=20), APGD(loss="dlr", targets=3, steps=20), MinimumNorm(steps=50)):
                verdict = judge(victim, x, y, attack(victim, x.clone(), y, threat), threat)
                assert not (verdict.adversarial & certified).any()
                broken += int(verdict.adversarial.sum())
            proved += int(certified.sum())
    assert broken
    assert proved


def test_one_linear_layer_is_exact() -> None:
    """Up to the float32 error that is charged, the bound is the true minimum in every norm."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 2)).eval().requires_grad_(False)
    x, y = torch.full((1, 1, 3, 3), 0.5), torch.tensor([0])
    normal = (model[1].weight[0] - model[1].weight[1]).double()
    clean = margins(model, x, y)
    for norm, order in (("linf", 1), ("l2", 2), ("l1", math.inf)):
        radius = 0.1 * (1 + TOLERANCE) + 1e-9
        expected = clean - radius * torch.linalg.vector_norm(normal, ord=order)
        found = certify(model, x, y, Threat(norm, 0.1)).margins
        assert (found <= expected).all()
        assert expected - found == pytest.approx(0, abs=2e-5)


def test_the_tolerance_counts() -> None:
    """An image that the referee grants beyond eps, and that is misclassified, is not certified."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)).eval().requires_grad_(False)
    model[1].weight.copy_(torch.tensor([[-1.0], [0.0]]))
    model[1].bias.copy_(torch.tensor([0.7 + 0.5e-5, 0.0]))
    x, y, threat = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0]), Threat("linf", 0.2)
    broken = judge(Victim(model, classes=2), x, y, x + 0.2 * (1 + 0.9 * TOLERANCE), threat)
    assert broken.adversarial.all()
    assert not certify(model, x, y, threat).certified.any()
    assert certify(model, x, y, Threat("linf", 0.1999)).certified.all()


def test_float32_counts() -> None:
    """A margin that rounding eats up is not certified, though it is positive in exact numbers."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval().requires_grad_(False)
    torch.manual_seed(0)
    model[1].weight.copy_(100 * torch.randn(1, 64).expand(2, 64))
    model[1].bias.copy_(torch.tensor([1e-4, 0.0]))
    x = torch.rand(20, 1, 8, 8)
    exact = model.double()(x.double())
    assert (exact[:, 0] > exact[:, 1]).all()
    made = certify(model.float(), x, torch.zeros(20, dtype=torch.int64), Threat("linf", 1e-9))
    assert not made.uncovered
    assert not made.certified.any()


def test_images_do_not_see_each_other() -> None:
    """Bounds of an image alone are those in a batch, whatever is narrowed for the others."""
    _, network, x, y = case(3)
    together = network.bounds(x, y, Threat("linf", 0.03)).margins
    alone = torch.cat([network.bounds(x[i : i + 1], y[i : i + 1], Threat("linf", 0.03)).margins for i in range(4)])
    assert together == pytest.approx(alone, abs=1e-6)


def test_again_the_model_is_asked_about_points_of_the_ball_alone() -> None:
    model, network, x, y = case(0)
    shown: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    for again in (False, True):
        shown.clear()
        bounds = network.bounds(x, y, Threat("linf", 0.01), again=again)
        assert any(torch.equal(batch, x) for batch in shown) != again
        assert any(0 < (batch - x).abs().max() <= 0.0101 for batch in shown if batch.shape == x.shape)
        assert torch.equal(bounds.margins, network.bounds(x, y, Threat("linf", 0.01)).margins)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, network, x, y = case(3)
    for norm, eps in EPS.items():
        whole = network.bounds(x, y, Threat(norm, eps)).margins
        with monkeypatch.context() as patch:
            patch.setattr("harness.certify.bounds._WORK", {"cpu": 1})
            assert network.bounds(x, y, Threat(norm, eps)).margins == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("wide", [12, 1500])
def test_many_images_of_a_wide_network_fare_as_few_do(wide: int) -> None:
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Flatten(), nn.Linear(36, wide), nn.ReLU(), nn.Linear(wide, 10)).requires_grad_(False).eval()
    )
    x = torch.rand(64, 1, 6, 6)
    y, threat = model(x).argmax(1), Threat("linf", 0.001)
    whole = certify(model, x, y, threat)
    assert not whole.uncovered
    few = [certify(model, part, label, threat).margins for part, label in zip(x.split(8), y.split(8), strict=True)]
    torch.testing.assert_close(whole.margins, torch.cat(few), rtol=0, atol=1e-9)
    assert whole.certified.any()


def test_a_misclassified_image_is_not_certified() -> None:
    _, network, x, y = case(3)
    made = network.bounds(x, (y + 1) % 4, Threat("linf", 1e-6))
    assert not made.certified.any()
    assert (made.margins < 0).all()


def test_images_outside_the_box_are_not_certified() -> None:
    _, network, x, y = case(3)
    assert network.bounds(x, y, Threat("linf", 1e-7)).certified[1]
    x = x.clone()
    x[1, 0, 0, 0] = 1.1
    made = network.bounds(x, y, Threat("linf", 1e-7))
    assert not made.certified[1]


@pytest.mark.parametrize("threat", [Threat("l0", 1), Threat("linf")])
def test_what_has_no_bounds_is_an_error(threat: Threat) -> None:
    model, _, x, y = case(3)
    with pytest.raises(UserError, match="certificate"):
        certify(model, x, y, threat)


def layer(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    made = nn.Linear(len(weight[0]), len(weight))
    made.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    return made


def overflowing() -> nn.Module:
    """A sum whose parts cancel, if they do not overflow first."""
    front = layer([[3.4e38, 3.4e38, -3.4e38, -3.4e38]], [0.0])
    back = layer([[100.0], [0.0]], [0.0, 90.0])
    return nn.Sequential(nn.Flatten(), front, nn.ReLU(), layer([[1e-36]], [0.0]), nn.Sigmoid(), back)


def underflowing() -> nn.Module:
    """Two ways that cancel, if the first does not come out as zero."""
    front = layer([[1.0] * 4], [-2.24])
    scales = [layer([[factor, 0.0], [0.0, 1.0]], [0.0, 0.0]) for factor in (1e-16, 1e16, 1e30)]
    last = layer([[0.0, 0.0], [100.0, -100.0]], [0.0, 5.0])
    return nn.Sequential(nn.Flatten(), front, nn.ReLU(), layer([[1e-30], [1.0]], [0.0, 0.0]), *scales, last)


class Tie(nn.Module):
    """Pixels are clamped at a number that is another one in float32: to what the other logit is."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x.flatten(1)[:, :1].clamp(max=0.1), (0, 1), value=0.10000000149011612)


@pytest.mark.parametrize(
    ("model", "start", "eps"), [(overflowing(), 0.5, 5e-4), (underflowing(), 0.5, 0.1), (Tie(), 0.08, 0.03)]
)
def test_what_float32_makes_of_the_extremes_is_not_certified(model: nn.Module, start: float, eps: float) -> None:
    model = model.eval().requires_grad_(False)
    x, y, threat = torch.full((1, 1, 2, 2), start), torch.tensor([1]), Threat("linf", eps)
    assert model(x).argmax(1) == y
    broken = judge(Victim(model, classes=2), x, y, x + 0.999 * eps, threat).adversarial
    assert broken.all()
    assert not certify(model, x, y, threat).certified.any()


def test_normalisation_and_division_by_extremes_have_no_bound() -> None:
    steep = nn.BatchNorm2d(1)
    steep.weight.data.fill_(1e30)
    for model in (nn.Sequential(steep, nn.Flatten()), Divided()):
        model = model.eval().requires_grad_(False)
        found = certify(model, torch.rand(1, 1, 2, 2), torch.tensor([0]), Threat("linf", 0.1))
        assert re.search(r"by factors beyond 1e\+06|by less than 1e-06", found.uncovered)


class Divided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) / 1e-39
