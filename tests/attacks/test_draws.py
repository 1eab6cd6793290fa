"""Random streams of images: theirs wherever they are, and random."""

from __future__ import annotations

import pytest
import torch

from harness.attacks.per_image_rng import Draws, as_integers, as_signs, as_uniform


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def streams(x: torch.Tensor, seed: int = 0) -> Draws:
    torch.manual_seed(seed)
    return Draws(x)


def test_an_image_draws_the_same_in_any_batch(x: torch.Tensor) -> None:
    everybody = streams(x).normal(5, 2)
    rows = torch.tensor([7, 3, 50])
    torch.testing.assert_close(streams(x[rows]).normal(5, 2), everybody[rows], rtol=0, atol=0)


def test_a_part_goes_on_where_the_whole_is(x: torch.Tensor) -> None:
    whole = streams(x)
    first, second = whole.uniform(4), whole.uniform(4)
    again = streams(x)
    again.uniform(4)
    mask = torch.arange(len(x)) % 3 == 0
    assert torch.equal(again.of(mask).uniform(4), second[mask])
    assert torch.equal(again.uniform(4), second), "drawing from a part moved the whole"
    assert not torch.equal(first, second)


def test_few_at_a_time_are_those_of_many_at_once(x: torch.Tensor) -> None:
    """Also where images leave in between, and of whatever kind the numbers are."""
    few, many, parts = streams(x), streams(x).bits(40, 5), []
    for number in range(40):
        parts.append((few.uniform(3), few.signs(2), many[: len(few), number]))
        few = few.of(torch.arange(len(few)) < len(few) - 1)
    for uniform, signs, bits in parts:
        assert torch.equal(uniform, as_uniform(bits[:, :3]))
        assert torch.equal(signs, as_signs(bits[:, 3:]))


def test_seed_image_and_fork_make_the_stream(x: torch.Tensor) -> None:
    base = streams(x).uniform(8)
    assert not torch.equal(base, streams(x, seed=1).uniform(8))
    assert len(base.unique(dim=0)) == len(x)
    draws = streams(x)
    assert not torch.equal(draws.fork(0).uniform(8), draws.fork(1).uniform(8))
    assert torch.equal(draws.fork(1).uniform(8), draws.fork(1).uniform(8))
    assert torch.equal(draws.uniform(8), base), "forking moved the stream"


def test_images_that_differ_in_one_pixel_have_unrelated_streams(x: torch.Tensor) -> None:
    near = x.clone()
    near[:, 0, 0, 0] += 1e-3
    a, b = streams(x).normal(400), streams(near).normal(400)
    correlation = (a * b).mean(1)
    assert correlation.abs().max() < 5 / 400**0.5


def test_draws_have_the_moments_they_claim(x: torch.Tensor) -> None:
    draws = streams(x)
    uniform, normal, signs = draws.uniform(2000), draws.normal(2000), draws.signs(2000)
    total = uniform.numel()
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 5 / (12 * total) ** 0.5
    assert abs(normal.mean()) < 5 / total**0.5
    assert abs(normal.var() - 1) < 5 * (2 / total) ** 0.5
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 5 / total**0.5
    histogram = torch.histc(uniform, 100, 0, 1)
    assert (histogram - total / 100).abs().max() < 6 * (total / 100) ** 0.5


def test_whole_numbers_fill_their_range(x: torch.Tensor) -> None:
    bits = streams(x).bits(200)
    assert set(as_integers(bits, 3).unique().tolist()) == {0, 1, 2}
    assert not as_integers(bits, 1).any()
    counts = as_integers(bits, 5).flatten().bincount()
    assert (counts - bits.numel() / 5).abs().max() < 6 * (bits.numel() / 5) ** 0.5
