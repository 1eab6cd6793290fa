from __future__ import annotations

import pytest
import torch

from harness.attacks.noise import Gaussian, Noise
from harness.determinism import seed_everything
from harness.selftest.linear_victim import LinearVictim
from harness.threat import Threat, magnitude

KINDS = ("gaussian", "uniform", "signs")


@pytest.mark.parametrize("distribution", KINDS)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_length_is_exactly_eps_inside_the_box(distribution, norm):
    victim = LinearVictim.random(3)
    x, y = victim.images(20)
    x_adv = Noise(distribution=distribution)(victim, x, y, Threat(norm, 0.07))
    torch.testing.assert_close(magnitude(x_adv - x, norm), torch.full((20,), 0.07), rtol=1e-4, atol=0)


@pytest.mark.parametrize("distribution", KINDS)
def test_box_and_budget_are_kept_at_the_corners(distribution):
    victim = LinearVictim.random(3)
    x = torch.rand(30, 1, 4, 4).round()
    for norm, eps in (("linf", 0.4), ("l2", 2.0), ("l1", 9.0)):
        x_adv = Noise(distribution=distribution)(victim, x, victim.predict(x), Threat(norm, eps))
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        assert Threat(norm, eps).within(x, x_adv).all()


def test_gaussian_has_no_preferred_direction():
    seed_everything(0)
    victim = LinearVictim.random(2)
    x = torch.full((20_000, 1, 4, 4), 0.5)
    r = (Noise()(victim, x, torch.zeros(20_000, dtype=torch.int64), Threat("l2", 0.4)) - x).flatten(1)
    covariance = r.T @ r / len(r)
    torch.testing.assert_close(covariance, 0.01 * torch.eye(16), rtol=0, atol=5e-4)
    assert r.mean(0).abs().max() < 5e-3


def test_one_draw_asks_nothing_and_more_are_better():
    victim = LinearVictim.random(2, seed=5)
    x, y = victim.images(50)
    threat = Threat("l2", 0.3)
    with victim.counted() as cost:
        seed_everything(1)
        once = Noise()(victim, x, y, threat)
    assert cost.forwards == 0
    assert Noise().access == "none"
    with victim.counted() as cost:
        seed_everything(1)
        often = Noise(draws=20)(victim, x, y, threat)
    assert cost.forwards == 20 * 50
    assert cost.backwards == 0
    assert Noise(draws=20).access == "scores"

    def margin(images):
        z = victim(images)
        return (z.gather(1, (1 - y)[:, None]) - z.gather(1, y[:, None])).squeeze(1)

    assert (margin(often) >= margin(once)).all()
    assert (margin(often) > margin(once)).float().mean() > 0.8
    assert (victim.predict(once) != y).float().mean() <= (victim.predict(often) != y).float().mean()


def test_seed_decides_everything():
    victim = LinearVictim.random(3)
    x, y = victim.images(6)
    runs = []
    for seed in (4, 4, 5):
        seed_everything(seed)
        runs.append(Noise(draws=3)(victim, x, y, Threat("linf", 0.1)))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_zero_eps_and_no_images():
    victim = LinearVictim.random(3)
    x, y = victim.images(4)
    assert torch.equal(Noise()(victim, x, y, Threat("l2", 0.0)), x)
    assert Noise(draws=2)(victim, x[:0], y[:0], Threat("l2", 0.1)).shape == (0, 1, 4, 4)


def test_bad_fields_are_refused():
    with pytest.raises(ValueError, match="gaussian, uniform, signs"):
        Noise(distribution="cauchy")
    with pytest.raises(ValueError, match="draws"):
        Noise(draws=0)


@pytest.mark.parametrize("std", [0.1, 0.3])
def test_noise_of_a_standard_deviation(std):
    victim = LinearVictim.random(3)
    x, y = victim.images(2000)
    seed_everything(0)
    with victim.counted() as cost:
        free = Gaussian(std=std)(victim, x, y, Threat("l2"))
    assert cost.forwards == 0
    noise = (free - x).flatten()
    assert float(noise.std()) == pytest.approx(std, rel=0.02)
    assert abs(float(noise.mean())) < 0.01
    share = float((noise.abs() < std).float().mean())
    assert share == pytest.approx(0.6827, abs=0.01)
    seed_everything(0)
    assert torch.equal(Gaussian(std=std, clip=True)(victim, x, y, Threat("l2")), free.clamp(0, 1))


def test_only_clipped_noise_stays_in_the_box():
    attack = Gaussian(std=0.1)
    assert (attack.kind, attack.family, attack.access, attack.boxed) == ("minimal", "noise", "none", False)
    assert Gaussian(std=0.1, clip=True).boxed
    assert attack.label == "gaussian(std=0.1)"
    x = torch.ones(4, 1, 4, 4)
    assert Gaussian(std=0.3)(LinearVictim.random(3), x, torch.zeros(4, dtype=torch.int64), Threat("l2")).max() > 1


@pytest.mark.parametrize("std", [0.0, -0.1, float("inf"), float("nan")])
def test_no_standard_deviation(std):
    with pytest.raises(ValueError, match="std must be positive"):
        Gaussian(std=std)
