"""Auto-PGD against what is known exactly: linear victims, projections with a certificate, victims without gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from harness.attacks._front import Front
from harness.attacks.apgd import APGD
from harness.attacks.apgd_dense import Dense, checkpoints
from harness.attacks.apgd_l1 import Sparse, project_l1_box
from harness.attacks.foolbox import Foolbox
from harness.attacks.line import is_fooled, log_odds
from harness.attacks.losses import LOSSES, likely_rivals, objective
from harness.reference import LinearVictim
from harness.remedy import Remedy
from harness.threat import Threat, magnitude, per_sample
from harness.victim import Victim

NORMS = ("linf", "l2", "l1")
EPS = {"linf": 0.1, "l2": 0.6, "l1": 2.5}  # leave about half of the digits standing


@pytest.fixture(scope="module")
def victim(trained) -> Victim:
    return Victim(trained, classes=10)


@pytest.fixture(scope="module")
def images(digits, victim) -> tuple[Tensor, Tensor]:
    x, y = digits.to_float(digits.x_test[:120]), digits.y_test[:120]
    right = victim.predict(x) == y
    return x[right], y[right]


@pytest.fixture(scope="module")
def firm(victim, images) -> tuple[Tensor, Tensor]:
    """Images that a tiny eps cannot break."""
    x, y = images
    far = log_odds(victim(x), y) < -3
    assert far.sum() > 60
    return x[far], y[far]


def attack(attack: APGD, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    torch.manual_seed(0)
    return attack(victim, x, y, threat)


def scaled(model: nn.Module, factor: float) -> Victim:
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return factor * self.model(x)

    return Victim(Scaled(), classes=10)


def equally_far(victim: LinearVictim, norm: str, distance: float, n: int) -> tuple[Tensor, Tensor]:
    """Images of a two-class victim that are all as far from the boundary."""
    x, y = victim.images(n)
    away = victim.distance(x, y, norm) - distance
    return x + per_sample(away, x) * victim.perturbation(x, y, norm) / per_sample(victim.distance(x, y, norm), x), y


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", NORMS)
def test_two_linear_classes_fall_at_their_distance_and_not_before(norm, loss):
    victim = LinearVictim.random(2, seed=3)
    distance = {"linf": 0.03, "l2": 0.1, "l1": 0.2}[norm]
    x, y = equally_far(victim, norm, distance, 40)
    torch.testing.assert_close(victim.distance(x, y, norm), torch.full((40,), distance))
    for ratio, broken in ((1.02, True), (0.98, False)):
        threat = Threat(norm, ratio * distance)
        x_adv = attack(APGD(loss=loss, steps=60), victim, x, y, threat)
        assert threat.within(x, x_adv).all()
        assert ((victim.predict(x_adv) != y) == broken).all()


@pytest.mark.parametrize("loss", ["dlr", "margin"])
@pytest.mark.parametrize("norm", NORMS)
def test_targets_find_the_nearest_of_many_linear_classes(norm, loss):
    victim = LinearVictim.random(5, seed=1)
    x, y = victim.images(2)
    for i, distance in enumerate(victim.distance(x, y, norm).tolist()):
        for ratio, broken in ((1.02, True), (0.98, False)):
            x_adv = attack(
                APGD(loss=loss, targets=4, steps=30), victim, x[i : i + 1], y[i : i + 1], Threat(norm, ratio * distance)
            )
            assert bool(victim.predict(x_adv) != y[i]) == broken


def greedy(slope: Tensor, x: Tensor, eps: float) -> Tensor:
    """The r in L1 ball and box with the largest <slope, r>, rows of (N, D): the steepest pixels first."""
    room = torch.where(slope > 0, 1 - x, x)
    order = slope.abs().argsort(dim=1, descending=True)
    spent = room.gather(1, order).cumsum(1)
    move = room.gather(1, order).minimum((eps - spent + room.gather(1, order)).clamp_min(0))
    return slope.sign() * torch.zeros_like(x).scatter(1, order, move)


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.5, 2.0, 5.0])
def test_l1_projection_is_optimal(eps):
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(500, 1, 3, 4, generator=generator)
    x[:100] = x[:100].round()  # on the walls of the box
    points = x + torch.randn(x.shape, generator=generator) * torch.rand(500, 1, 1, 1, generator=generator) * 2
    points[::7] = x[::7] + 1  # ties
    found = project_l1_box(x, points, torch.full((500,), eps))
    assert found.min() >= 0
    assert found.max() <= 1
    assert magnitude(found.double() - x.double(), "l1").max() <= eps + 1e-6
    # a feasible p is the projection of u if and only if no feasible z has <u - p, z - p> > 0
    pull = (points - found).double().flatten(1)
    best = greedy(pull, x.double().flatten(1), eps)
    gain = (pull * (best - (found - x).double().flatten(1))).sum(1)
    assert gain.max() < 1e-5
    torch.testing.assert_close(project_l1_box(x, found, torch.full((500,), eps)), found, rtol=0, atol=1e-6)


def test_l1_projection_takes_a_radius_an_image():
    x, radii = torch.full((3, 1, 2, 2), 0.5), torch.tensor([0.1, 1.0, 9.0])
    found = project_l1_box(x, x + torch.tensor([3.0, 2.9, 0.0, -0.2]).view(1, 1, 2, 2), radii)
    torch.testing.assert_close(found[0].flatten(), torch.tensor([0.6, 0.5, 0.5, 0.5]))
    torch.testing.assert_close(found[1].flatten(), torch.tensor([1.0, 1.0, 0.5, 0.5]))
    torch.testing.assert_close(found[2].flatten(), torch.tensor([1.0, 1.0, 0.5, 0.3]))


def furthest(victim: LinearVictim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """The largest margin of two classes that ball and box allow, (N,), in float64."""
    slope = (victim.weight[1 - y] - victim.weight[y]).double()
    x, eps = x.flatten(1).double(), threat.eps
    if threat.norm == "linf":
        r = slope.sign() * torch.where(slope > 0, 1 - x, x).clamp_max(eps)
    elif threat.norm == "l1":
        r = greedy(slope, x, eps)
    else:  # r = clip(t slope) for the largest t that keeps the budget
        low, high = torch.zeros(len(x), 1), torch.full((len(x), 1), 1e6)
        for _ in range(200):
            t = (low + high) / 2
            fits = (x + t * slope).clamp(0, 1).sub(x).norm(dim=1, keepdim=True) <= eps
            low, high = torch.where(fits, t, low), torch.where(fits, high, t)
        r = (x + low * slope).clamp(0, 1) - x
    return (slope * (x + r)).sum(1) + (victim.bias[1 - y] - victim.bias[y])


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.3), ("l2", 0.8), ("l1", 3.0)])
def test_walls_of_the_box_do_not_hold_it_up(norm, eps):
    torch.manual_seed(1)
    weight = torch.randn(2, 64)
    victim = LinearVictim(weight, torch.tensor([500.0, 0.0]), (1, 8, 8))  # never fooled: nobody leaves early
    x = torch.rand(30, 1, 8, 8)
    x = torch.where(torch.rand_like(x) < 0.6, x.round(), x)
    y = torch.zeros(30, dtype=torch.int64)
    threat = Threat(norm, eps)
    x_adv = attack(APGD(loss="margin"), victim, x, y, threat)
    margin = lambda images: objective("margin", victim(images), y)  # noqa: E731
    reached = (margin(x_adv) - margin(x)) / (furthest(victim, x, y, threat) - margin(x))
    assert threat.within(x, x_adv).all()
    assert reached.min() > 0.97
    assert reached.max() < 1.001
    assert reached.mean() > 0.99


class Hill(nn.Module):
    """The margin is largest at one point, and never enough."""

    def __init__(self, top: Tensor) -> None:
        super().__init__()
        self.top = top

    def forward(self, x):
        height = -(x - self.top).flatten(1).square().sum(1)
        return torch.stack((torch.ones_like(height), height), 1)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.3), ("l2", 1.0), ("l1", 2.0)])
def test_a_maximum_inside_the_ball_is_reached_by_smaller_steps(norm, eps):
    x = torch.full((1, 1, 4, 4), 0.5)
    top = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    assert Threat(norm, eps).within(x, top).all()
    x_adv = attack(APGD(loss="margin"), Victim(Hill(top)), x, torch.zeros(1, dtype=torch.int64), Threat(norm, eps))
    assert magnitude(x_adv - top, norm).item() < {"linf": 0.02, "l2": 0.02, "l1": 0.25}[norm] * eps


def test_dense_steps_are_halved_by_the_two_conditions_of_the_paper():
    x = torch.full((3, 1, 1, 2), 0.5)
    pace = Dense.begin(x, Threat("linf", 0.1), 100, 0.75)
    front = Front.at(x, torch.zeros(3, dtype=torch.int64), None, x.clone())
    falls = (set(), set(range(10, 16)), set(range(10, 15)))  # 22, 16 and 17 of 22 steps raise the loss
    loss = torch.zeros(3)
    for number in range(42):
        if number == 23:  # deep down, and then up all the time, but never as high as before
            loss = loss - 1000
        elif number:
            loss = loss + torch.tensor([-1.0 if number in where else 1.0 for where in falls])
        front.note(loss, loss, torch.ones_like(x))
        pace.review(number, front, torch.zeros(3, dtype=torch.bool))
        if number == 22:  # too few successes
            assert pace.size.tolist() == pytest.approx([0.2, 0.1, 0.2])
            assert front.placed.tolist() == [False, True, False]
        if number == 41:  # no new best, unless the step has just been halved
            assert pace.size.tolist() == pytest.approx([0.1, 0.1, 0.1])
            assert front.placed.tolist() == [True, False, True]
            assert (front.loss == torch.where(front.placed, front.best_loss, loss)).all()
        front.step(pace.move(front))


def test_sparse_steps_follow_the_support_of_the_best_point():
    x = torch.full((2, 1, 2, 10), 0.5)
    pace = Sparse.begin(x, 0.4, 100)
    front = Front.at(x, torch.zeros(2, dtype=torch.int64), None, x.clone())
    nobody, radius = torch.zeros(2, dtype=torch.bool), 1.2
    assert pace.sparsity.tolist() == [4, 4]
    for number, moved, size, sparsity, back in (
        (4, (20, 6), (radius / 1.5, radius), (20 / 1.5, 4), (False, True)),  # fewer pixels: start again from the best
        (8, (20, 6), (radius / 2.25, radius / 1.5), (20 / 1.5, 4), (False, False)),
    ):
        points = x.clone()
        for row, count in zip(points.flatten(1), moved, strict=True):
            row[:count] += 0.01
        front.step(points)
        front.note(torch.full((2,), float(number)), torch.zeros(2), torch.ones_like(x))
        pace.review(number, front, nobody)
        assert pace.size.tolist() == pytest.approx(size)
        assert pace.sparsity.tolist() == pytest.approx(sparsity)
        assert tuple(front.placed.tolist()) == back
    for number in range(12, 30, 4):
        pace.review(number, front, nobody)
    assert pace.size.tolist() == pytest.approx([radius / 10] * 2)  # no shorter
    for number, hit, factor in ((25, [True, False], [2, 3]), (30, [False] * 2, [2, 2]), (60, [False] * 2, [1, 1])):
        pace.review(number, front, torch.tensor(hit))
        assert pace.factor.tolist() == factor
    assert pace.valid.all()
    assert pace.size.tolist() == pytest.approx([0.4, 0.4])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targets", [0, 3])
def test_results_keep_ball_and_box(victim, images, norm, loss, targets):
    x, y = images
    for eps in (EPS[norm] / 4, EPS[norm], 1e-3):
        threat = Threat(norm, eps)
        x_adv = attack(APGD(loss=loss, targets=targets, steps=10), victim, x, y, threat)
        assert (threat.distance(x, x_adv) <= eps * (1 + 1e-5) + 1e-7).all()
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_is_allowed_nothing_moves(victim, images, norm):
    x, y = images
    assert torch.equal(attack(APGD(steps=3), victim, x, y, Threat(norm, 0.0)), x)


@pytest.mark.parametrize("targets", [0, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_an_image_gets_the_same_result_in_any_batch(victim, images, norm, targets):
    x, y = images
    declared, threat = APGD(loss="margin", targets=targets, steps=20, restarts=2), Threat(norm, EPS[norm])
    whole = attack(declared, victim, x, y, threat)
    part = torch.arange(len(x) - 1, 0, -3)
    torch.testing.assert_close(attack(declared, victim, x[part], y[part], threat), whole[part], rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", ["dlr", "margin"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targets", [0, 3])
def test_scale_of_logits_makes_no_difference(trained, images, norm, loss, targets):
    x, y = images
    declared, threat = APGD(loss=loss, targets=targets, steps=12), Threat(norm, EPS[norm])
    plain = attack(declared, scaled(trained, 1.0), x, y, threat)
    for factor in (2.0**10, 2.0**-10):  # exact in float32
        torch.testing.assert_close(attack(declared, scaled(trained, factor), x, y, threat), plain, rtol=0, atol=1e-6)
    judge = Victim(trained)
    lost = judge.predict(plain) != y
    for factor in (100.0, 0.01):  # rounded: one iterate in many turns another way
        other = judge.predict(attack(declared, scaled(trained, factor), x, y, threat)) != y
        assert (other != lost).sum() <= 1
    assert 0.1 < lost.double().mean() < 0.9


def test_cross_entropy_survives_saturated_logits(trained, images):
    x, y = images
    threat = Threat("linf", EPS["linf"])
    lost = [
        int((Victim(trained).predict(attack(APGD(steps=20), scaled(trained, factor), x, y, threat)) != y).sum())
        for factor in (1.0, 100.0)
    ]
    assert lost[1] >= 0.9 * lost[0] > 0


@pytest.mark.parametrize("norm", NORMS)
def test_it_is_no_weaker_than_foolbox(victim, images, norm):
    x, y = images
    name = "SparseL1DescentAttack" if norm == "l1" else f"{norm.capitalize()}ProjectedGradientDescentAttack"
    rival = Foolbox(name, steps=40)
    threat = Threat(norm, EPS[norm])
    torch.manual_seed(0)
    theirs = victim.predict(rival(victim, x, y, threat)) != y
    ours = victim.predict(attack(APGD(steps=40), victim, x, y, threat)) != y
    assert 0.1 < ours.double().mean() < 0.95
    assert ours.sum() >= theirs.sum()


def test_more_restarts_and_targets_never_lose_an_image(victim, images):
    x, y = images
    threat = Threat("linf", EPS["linf"])
    lost = victim.predict(attack(APGD(steps=10), victim, x, y, threat)) != y
    again = victim.predict(attack(APGD(steps=10, restarts=3), victim, x, y, threat)) != y
    assert (again | ~lost).all()


class Counting(nn.Module):
    """Remembers the log-odds of what it was shown."""

    def __init__(self, model: nn.Module, y: Tensor) -> None:
        super().__init__()
        self.model, self.y, self.seen = model, y, []

    def forward(self, x):
        logits = self.model(x)
        self.seen.append(log_odds(logits.detach(), self.y))
        return logits


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_best_of_all_iterates_is_returned(trained, firm, norm):
    x, y = firm
    threat = Threat(norm, EPS[norm] / 10)
    model = Counting(trained, y)
    watched = Victim(model, own=True)
    x_adv = attack(APGD(steps=30, restarts=2), watched, x, y, threat)
    seen = torch.stack(model.seen)  # nobody is fooled, so that every call has every image
    assert len(seen) == 62
    torch.testing.assert_close(log_odds(watched(x_adv), y), seen.amax(0), rtol=1e-5, atol=1e-5)
    assert (seen.amax(0) > seen[0]).all()


def test_passes_are_counted_and_the_fooled_leave(victim, firm):
    x, y = firm
    n, steps = len(x), 12
    tiny, huge = Threat("l2", 1e-3), Threat("linf", 0.8)
    for norm in NORMS:
        with victim.counted() as cost:
            attack(APGD(steps=steps, restarts=2), victim, x, y, Threat(norm, 1e-3))
        assert (cost.forwards, cost.backwards) == (2 * n * (steps + 1), 2 * n * steps)
    with victim.counted() as cost:
        attack(APGD(steps=steps, targets=3), victim, x, y, tiny)
    assert (cost.forwards, cost.backwards) == (n + 3 * n * (steps + 1), 3 * n * steps)
    with victim.counted() as cost:
        attack(APGD(steps=100, restarts=5), victim, x, y, huge)
    assert cost.forwards < 8 * n


def flat(classes: int = 3, bias: float = 1.0) -> nn.Module:
    layer = nn.Linear(16, classes)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(bias * torch.arange(classes, 0, -1.0))
    return nn.Sequential(nn.Flatten(), layer)


class NoGradient(nn.Module):
    """Passes on what it gets, and a gradient of NaN or zero."""

    def __init__(self, model: nn.Module, way: str) -> None:
        super().__init__()
        self.model, self.way = model, way

    def forward(self, x):
        if self.way == "zero":
            return self.model((x * 32).round() / 32)
        return self.model(x + 0 * (x - x.detach()).abs().sqrt())  # the root's slope at 0 is infinite: 0 * inf


class Watched(nn.Module):
    """Remembers whether anything it was shown, one image at a time, was not of its label."""

    def __init__(self, model: nn.Module, y: Tensor) -> None:
        super().__init__()
        self.model, self.y, self.fooled = model, y, False

    def forward(self, x):
        logits = self.model(x)
        self.fooled |= bool(is_fooled(logits, self.y))
        return logits


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("steps", [1, 12])
def test_no_success_is_thrown_away(trained, images, gradient, steps):
    x, y = images
    model = trained if gradient else NoGradient(trained, "zero")
    plain = Victim(model)
    found = 0
    for i in range(40):
        watched = Watched(model, y[i : i + 1])
        threat = Threat("linf", 0.15 if gradient else 0.4)
        x_adv = attack(APGD(targets=3, steps=steps), Victim(watched, own=True), x[i : i + 1], y[i : i + 1], threat)
        assert bool(plain.predict(x_adv) != y[i]) == watched.fooled
        found += watched.fooled
    assert 5 < found < 40


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_flat_victim_gets_valid_images_back(norm, loss):
    x, y = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(5, dtype=torch.int64)
    threat = Threat(norm, 0.3)
    for targets in (0, 2):
        x_adv = attack(APGD(loss=loss, targets=targets, steps=10), Victim(flat()), x, y, threat)
        assert threat.within(x, x_adv).all()
        assert x_adv.isfinite().all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("way", ["zero", "nan"])
def test_victims_without_gradient_are_searched_at_random(norm, way):
    linear = LinearVictim.random(2, seed=3)
    distance = {"linf": 0.05, "l2": 0.15, "l1": 0.25}[norm]
    x, y = equally_far(linear, norm, distance, 30)
    hidden = Victim(NoGradient(linear.model, way))
    x.requires_grad_(True)
    (grad,) = torch.autograd.grad(hidden(x).sum(), x)
    assert not grad.isfinite().all() if way == "nan" else not grad.any()
    x = x.detach()
    threat = Threat(norm, 2 * distance)
    x_adv = attack(APGD(steps=100), hidden, x, y, threat)
    assert threat.within(x, x_adv).all()
    assert (hidden.predict(x_adv) != y).double().mean() > 0.8


class Broken(nn.Module):
    """NaN logits off the clean image."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x

    def forward(self, x):
        away = (x - self.x[:1]).flatten(1).abs().sum(1, keepdim=True)
        return torch.cat((away, -away), 1) * torch.nan


@pytest.mark.parametrize("norm", NORMS)
def test_nan_logits_give_no_nan_images(norm):
    x = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    threat = Threat(norm, 0.3)
    for targets in (0, 1):
        x_adv = attack(APGD(targets=targets, steps=5), Victim(Broken(x)), x, torch.zeros(4, dtype=torch.int64), threat)
        assert torch.equal(x_adv, x)


def test_one_success_on_a_stochastic_victim_is_not_the_end(trained, images):
    x, y = images
    eot = Victim(trained, remedy=Remedy(draws=2))
    threat = Threat("linf", EPS["linf"])
    with eot.counted() as cost:
        x_adv = attack(APGD(steps=10), eot, x, y, threat)
    assert (cost.forwards, cost.backwards) == (2 * 11 * len(x), 2 * 10 * len(x))
    plain = Victim(trained)
    early = attack(APGD(steps=10), plain, x, y, threat)
    lost = plain.predict(early) != y
    gain = (log_odds(plain(x_adv), y) - log_odds(plain(early), y))[lost]
    assert gain.min() > -1e-4  # it went the same way, and on
    assert gain.mean() > 0.05


@pytest.mark.parametrize("norm", NORMS)
def test_dlr_is_the_margin_where_classes_are_few(norm):
    for classes, targets in ((2, 0), (2, 1), (3, 2)):
        victim = LinearVictim.random(classes, seed=5)
        x, y = victim.images(10)
        threat = Threat(norm, 0.02)
        dlr, margin = (
            attack(APGD(loss=loss, targets=targets, steps=10), victim, x, y, threat) for loss in ("dlr", "margin")
        )
        assert torch.equal(dlr, margin)


def test_more_targets_than_wrong_classes_are_all_of_them():
    victim = LinearVictim.random(3)
    x, y = victim.images(5)
    with victim.counted() as cost:
        attack(APGD(targets=9, steps=4), victim, x, y, Threat("l2", 1e-4))
    assert cost.backwards == 2 * 4 * 5


def test_objectives_are_what_they_say():
    logits = torch.tensor([[3.0, 1.0, 0.5, -2.0], [0.0, 4.0, 1.0, 2.0]])
    y, target = torch.tensor([0, 2]), torch.tensor([2, 0])
    p = logits.double().softmax(1)
    torch.testing.assert_close(
        objective("ce", logits, y, target).double(), torch.logit(p.gather(1, target[:, None])[:, 0])
    )
    torch.testing.assert_close(objective("ce", logits, y).double(), -torch.logit(p.gather(1, y[:, None])[:, 0]))
    assert objective("margin", logits, y).tolist() == [-2, 3]
    assert objective("margin", logits, y, target).tolist() == [-2.5, -1]
    assert objective("dlr", logits, y).tolist() == pytest.approx([-2 / 2.5, 3 / 3])
    assert objective("dlr", logits, y, target).tolist() == pytest.approx([-2.5 / 3.75, -1 / 3.5])
    assert likely_rivals(logits, y, 2).tolist() == [[1, 2], [1, 3]]
    assert likely_rivals(logits, y, 9).shape == (2, 3)


def test_dlr_of_equal_logits_has_a_gradient():
    logits = torch.zeros(1, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(objective("dlr", logits, torch.tensor([0])).sum(), logits)
    assert grad.isfinite().all()
    assert grad.any()


def test_checkpoints_are_those_of_the_paper():
    assert checkpoints(100) == (0, 22, 41, 57, 70, 80, 87, 93, 99)
    assert checkpoints(1) == (0,)
    for steps in (2, 3, 10, 37):
        assert all(0 <= at < steps for at in checkpoints(steps))


def test_fewest_steps_and_no_images(victim, images):
    x, y = images
    for norm in NORMS:
        for steps in (1, 2, 3):
            threat = Threat(norm, EPS[norm])
            assert threat.within(x, attack(APGD(steps=steps), victim, x, y, threat)).all()
        assert attack(APGD(), victim, x[:0], y[:0], Threat(norm, 0.1)).shape == x[:0].shape


@pytest.mark.parametrize(
    "bad",
    [{"loss": "hinge"}, {"targets": -1}, {"steps": 0}, {"restarts": 0}, {"rho": 0.0}, {"rho": 1.0}, {"rho": math.nan}],
)
def test_bad_fields_are_refused(bad):
    with pytest.raises(ValueError, match=r"must be|unknown"):
        APGD(**bad)


def test_what_it_is(victim, images):
    assert (APGD().kind, APGD().family, APGD().access) == ("budget", "iterated", "gradients")
    x, y = images
    with pytest.raises(ValueError, match="no l0 form"):
        APGD()(victim, x, y, Threat("l0", 3))
    with pytest.raises(ValueError, match="needs an eps"):
        APGD()(victim, x, y, Threat("l2"))
