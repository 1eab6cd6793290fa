"""The parts of Auto-PGD: the projection with a certificate, the schedules step by step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.attacks._apgd_l1 import Sparse, project_l1_box
from harness.attacks._apgd_linf_l2 import Dense, checkpoints
from harness.attacks._apgd_state import Front
from harness.attacks.apgd import APGD
from harness.attacks.losses import objective
from harness.selftest.linear_victim import LinearVictim
from harness.threat import Threat, magnitude
from harness.victims.victim import Victim


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
    x_adv = APGD(loss="margin")(victim, x, y, threat)
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
    torch.manual_seed(0)
    x_adv = APGD(loss="margin")(Victim(Hill(top)), x, torch.zeros(1, dtype=torch.int64), Threat(norm, eps))
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


def test_a_quarter_of_a_step_goes_the_way_of_the_last_unless_the_image_was_sent_back():
    x = torch.full((1, 1, 1, 1), 0.5)
    pace = Dense.begin(x, Threat("linf", 0.4), 100, 0.75)
    pace.size = torch.tensor([0.04])
    front = Front.at(x, torch.zeros(1, dtype=torch.int64), None, x.clone())
    for slope, back, reached in ((1, False, 0.54), (-1, False, 0.52), (-1, False, 0.485), (-1, True, 0.50)):
        # the best point is the first that was reached, 0.54
        loss = torch.tensor([float(front.now) == pytest.approx(0.54)]).float()
        front.note(loss, loss, torch.full_like(x, slope))
        front.back(torch.tensor([back]))
        front.grad = torch.full_like(x, slope)
        front.step(pace.move(front))
        assert front.now.item() == pytest.approx(reached)


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


def test_checkpoints_are_those_of_the_paper():
    assert checkpoints(100) == (0, 22, 41, 57, 70, 80, 87, 93, 99)
    assert checkpoints(1) == (0,)
    for steps in (2, 3, 10, 37):
        assert all(0 <= at < steps for at in checkpoints(steps))
