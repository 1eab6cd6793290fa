"""Square: feasible, thrifty, independent of batch and scale, and as strong as scores allow."""

from __future__ import annotations

import dataclasses
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from harness.attacks.line_search import fooled
from harness.attacks.noise import Noise
from harness.attacks.per_image_rng import Draws
from harness.attacks.square import Square, _bump, _Flips, _Moves, _pair, _start, _windows, stretch
from harness.datasets.registry import Dataset
from harness.determinism import seed_everything
from harness.selftest.linear_victim import LinearVictim
from harness.selftest.masked_gradients import CorrugatedLoss, RoundedInputs
from harness.threat import NORMS, Threat, magnitude
from harness.victims.adaptation import Remedy
from harness.victims.victim import Victim

LP = ("linf", "l2", "l1")
EPS = {"linf": 0.1, "l2": 0.5, "l1": 1.5}


def right(victim: Victim, digits: Dataset, n: int = 60) -> tuple[Tensor, Tensor]:
    """Test images that the victim gets right."""
    x, y = digits.test
    keep = (victim.predict(x) == y).nonzero().squeeze(1)[:n]
    return x[keep], y[keep]


def run(attack: Square, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    seed_everything(0)
    return attack(victim, x, y, threat)


@pytest.mark.parametrize(("norm", "factor"), [("linf", 1.3), ("l2", 1.6), ("l1", 2.0)])
def test_linear_victims_fall_a_little_beyond_their_boundary(norm, factor):
    victim = LinearVictim.random(2, shape=(1, 8, 8), seed=3)
    x, y = victim.images(40)
    # along the normal to where all are equally far from the boundary
    distance = victim.distance(x, y, norm)
    eps = float(distance.min())
    x = x + (1 - eps / distance).view(-1, 1, 1, 1) * victim.perturbation(x, y, "l2")
    torch.testing.assert_close(victim.distance(x, y, norm), torch.full((40,), eps), rtol=1e-3, atol=0)
    x_adv = run(Square(queries=1000), victim, x, y, Threat(norm, factor * eps))
    assert (victim.predict(x_adv) != y).sum() >= 38


@pytest.mark.parametrize("norm", LP)
def test_what_lies_within_the_distance_cannot_be_broken_and_is_pushed_as_far_as_it_goes(norm):
    victim = LinearVictim.random(2, shape=(1, 8, 8), seed=3)
    x, y = victim.images(10)
    eps = 0.8 * float(victim.distance(x, y, norm).min())
    x_adv = run(Square(queries=600), victim, x, y, Threat(norm, eps))
    assert torch.equal(victim.predict(x_adv), y)

    def margin(images: Tensor) -> Tensor:
        return victim.boundaries(images, y, norm).amin(1)

    moved = (margin(x) - margin(x_adv)) / eps  # 1 is the optimum
    assert moved.max() <= 1 + 1e-4
    assert moved.mean() > {"linf": 0.99, "l2": 0.7, "l1": 0.5}[norm]


@pytest.mark.parametrize("norm", LP)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 11, 6), (1, 2, 3), (2, 1, 1)])
def test_every_proposal_is_in_ball_and_box(norm, shape):
    victim = LinearVictim.random(3, shape=shape, seed=1, scale=8.0)
    x = torch.rand(12, *shape, generator=torch.Generator().manual_seed(0)).mul(1.5).sub(0.25).clamp(0, 1)
    y = victim.predict(x)
    for eps in (0.0, EPS[norm], 100.0):
        threat = Threat(norm, eps)
        x_adv = run(Square(queries=40), victim, x, y, threat)
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        assert (threat.distance(x, x_adv) <= eps * (1 + 2e-6)).all()
        assert eps > 0 or torch.equal(x_adv, x)


@pytest.mark.parametrize("norm", LP)
def test_an_image_fares_the_same_in_any_batch(norm, trained, digits):
    double = deepcopy(trained).double()

    class Exact(nn.Module):
        """In float64: a change is not kept or dropped by how a batch is rounded."""

        def forward(self, x: Tensor) -> Tensor:
            return double(x.double())

    victim = Victim(Exact(), classes=10)
    x, y = right(victim, digits)
    attack, threat = Square(queries=80, restarts=2, near=0.5), Threat(norm, EPS[norm])
    whole = run(attack, victim, x, y, threat)
    rows = torch.tensor([31, 4, 17, 50])
    torch.testing.assert_close(run(attack, victim, x[rows], y[rows], threat), whole[rows], rtol=0, atol=1e-6)
    assert torch.equal(run(attack, victim, x, y, threat), whole)


def test_queries_are_the_forward_passes_and_the_broken_leave(trained, digits):
    victim = Victim(trained, classes=10)
    x, y = right(victim, digits)
    for attack, eps in ((Square(queries=50), 0.01), (Square(queries=20, restarts=3), 0.01)):
        with victim.counted() as cost:
            x_adv = run(attack, victim, x, y, Threat("linf", eps))
        standing = int((~fooled(victim, x_adv, y)).sum())
        most = attack.queries * attack.restarts
        assert most * standing <= cost.forwards <= most * len(x)
        assert cost.backwards == 0
    with victim.counted() as cost:
        x_adv = run(Square(queries=50), victim, x, y, Threat("linf", 1.0))
    assert fooled(victim, x_adv, y).all()
    assert cost.forwards < 5 * len(x)


def test_more_queries_and_restarts_break_more_and_noise_far_less(trained, digits):
    victim = Victim(trained, classes=10)
    x, y = right(victim, digits, 120)
    threat = Threat("linf", 0.08)

    def robust(attack) -> float:
        seed_everything(0)
        return float((victim.predict(attack(victim, x, y, threat)) == y).float().mean())

    few, many, again = robust(Square(queries=20)), robust(Square(queries=300)), robust(Square(queries=100, restarts=3))
    assert many < few
    assert again < few
    assert many < robust(Noise(distribution="signs", draws=20)) - 0.1


def test_near_misses_alone_are_searched_for_again_and_at_length(trained, digits):
    victim = Victim(trained, classes=10)
    x, y = right(victim, digits, 120)
    threat = Threat("linf", 0.06)
    with victim.counted() as once:
        plain = fooled(victim, run(Square(queries=30), victim, x, y, threat), y)
    with victim.counted() as near:
        again = fooled(victim, run(Square(queries=30, near=0.3), victim, x, y, threat), y)
    with victim.counted() as all_of_them:
        every = fooled(victim, run(Square(queries=30, near=99.0), victim, x, y, threat), y)
    standing = int((~plain).sum())
    assert (again >= plain).all()
    assert plain.sum() < again.sum() <= every.sum()
    assert once.forwards < near.forwards < all_of_them.forwards <= once.forwards + 3 * 150 * standing
    # one call of a model that draws says too little to insist
    draws = Victim(trained, classes=10, remedy=Remedy(draws=2))
    with draws.counted() as cost:
        run(Square(queries=5, near=99.0), draws, x, y, threat)
    assert cost.forwards == 2 * 5 * len(x)


@pytest.mark.parametrize("norm", LP)
def test_what_insists_goes_on_only_while_it_breaks(norm, trained, digits):
    victim = Victim(trained, classes=10)
    x, y = right(victim, digits, 120)
    plain, insisting = Square(queries=30), Square(queries=30).in_cascade()

    def asked(attack: Square, eps: float, x=x, y=y) -> tuple[Tensor, float]:
        with victim.counted() as cost:
            broken = fooled(victim, run(attack, victim, x, y, Threat(norm, eps)), y)
        return broken, cost.forwards

    assert insisting != plain
    assert insisting.draws_as == plain
    assert insisting.in_cascade() == insisting
    broken, once = asked(plain, EPS[norm])
    more, passes = asked(insisting, EPS[norm])
    assert (more >= broken).all()
    assert more.sum() > broken.sum()
    # three runs, and after each at most three of five times the queries
    assert once < passes <= once + 30 * (2 + 3 * 3 * 5) * int((~broken).sum())
    # an image that nothing beside it breaks is asked no further
    left = ~more
    x, y, alone = x[left], y[left], dataclasses.replace(insisting, close=None)
    assert asked(alone, EPS[norm], x, y)[1] <= (30 + 1) * len(x)  # and one to see what fell


@pytest.mark.parametrize("norm", LP)
def test_what_came_close_is_asked_further_where_the_first_run_breaks_none(norm, trained, digits):
    victim, threat = Victim(trained, classes=10), Threat(norm, EPS[norm])
    x, y = right(victim, digits, 120)
    stands = ~fooled(victim, run(Square(queries=30), victim, x, y, threat), y)
    x, y = x[stands], y[stands]

    def asked(close: float | None) -> tuple[int, float]:
        with victim.counted() as cost:
            x_adv = run(Square(queries=30, insist=True, close=close), victim, x, y, threat)
        return int(fooled(victim, x_adv, y).sum()), cost.forwards

    none, once = asked(None)
    assert (none, once) == (0, 30 * len(x))
    assert asked(1e-6) == (0, once)
    some, more = asked(0.5)
    assert some > 0
    assert more > once
    draws = Victim(trained, classes=10, remedy=Remedy(draws=2))
    with draws.counted() as cost:
        run(Square(queries=30, insist=True, close=0.99), draws, x, y, threat)
    assert cost.forwards == 2 * 30 * len(x)


@pytest.mark.parametrize("norm", LP)
@pytest.mark.parametrize("further", [{"near": 99.0}, {"insist": True, "close": 0.99}], ids=["near", "close"])
def test_what_goes_on_goes_on_from_its_best_point(norm, further, trained, digits):
    asked: list[Tensor] = []

    class Recorder(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            asked.append(x.clone())
            return trained(x)

    plain = Victim(trained, classes=10)
    x, y = right(plain, digits, 40)
    threat = Threat(norm, EPS[norm])
    row = (~fooled(plain, run(Square(queries=30), plain, x, y, threat), y)).nonzero()[0]
    best = run(Square(queries=30), plain, x[row], y[row], threat)
    run(Square(queries=30, **further), Victim(Recorder(), classes=10), x[row], y[row], threat)
    assert len(asked) > 30
    assert torch.equal(asked[30], best)


@pytest.mark.parametrize("norm", LP)
def test_what_gives_up_spares_what_came_nowhere_and_changes_nothing_else(norm, trained, digits):
    victim = Victim(trained, classes=10)
    x, y = right(victim, digits, 120)
    threat, attacks = Threat(norm, EPS[norm]), (Square(queries=30), Square(queries=30, give_up=0.5))
    whole, short = (run(attack, victim, x, y, threat) for attack in attacks)
    standing = ~fooled(victim, short, y)
    same = (short == whole).flatten(1).all(1)
    assert same[~standing].all()
    assert not same.all()
    x, y = x[standing], y[standing]
    with victim.counted() as cost:
        run(attacks[1], victim, x, y, threat)
    spared, rest = divmod(30 * len(x) - cost.forwards, 30 - 9)
    assert 0 < (~same).sum() <= spared <= len(x)
    assert rest == 0
    draws = Victim(trained, classes=10, remedy=Remedy(draws=2))
    with draws.counted() as cost:
        run(attacks[1], draws, x, y, threat)
    assert cost.forwards == 2 * 30 * len(x)


@pytest.mark.parametrize("norm", LP)
def test_scale_of_the_logits_does_not_matter(norm, trained, digits):
    class Steep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 128 * trained(x)  # a power of two: not even rounding differs

    plain, steep = Victim(trained, classes=10), Victim(Steep(), classes=10)
    x, y = right(plain, digits)
    attack, threat = Square(queries=60), Threat(norm, EPS[norm])
    assert torch.equal(run(attack, plain, x, y, threat), run(attack, steep, x, y, threat))


@pytest.mark.parametrize("norm", LP)
def test_dead_gradients_are_no_obstacle(norm, trained, digits):
    plain, dead = Victim(trained, classes=10), Victim(RoundedInputs(trained), classes=10)
    x, y = right(dead, digits)
    threat = Threat(norm, 3 * EPS[norm])
    robust = [(v.predict(run(Square(queries=200), v, x, y, threat)) == y).float().mean() for v in (plain, dead)]
    assert robust[1] < 0.2
    assert abs(robust[0] - robust[1]) < 0.1


def test_plateaus_are_crossed():
    class Coarse(nn.Module):
        """Logits in whole numbers: single changes rarely show."""

        def forward(self, x: Tensor) -> Tensor:
            mean = x.flatten(1).mean(1)
            return torch.stack((torch.zeros_like(mean), (8 * (mean - 0.8)).round()), 1)

    victim = Victim(Coarse(), classes=2)
    x = 0.5 + 1e-4 * torch.arange(40).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)  # no two alike, or they draw alike
    y = torch.zeros(40, dtype=torch.int64)
    x_adv = run(Square(queries=400), victim, x, y, Threat("linf", 0.48))
    assert (victim.predict(x_adv) != y).float().mean() > 0.6  # 0.23 if only a larger margin were accepted


def test_a_factor_that_varies_over_image_space_hides_nothing(trained, digits):
    plain, corrugated = Victim(trained, classes=10), Victim(CorrugatedLoss(trained), classes=10)
    x, y = right(plain, digits)
    threat = Threat("linf", 0.1)
    robust = [(v.predict(run(Square(queries=200), v, x, y, threat)) == y).float().mean() for v in (plain, corrugated)]
    assert abs(robust[0] - robust[1]) < 0.1


def test_a_lucky_draw_on_a_stochastic_victim_is_not_the_end(trained, digits):
    victim = Victim(trained, classes=10, remedy=Remedy(draws=2))
    x, y = right(victim, digits, 10)
    with victim.counted() as cost:
        x_adv = run(Square(queries=30), victim, x, y, Threat("linf", 0.3))
    assert cost.forwards == 30 * 2 * 10
    assert fooled(victim, x_adv, y).float().mean() >= 0.8


def test_no_images(trained):
    victim = Victim(trained, classes=10)
    x, y = torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64)
    assert Square()(victim, x, y, Threat("l2", 0.1)).shape == x.shape


@pytest.mark.parametrize("bad", [{"queries": 0}, {"restarts": 0}, {"p_init": 0.0}, {"p_init": 1.5}, {"near": 0.0}])
def test_bad_fields_are_refused(bad):
    with pytest.raises(ValueError, match="must be"):
        Square(**bad)


def test_what_it_is():
    attack = Square()
    assert (attack.kind, attack.access, attack.family) == ("budget", "scores", "score")
    assert attack.supported_norms == LP
    assert set(NORMS) - set(LP) == {"l0"}


def test_schedule_is_the_published_one():
    attack = Square(queries=10000)
    sides = [attack._side(query, 28, 28, 1) for query in (1, 10, 11, 50, 51, 200, 201, 500, 501, 9999)]
    assert sides == [25, 25, 18, 18, 13, 13, 9, 9, 6, 1]
    assert Square(queries=1000)._side(2, 28, 28, 1) == attack._side(20, 28, 28, 1)
    assert attack._side(1, 28, 4, 1) == 4


def test_windows_are_squares_that_reach_every_edge():
    x = torch.rand(400, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    window = _windows(Draws(x).bits(3, 2), x, 3)
    assert window.shape == (400, 3, 1, 9)
    row, column = window // 7, window % 7
    assert torch.equal(row.amax(3) - row.amin(3), torch.full((400, 3, 1), 2))
    assert torch.equal(column.amax(3) - column.amin(3), torch.full((400, 3, 1), 2))
    assert (row.min(), row.max(), column.min(), column.max()) == (0, 4, 0, 6)


def test_a_flip_always_changes_the_image():
    x = torch.rand(200, 1, 4, 4, generator=torch.Generator().manual_seed(0)).round()
    torch.manual_seed(0)
    draws, threat = Draws(x), Threat("linf", 0.2)
    best = _start(x, threat, 1, draws).flatten(2)
    flips = _Flips.drawn(x, threat, 1, draws, 5)
    for number in range(flips.rounds):
        new = flips.made(x, best, number)
        assert torch.equal((new != best).flatten(1).sum(1), torch.ones(200, dtype=torch.int64))
        best = new


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_moves_keep_the_whole_budget(norm):
    x = torch.rand(30, 3, 12, 12, generator=torch.Generator().manual_seed(0)).mul(0.6).add(0.2)
    torch.manual_seed(0)
    draws, threat = Draws(x), Threat(norm, 0.3)
    best = _start(x, threat, 3, draws).flatten(2)
    for side in (9, 3, 1):
        best = _Moves.drawn(x, threat, side, draws, 1).made(x, best, 0)
        torch.testing.assert_close(magnitude(best - x.flatten(2), norm), torch.full((30,), 0.3), rtol=1e-4, atol=0)


@pytest.mark.parametrize("norm", LP)
def test_drawn_together_or_one_by_one_changes_are_the_same(norm, monkeypatch, trained, digits):
    """A thousand queries on images that leave at different ones."""
    x, y = digits.test_sample(40)[1]
    threat = Threat(norm, {"linf": 0.08, "l2": 0.4, "l1": 1.5}[norm])

    def found():
        torch.manual_seed(0)
        return Square(queries=1000, give_up=0.6)(Victim(trained, classes=10), x, y, threat)

    together = found()
    monkeypatch.setattr("harness.attacks.square._AHEAD", 1)
    assert torch.equal(found(), together)


def test_bumps():
    assert torch.allclose(_bump(3, 3), torch.tensor([[0.25] * 3, [0.25, 1.25, 0.25], [0.25] * 3]))
    pair = _pair(5)
    assert (pair[:2] > 0).all()
    assert (pair[2:] < 0).all()
    assert _pair(1).abs().tolist() == [[1.25 - 0.25]]


def test_stretch_gives_back_what_the_box_took():
    x = torch.tensor([0.0, 0.5, 0.5, 0.5]).view(1, 1, 2, 2)
    delta = torch.tensor([-1.0, 1.0, 1.0, 0.0]).view(1, 1, 2, 2)
    length = torch.tensor([0.4])
    for norm in ("l2", "l1"):
        moved = stretch(x, delta, norm, length) - x
        assert moved[0, 0, 0, 0] == 0
        torch.testing.assert_close(magnitude(moved, norm), length, rtol=1e-3, atol=0)
    far = stretch(x, delta, "l1", torch.tensor([50.0]))
    assert far.flatten().tolist() == [0.0, 1.0, 1.0, 0.5]
