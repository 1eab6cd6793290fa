"""Randomised smoothing of a linear classifier, of which everything is known exactly."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binomtest, norm
from torch import Tensor, nn

from defenses import randomized_smoothing
from defenses.randomized_smoothing import ALPHA, ESTIMATION, FIRST, SELECTION, RandomizedSmoothing, Smoothed
from harness.datasets.registry import DATASETS, Dataset
from harness.determinism import seed_everything
from harness.errors import UserError
from harness.judging.certificates import Certifying
from harness.judging.proposal import Bench
from harness.threat import Threat

SIGMA = 0.25


class Halves(nn.Module):
    """Two classes on either side of a plane at distance ``x[0] - 0.5`` along the first of four pixels."""

    def forward(self, x: Tensor) -> Tensor:
        first = x.flatten(1)[:, 0]
        return torch.stack([first - 0.5, 0.5 - first], 1)


def images(*distances: float) -> Tensor:
    x = torch.full((len(distances), 1, 2, 2), 0.5)
    x[:, 0, 0, 0] = 0.5 + torch.tensor(distances)
    return x


def smoothed(monkeypatch: pytest.MonkeyPatch, draws: int = 2000) -> Smoothed:
    monkeypatch.setattr(randomized_smoothing, "ESTIMATION", draws)
    seed_everything(0)
    return Smoothed(Halves(), SIGMA)


def test_a_radius_never_exceeds_the_true_one_and_comes_near(monkeypatch: pytest.MonkeyPatch) -> None:
    # under noise the classifier stays linear, so that its true radius is the distance to the plane
    distance = torch.tensor([0.05, 0.1, 0.2, 0.3, -0.1, -0.2])
    labels = (distance < 0).long()
    radii = smoothed(monkeypatch).radii(images(*distance.tolist()), labels)
    assert radii.dtype == torch.float64
    assert (radii <= distance.abs()).all()
    assert (radii > distance.abs() - 0.05).all()


def test_the_bound_is_clopper_and_pearsons(monkeypatch: pytest.MonkeyPatch) -> None:
    model = smoothed(monkeypatch, 500)
    counts = torch.tensor([[450, 50], [500, 0], [260, 240], [40, 460]])
    guesses = torch.tensor([[100, 0], [100, 0], [100, 0], [0, 100]])
    monkeypatch.setattr(model, "ballots", lambda x, draws: guesses if draws == SELECTION else counts)
    radii = model.radii(torch.zeros(4, 1, 2, 2), torch.tensor([0, 0, 0, 1])).tolist()
    for radius, count in zip(radii, (450, 500, 260, 460), strict=True):
        low = binomtest(count, 500).proportion_ci(1 - 2 * ALPHA, method="exact").low  # its one-sided end
        assert radius == pytest.approx(SIGMA * norm.ppf(low) if low > 0.5 else -math.inf)
    assert radii[1] == pytest.approx(SIGMA * norm.ppf(ALPHA ** (1 / 500)))
    assert radii[2] == -math.inf  # 260 of 500 prove nothing: it abstains


def test_a_quick_look_proves_what_a_long_one_does_with_fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    model = smoothed(monkeypatch, 10_000)
    draws: list[tuple[int, int]] = []
    asked = model.ballots
    monkeypatch.setattr(model, "ballots", lambda x, n: draws.append((len(x), n)) or asked(x, n))
    # far beyond both, between them, near the smaller from above, below it, at the plane, of another class
    distance = torch.tensor([0.6, 0.35, 0.23, 0.15, 0.01, 0.6])
    labels = torch.tensor([0, 0, 0, 0, 0, 1])
    threats = [Threat("l2", 0.2), Threat("l2", 0.4)]
    found = model.certificates(images(*distance.tolist()), labels, threats, quick=True)
    assert draws == [(6, SELECTION), (6, FIRST), (3, 10_000)]
    assert [one.certified.tolist() for one in found] == [
        [True, True, True, False, False, False],
        [True, False, False, False, False, False],
    ]
    for one, threat in zip(found, threats, strict=True):
        assert threat.eps is not None
        assert (one.margins[:5] <= distance[:5] - threat.eps).all()


def test_each_of_two_looks_has_half_of_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    model = smoothed(monkeypatch, 10_000)
    monkeypatch.setattr(model, "ballots", lambda x, n: torch.tensor([[n, 0]]).repeat(len(x), 1))
    x, y = torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64)
    for largest, draws in ((0.1, FIRST), (0.8, 10_000)):
        assert float(model.radii(x, y, (0.05, largest))) == pytest.approx(SIGMA * norm.ppf((ALPHA / 2) ** (1 / draws)))


def test_another_class_than_the_true_one_has_no_radius(monkeypatch: pytest.MonkeyPatch) -> None:
    assert smoothed(monkeypatch).radii(images(0.3), torch.tensor([1])).tolist() == [-math.inf]


def test_a_certificate_takes_the_norm_and_the_referees_tolerance_into_account(monkeypatch: pytest.MonkeyPatch) -> None:
    model = smoothed(monkeypatch)
    monkeypatch.setattr(model, "radii", lambda x, y, between: torch.tensor([0.4, 0.2, 0.39999], dtype=torch.float64))
    threats = [Threat("l2", 0.4), Threat("l2", 0.2), Threat("linf", 0.1), Threat("linf", 0.19), Threat("l1", 0.3)]
    found = model.certificates(torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64), threats)
    assert [one.certified.tolist() for one in found] == [
        [False, False, False],  # the referee grants a little more than eps
        [True, False, True],
        [True, False, True],  # four pixels: a radius of 0.2 in L2
        [True, False, True],
        [True, False, True],
    ]
    assert found[2].margins[0] == pytest.approx(0.2, abs=1e-4)


def test_nothing_is_drawn_for_radii_that_no_image_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = smoothed(monkeypatch, 500), []
    reach = SIGMA * float(norm.ppf(ALPHA ** (1 / 500)))

    def radii(x: Tensor, _: Tensor, between: None) -> Tensor:
        asked.append(len(x))
        return torch.full((len(x),), reach, dtype=torch.float64)

    monkeypatch.setattr(model, "radii", radii)
    x, y = torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64)
    far = model.certificates(x, y, [Threat("l2", 1.001 * reach), Threat("linf", 0.501 * reach)])
    assert not asked
    assert [(one.certified.tolist(), one.margins.tolist()) for one in far] == 2 * [([False] * 3, [-math.inf] * 3)]
    assert model.certificates(x, y, []) == []
    near = model.certificates(x, y, [Threat("l2", 0.999 * reach), Threat("l2", 2 * reach)])
    assert asked == [3]
    assert [one.certified.all().item() for one in near] == [True, False]


def test_every_draw_is_one_ballot_whatever_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(randomized_smoothing, "ROWS", 7)
    ballots = smoothed(monkeypatch).ballots(images(1.5, -1.5, 0.0), 50)
    assert ballots.sum(1).tolist() == [50, 50, 50]
    assert ballots[:2].tolist() == [[50, 0], [0, 50]]
    assert 5 < int(ballots[2, 0]) < 45


def test_the_referee_votes_and_attacks_average() -> None:
    remedy = RandomizedSmoothing().remedy
    assert remedy.stochastic
    bench = Bench.of(Smoothed(Halves(), SIGMA), 2, "cpu", remedy)
    x = images(0.5, -0.5)
    assert bench.referee.predict(x).tolist() == [0, 1]
    assert bench.referee.ballots(x).sum(1).tolist() == [randomized_smoothing.VOTES] * 2
    assert torch.equal(bench.referee.ballots(x), bench.referee.ballots(x))
    bench.attacked(x)
    assert bench.attacked.cost.forwards == 2 * randomized_smoothing.EOT


def test_it_trains_under_noise_and_says_what_it_proves(digits: Dataset) -> None:
    seed_everything(0)
    model, _ = RandomizedSmoothing(epochs=15, lr=5e-3).fit("mlp-32", digits)
    assert isinstance(model, Certifying)
    assert model.certificate_passes == SELECTION + ESTIMATION
    x, y = digits.test.x[:20], digits.test.y[:20]
    (found,) = model.certificates(x, y, [Threat("l2", 0.1)])
    assert found.certified.float().mean() > 0.7
    plain = RandomizedSmoothing(epochs=0).build("mlp-32", DATASETS["digits"])
    plain.load_state_dict(model.state_dict())  # a checkpoint holds all of it


def test_noise_is_needed() -> None:
    with pytest.raises(UserError, match="randomized-smoothing: sigma must be positive"):
        RandomizedSmoothing(sigma=0.0)
