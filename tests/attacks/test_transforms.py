"""Transformations: exact where they are defined exactly, and honest about what they are asked."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from harness.attacks import corruptions, spatial
from harness.attacks.corruptions import (
    Blind,
    BlurCorruption,
    Brightness,
    Jpeg,
    LowContrast,
    NoiseCorruption,
    Quantise,
    SaltAndPepper,
    Transformation,
)
from harness.attacks.spatial import Rotation, Spatial, Translation, moved
from harness.attacks.toolkits.foolbox import Foolbox
from harness.datasets.registry import Dataset
from harness.determinism import seed_everything
from harness.errors import UserError
from harness.judging.referee import judge
from harness.selftest.linear_victim import LinearVictim
from harness.threat import Threat
from harness.victims.victim import Victim

ANY = Threat("linf", 1.0)
ALL: list[Transformation] = [
    NoiseCorruption(std=0.1),
    SaltAndPepper(share=0.1),
    BlurCorruption(sigma=0.05),
    LowContrast(factor=0.5),
    Brightness(change=0.2),
    Brightness(change=-0.2),
    Quantise(levels=3),
    Jpeg(quality=30),
    Rotation(degrees=20),
    Translation(shift=0.1),
    Spatial(degrees=20, shift=0.1, angles=3, shifts=3),
]
EVERY = pytest.mark.parametrize("attack", ALL, ids=lambda attack: attack.label)
SHAPES = pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 9, 14)], ids=str)


def images(n: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Smooth images that use the whole box."""
    coarse = torch.rand(n, shape[0], 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(1.4 * coarse - 0.2, shape[1:], mode="bilinear").clamp(0, 1)


def apply(attack: Blind, x: Tensor, seed: int = 0) -> Tensor:
    seed_everything(seed)
    victim = LinearVictim.random(2, (1, 1, 1))
    return attack(victim, x, torch.zeros(len(x), dtype=torch.int64), ANY)


# ---------------------------------------------------------------- what is true of every one


def test_the_list_above_is_complete() -> None:
    found = {
        kind
        for module in (corruptions, spatial)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Transformation) and "name" in vars(kind)
    }
    assert {type(attack) for attack in ALL} == found
    assert len({kind.name for kind in found}) == len(found)


@EVERY
@SHAPES
def test_every_image_is_changed_and_fair(attack: Transformation, shape: tuple[int, int, int]) -> None:
    victim = LinearVictim.random(10, shape)
    x = images(12, shape)
    y = victim.predict(x)
    before = x.clone()
    seed_everything(0)
    with victim.counted() as cost:
        x_adv = attack(victim, x, y, ANY)
    assert torch.equal(x, before)
    assert x_adv.dtype == torch.float32
    assert judge(victim, x, y, x_adv, ANY).valid.all()
    assert (x_adv != x).flatten(1).any(1).all()
    assert (attack.access, attack.family) == ("decisions" if cost.forwards else "none", "transformation")
    assert cost.backwards == 0
    seed_everything(0)
    assert torch.equal(attack(victim, x, y, ANY), x_adv)
    assert attack(victim, x[:0], y[:0], ANY).shape == (0, *shape)


@EVERY
def test_an_image_meets_the_same_in_any_batch(attack: Transformation) -> None:
    victim = LinearVictim.random(10, (3, 16, 16))
    x = images(40, (3, 16, 16))
    y = victim.predict(x)
    results = []
    for rows in (torch.arange(40), torch.tensor([31, 4]), torch.tensor([31])):
        seed_everything(7)
        results.append(attack(victim, x[rows], y[rows], ANY))
    torch.testing.assert_close(results[1], results[0][[31, 4]], rtol=0, atol=1e-6)
    torch.testing.assert_close(results[2], results[0][[31]], rtol=0, atol=1e-6)


@EVERY
def test_a_threat_that_allows_less_than_every_image_is_refused(attack: Transformation) -> None:
    attack.check(ANY)
    with pytest.raises(UserError, match=r"keeps no eps: ask for linf 1, got linf 0\.3"):
        attack.check(Threat("linf", 0.3))
    with pytest.raises(ValueError, match="has no l2 form; choose from linf"):
        attack.check(Threat("l2", 1.0))
    with pytest.raises(ValueError, match="needs an eps"):
        attack.check(Threat("linf"))


@EVERY
def test_the_label_names_the_severity(attack: Transformation) -> None:
    for field in dataclasses.fields(attack):
        if field.default is dataclasses.MISSING:
            assert f"{field.name}={getattr(attack, field.name):g}" in attack.label


BAD = [
    (NoiseCorruption, "std", (0.0, -0.1, math.inf, math.nan)),
    (SaltAndPepper, "share", (0.0, 1.1, math.nan)),
    (BlurCorruption, "sigma", (0.0, 1.1)),
    (LowContrast, "factor", (-0.1, 1.0)),
    (Brightness, "change", (0.0, 1.1, -1.1)),
    (Quantise, "levels", (1, 256)),
    (Jpeg, "quality", (0, 101)),
    (Rotation, "degrees", (0.0, 181.0)),
    (Translation, "shift", (0.0, 1.1)),
]


@pytest.mark.parametrize(("kind", "field", "values"), BAD, ids=lambda value: getattr(value, "name", None))
def test_severities_out_of_range(kind: type[Transformation], field: str, values: tuple[float, ...]) -> None:
    for value in values:
        with pytest.raises(UserError, match=f"{field} must be"):
            kind(**{field: value})


def test_bad_grids() -> None:
    for bad in ({"degrees": -1}, {"shift": 2}, {"angles": 0}, {"shifts": 0}):
        with pytest.raises(UserError, match=f"{next(iter(bad))}.* must be"):
            Spatial(**{"degrees": 10, "shift": 0.1, **bad})


# ---------------------------------------------------------------- one pixel at a time


def test_gaussian_noise_has_the_std_asked_for() -> None:
    x = torch.full((50, 3, 20, 20), 0.5) + torch.arange(50).view(-1, 1, 1, 1) / 1000
    noise = apply(NoiseCorruption(std=0.05), x) - x
    total = noise.numel()
    assert abs(noise.std() / 0.05 - 1) < 5 / math.sqrt(2 * total)
    assert abs(noise.mean()) < 5 * 0.05 / math.sqrt(total)
    assert len(noise[:, 0, 0, 0].unique()) == 50
    assert not torch.equal(apply(NoiseCorruption(std=0.05), x, seed=1), x + noise)


def test_salt_and_pepper_hits_the_share_asked_for_in_all_channels() -> None:
    x = 0.5 + 0.2 * (images(60, (3, 20, 20)) - 0.5)
    x_adv = apply(SaltAndPepper(share=0.2), x)
    black, white = (x_adv == 0), (x_adv == 1)
    assert torch.equal(x_adv[~(black | white)], x[~(black | white)])
    for hit in (black, white):
        assert torch.equal(hit, hit[:, :1].expand_as(hit))
        assert abs(hit[:, 0].float().mean() - 0.1) < 5 * math.sqrt(0.09 / (60 * 400))


def test_contrast_moves_towards_the_mean_of_the_image() -> None:
    x = images(10, (3, 9, 14))
    mean = x.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(apply(LowContrast(factor=0), x), mean.expand_as(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(apply(LowContrast(factor=0.25), x), 0.75 * mean + 0.25 * x, rtol=0, atol=1e-6)


def test_brightness_is_a_constant_until_the_box_ends() -> None:
    x = images(10, (1, 8, 8))
    assert torch.equal(apply(Brightness(change=0.25), x), (x + 0.25).clamp(max=1))
    assert torch.equal(apply(Brightness(change=-0.25), x), (x - 0.25).clamp(min=0))


def test_quantise_takes_the_nearest_level() -> None:
    x = torch.tensor([0.0, 0.24, 0.26, 0.5, 0.74, 0.76, 1.0]).view(1, 1, 1, 7)
    expected = torch.tensor([0.0, 0.0, 0.5, 0.5, 0.5, 1.0, 1.0]).view(1, 1, 1, 7)
    assert torch.equal(apply(Quantise(levels=3), x), expected)


# ---------------------------------------------------------------- blur and JPEG


@pytest.mark.parametrize(("shape", "sigma"), [((1, 8, 8), 0.1), ((3, 32, 32), 0.05), ((1, 9, 14), 0.5)], ids=str)
def test_blur_is_a_gaussian_in_sides_of_the_image(shape: tuple[int, int, int], sigma: float) -> None:
    x = images(5, shape)
    pixels = sigma * min(shape[1:])
    expected = ndimage.gaussian_filter(x.double().numpy(), (0, 0, pixels, pixels), mode="nearest", truncate=4.0)
    torch.testing.assert_close(apply(BlurCorruption(sigma=sigma), x), torch.tensor(expected).float(), rtol=0, atol=1e-6)


def test_blur_leaves_a_constant_image_alone() -> None:
    x = torch.full((2, 3, 8, 8), 0.7)
    torch.testing.assert_close(apply(BlurCorruption(sigma=0.3), x), x, rtol=0, atol=1e-6)


@SHAPES
def test_jpeg_of_the_best_quality_loses_next_to_nothing(shape: tuple[int, int, int]) -> None:
    x = images(8, (1, *shape[1:])).expand(-1, shape[0], -1, -1)  # grey: colour is stored at half the resolution
    error = [(apply(Jpeg(quality=quality), x) - x).abs() for quality in (100, 50, 5)]
    assert error[0].max() <= 2 / 255
    assert error[0].mean() < error[1].mean() < error[2].mean()


def test_jpeg_keeps_colours_and_places() -> None:
    x = torch.zeros(3, 3, 16, 24)
    for channel in range(3):
        x[channel, channel, :, : 8 * channel + 8] = 1
    error = (apply(Jpeg(quality=95), x) - x).abs().amax((0, 1, 2))
    edges = torch.tensor([7, 8, 15, 16])
    assert error[edges].max() < 0.3
    assert error.index_fill(0, edges, 0).max() < 0.01
    with pytest.raises(UserError, match="1 or 3 channels, got 2"):
        apply(Jpeg(quality=95), x[:, :2])


# ---------------------------------------------------------------- rotations and shifts


@pytest.mark.parametrize("side", [7, 8])
def test_quarter_turns_and_no_turn(side: int) -> None:
    x = images(4, (2, side, side))
    still = torch.zeros(1)
    for quarters in range(4):
        turned = moved(x, torch.tensor([90.0 * quarters]), still, still)
        torch.testing.assert_close(turned, x.rot90(quarters, (2, 3)), rtol=0, atol=1e-5)


def test_a_shift_by_whole_pixels_is_a_shifted_copy() -> None:
    x = images(3, (1, 8, 10))
    down, right = torch.tensor([0.25, 0.0, -0.125]), torch.tensor([0.1, -0.3, 0.0])
    shifted = moved(x, torch.zeros(1), down, right)
    expected = torch.zeros_like(x)
    expected[0, :, 2:, 1:] = x[0, :, :-2, :-1]
    expected[1, :, :, :-3] = x[1, :, :, 3:]
    expected[2, :, :-1] = x[2, :, 1:]
    torch.testing.assert_close(shifted, expected, rtol=0, atol=1e-5)


def test_each_image_is_turned_and_then_shifted_its_own_way() -> None:
    x = images(6, (1, 9, 14))
    degrees, down, right = (
        torch.linspace(-100, 140, 6),
        torch.linspace(-0.2, 0.3, 6),
        torch.linspace(0.25, -0.1, 6),
    )
    found = moved(x, degrees, down, right)
    centre = np.array([4.0, 6.5])
    for image, result, angle, *shift in zip(x, found, degrees, down, right, strict=True):
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        back = np.array([[cos, sin], [-sin, cos]])  # in (row, column) with rows downwards
        offset = centre - back @ (centre + np.array([9 * shift[0], 14 * shift[1]]))
        expected = ndimage.affine_transform(
            image[0].double().numpy(), back, offset, order=1, mode="grid-constant", cval=0.0
        )
        torch.testing.assert_close(result[0], torch.tensor(expected).float(), rtol=0, atol=1e-4)


def spots(n: int, side: int = 64) -> Tensor:
    """A spot right of the centre, of another brightness in each image: equal images would draw the same."""
    place = torch.arange(side) - (side - 1) / 2
    spot = torch.exp(-((place - 12) ** 2).view(1, -1) / 8 - (place**2).view(-1, 1) / 8)
    return torch.linspace(0.5, 1, n).view(-1, 1, 1, 1) * spot


def centroid(x: Tensor) -> Tensor:
    """Where an image's mass lies: (rightwards, upwards) from the centre in pixels, (N, 2)."""
    place = torch.arange(x.shape[-1]) - (x.shape[-1] - 1) / 2
    mass = x.sum((1, 2, 3))
    right = (x.sum((1, 2)) * place).sum(1) / mass
    up = -(x.sum((1, 3)) * place).sum(1) / mass
    return torch.stack([right, up], dim=1)


def assert_uniform(drawn: Tensor, reach: float) -> None:
    assert drawn.abs().max() <= reach * 1.001
    assert abs(drawn.mean()) < 5 * reach / math.sqrt(3 * len(drawn))
    share = (drawn / reach + 1) / 2
    gap = share.sort().values - (torch.arange(len(drawn)) + 0.5) / len(drawn)
    assert gap.abs().max() < 2 / math.sqrt(len(drawn))  # Kolmogorov and Smirnov, beyond one in a thousand


def test_rotation_draws_an_angle_for_each_image() -> None:
    right, up = centroid(apply(Rotation(degrees=40), spots(200))).unbind(1)
    assert_uniform(torch.rad2deg(torch.atan2(up, right)), 40)


def test_translation_draws_both_directions_for_each_image() -> None:
    x = spots(200)
    right, up = (centroid(apply(Translation(shift=0.1), x)) - centroid(x)).unbind(1)
    assert_uniform(right, 6.4)
    assert_uniform(up, 6.4)
    assert abs(torch.corrcoef(torch.stack([right, up]))[0, 1]) < 0.3


# ---------------------------------------------------------------- the worst of a grid


def test_the_grid_is_complete_and_the_mildest_comes_first() -> None:
    grid = Spatial(degrees=30, shift=0.1).grid()
    assert len(grid) == len(set(grid)) == 31 * 5 * 5
    assert grid[0] == (0, 0, 0)
    assert {abs(value) for value in grid[-1]} == {30, 0.1}
    assert sorted({degrees for degrees, _, _ in grid}) == pytest.approx([2 * i - 30 for i in range(31)])
    assert Spatial(degrees=30, shift=0.1, angles=1, shifts=1).grid() == [(0, 0, 0)]


class Right(nn.Module):
    """Class 1 for images with light in their last two columns, else class 0."""

    def forward(self, x: Tensor) -> Tensor:
        light = x[..., -2:].sum((1, 2, 3)) - 0.5
        return torch.stack([-light, light], dim=1)


def test_the_first_try_that_fools_is_kept_and_the_last_one_where_none_does() -> None:
    x = torch.zeros(3, 1, 8, 8)
    x[0, ..., 2] = x[1, ..., 0] = x[2, ..., 7] = 1
    victim, y = Victim(Right(), classes=2), torch.zeros(3, dtype=torch.int64)
    with victim.counted() as cost:
        x_adv = Spatial(degrees=0, shift=0.5, angles=1, shifts=3)(victim, x, y, ANY)
    still, half = torch.zeros(1), torch.tensor([0.5])
    expected = torch.cat([moved(x[:1], still, still, half), moved(x[1:2], still, half, half), x[2:]])
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-5)
    assert (victim.predict(x_adv) == torch.tensor([1, 0, 1])).all()
    # nowhere: all three; up, left, right: two; the five that are left: one
    assert cost.forwards == 3 + 3 * 2 + 5


def test_angles_alone_fool_what_foolbox_finds(digits: Dataset, trained: nn.Module) -> None:
    victim = Victim(trained)
    _, sample = digits.test_sample(200)
    ours = Spatial(degrees=30, shift=0, angles=11, shifts=1)(victim, sample.x, sample.y, ANY)
    options = {"max_rotation": 30.0, "num_rotations": 11, "max_translation": 0.0, "num_translations": 1}
    theirs = Foolbox("SpatialAttack", **options)(victim, sample.x, sample.y, Threat("linf"))
    fooled = [victim.predict(x_adv) != sample.y for x_adv in (ours, theirs)]
    assert (fooled[0] != fooled[1]).sum() <= 1  # on a boundary the last bit decides
    assert 40 < fooled[0].sum() < 200
