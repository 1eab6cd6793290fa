from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from harness.metrics.pairs import Pair
from reports.drawing import png
from reports.overview import gallery


@pytest.mark.parametrize("channels", [1, 3])
def test_png_says_what_the_pixels_say(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (channels, 5, 7))
    decoded = np.asarray(Image.open(io.BytesIO(png.png(image / 255))))
    expected = image[0] if channels == 1 else image.transpose(1, 2, 0)
    np.testing.assert_array_equal(decoded, expected)


def test_png_of_nonsense_is_still_a_png() -> None:
    image = np.array([[[math.nan, math.inf, -math.inf, 7.0, -3.0]]])
    decoded = np.asarray(Image.open(io.BytesIO(png.png(image))))
    assert decoded.tolist() == [[0, 255, 0, 255, 0]]


def test_other_channel_counts_show_the_first() -> None:
    image = np.zeros((2, 2, 2))
    image[1] = 1
    assert np.asarray(Image.open(io.BytesIO(png.png(image)))).max() == 0


@pytest.mark.parametrize(
    ("largest", "factor"), [(0.0, 1), (0.9, 1), (0.5, 1), (0.25, 2), (8 / 255, 10), (1e-6, 1000), (math.nan, 1)]
)
def test_magnification_never_clips(largest: float, factor: int) -> None:
    assert gallery.magnification(np.array([0.0, -largest])) == factor
    assert not largest <= 0.5 or factor * largest <= 0.5


def test_the_difference_is_the_signed_change_around_grey(pair: Callable[..., Pair]) -> None:
    x = np.full((1, 1, 1, 3), 0.5, np.float32)
    x_adv = x + np.array([[[[0.04, 0.0, -0.04]]]], np.float32)
    shown = gallery.pictures(_with(pair([True], [0.04]), x, x_adv))[0]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown.difference.split(",")[1]))))
    assert shown.factor == 10
    np.testing.assert_allclose(pixels[0], [0.9 * 255, 127.5, 0.1 * 255], atol=1)
    assert (shown.label, shown.before, shown.after, shown.broken) == ("zero", "zero", "three", True)
    assert shown.distances == pytest.approx({"linf": 0.04, "l2": 4 / 3})


def test_an_image_that_held_has_no_distance(pair: Callable[..., Pair]) -> None:
    x = np.zeros((1, 1, 2, 2), np.float32)
    shown = gallery.pictures(_with(pair([True], [math.nan]), x, x))[0]
    assert not shown.broken
    assert shown.distances == {}


def test_a_crash_has_no_picture_and_an_invalid_image_names_its_fault(pair: Callable[..., Pair]) -> None:
    made = pair([True, True], [math.nan, math.nan])
    made.samples.loc[0, "crashed"] = True
    made.samples.loc[1, "over_budget"] = True
    crashed, over = gallery.pictures(_with(made, *np.zeros((2, 2, 1, 2, 2), np.float32)))
    assert (crashed.adversarial, crashed.difference, crashed.problem) == ("", "", "crashed")
    assert over.adversarial
    assert over.problem == "over budget"


def test_shows_the_first_attacked_images_in_order(pair: Callable[..., Pair]) -> None:
    images = np.zeros((4, 1, 2, 2), np.float32)
    made = _with(pair([True, False, True, True], [0.1, math.nan, math.nan, 0.1]), images, images)
    assert [shown.index for shown in gallery.pictures(made, limit=2)] == [0, 2]


def test_chooses_the_attack_that_broke_most_at_eps_among_those_with_images(pair: Callable[..., Pair]) -> None:
    images = np.zeros((2, 1, 2, 2), np.float32)
    weak, strong = (_with(pair([True] * 2, far), images, images) for far in ([0.1, 0.9], [0.2, 0.2]))
    bare = pair([True] * 2, [0.01, 0.01])
    assert gallery.choose([weak, strong, bare], "linf", 0.3) is strong
    assert gallery.choose([bare], "linf", 0.3) is None
    assert gallery.choose([weak], "l2", 0.3) is None


def _with(made: Pair, x: np.ndarray, x_adv: np.ndarray) -> Pair:
    samples = made.samples
    kept = {"index": "index", "label": "label", "clean_pred": "clean_pred", "adv_pred": "adv_pred"}
    return Pair(
        made.result, samples, {name: samples[c].to_numpy() for name, c in kept.items()} | {"x": x, "x_adv": x_adv}
    )
