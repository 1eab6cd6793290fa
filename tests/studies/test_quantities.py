from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.studies.quantities import QUANTITIES, gaussian_model, high_frequency, linear_density

RNG = np.random.default_rng(0)


def frame(distances: Any, wrong: int = 0, missed: int = 0) -> pd.DataFrame:
    """Judged images: those with a distance, then some without an adversarial, then some that are wrong as they are."""
    n = len(distances)
    total = n + missed + wrong
    found = np.arange(total) < n
    right = np.arange(total) < n + missed
    return pd.DataFrame(
        {
            "label": 0,
            "clean_pred": np.where(right, 0, 1),
            "clean_correct": right,
            "attacked": right,
            "adv_pred": np.where(found, 1, 0),
            "adversarial": found,
            "l2": np.where(found, np.resize(np.asarray(distances, float), total), np.nan),
        }
    )


def read(quantity: str, samples: pd.DataFrame, **settings: Any) -> float:
    return float(QUANTITIES[quantity].read(samples, settings).mean())


def test_the_models_error_is_that_of_simulated_noise() -> None:
    samples = frame(RNG.normal(0.5, 0.2, 20_000), wrong=5_000)
    for std in (0.1, 0.3):
        eta = RNG.normal(0, std, (50, 20_000))
        crossed = (eta >= samples["l2"].to_numpy()[:20_000]).mean()
        expected = 0.2 + 0.8 * crossed
        assert gaussian_model(samples, std) == pytest.approx(expected, abs=0.003)
        assert read("gaussian_model", samples, std=std) == gaussian_model(samples, std)


@pytest.mark.parametrize(
    ("miss", "mean", "spread", "std", "printed"),
    [
        (0.0602, 0.2744, 0.1511, 0.1, 0.1212),
        (0.0602, 0.2744, 0.1511, 0.3, 0.2547),
        (0.0629, 0.4722, 0.2531, 0.1, 0.1016),
        (0.0629, 0.4722, 0.2531, 0.3, 0.1701),
        (0.0893, 1.2718, 0.6654, 0.1, 0.1161),
        (0.0893, 1.2718, 0.6654, 0.3, 0.1263),
    ],
)
def test_table_8_follows_from_table_6(miss: float, mean: float, spread: float, std: float, printed: float) -> None:
    n = 10_000
    wrong = round(miss * n)
    normal = RNG.standard_normal(n - wrong)
    normal = (normal - normal.mean()) / normal.std(ddof=1)
    assert gaussian_model(frame(mean + spread * normal, wrong=wrong), std) == pytest.approx(printed, abs=0.002)


def test_the_linear_density_is_that_of_simulated_noise() -> None:
    # distances whose density is linear up to 1: the roots of evenly spread numbers
    samples = frame(np.sqrt((np.arange(200_000) + 0.5) / 200_000), wrong=50_000)
    eta = RNG.normal(0, 0.05, (20, 200_000))
    expected = 0.8 * (eta >= samples["l2"].to_numpy()[:200_000]).mean()
    assert linear_density(samples, 0.05, 0.3) == pytest.approx(expected, rel=0.04)
    assert read("linear_density", samples, std=0.05, width=0.3) == linear_density(samples, 0.05, 0.3)


def test_distances_foretell_what_noise_breaks_whatever_their_density() -> None:
    # a density that is not zero at zero, which the linear one misses
    samples = frame((np.arange(20_000) + 0.5) / 20_000, wrong=5_000)
    eta = RNG.normal(0, 0.05, (200, 20_000))
    expected = 0.8 * (eta >= samples["l2"].to_numpy()[:20_000]).mean()
    assert read("crossing", samples, std=0.05) == pytest.approx(expected, rel=0.01)
    assert linear_density(samples, 0.05, 0.3) < 0.3 * expected
    assert read("crossing", frame([], wrong=3, missed=2), std=0.05) == 0


def test_too_few_distances_give_no_number() -> None:
    assert math.isnan(gaussian_model(frame([0.3]), 0.1))
    assert math.isnan(linear_density(frame([], wrong=3), 0.01, 0.1))
    assert math.isnan(read("distance_std", frame([0.3]), norm="l2"))


def test_the_bins_of_a_histogram_are_shares_of_the_images_that_are_right() -> None:
    samples = frame([0.0, 0.1, 0.15, 0.2, 5.0], wrong=4, missed=5)
    assert read("distance_share", samples, low=0.0, high=0.1) == 0.1
    assert read("distance_share", samples, low=0.1, high=0.2) == 0.2
    assert read("distance_share", samples, low=0.2, high=10.0) == 0.2
    assert len(QUANTITIES["distance_share"].read(samples, {"low": 0.0, "high": 1.0})) == 10


def test_mean_and_spread_are_over_what_was_found() -> None:
    samples = frame([0.1, 0.2, 0.6], wrong=2, missed=2)
    assert read("distortion", samples, norm="l2") == pytest.approx(0.3)
    assert read("distance_std", samples, norm="l2") == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1))


def test_an_image_that_noise_mends_is_right() -> None:
    samples = frame([0.1, 0.2], wrong=3, missed=5)
    samples.loc[9, "adv_pred"] = 0  # wrong as it is, right under noise
    samples.loc[8, "adv_pred"] = -1  # not judged: as it is
    samples.loc[7, "adv_pred"] = 2
    assert read("error", samples) == 0.4


def gallery(noise: np.ndarray, **changed: Any) -> dict[str, np.ndarray]:
    n = len(noise)
    facts = {"label": np.zeros(n, int), "clean_pred": np.zeros(n, int), "adv_pred": np.ones(n, int)}
    return {"x": np.full(noise.shape, 0.5), "x_adv": 0.5 + noise, **facts, **changed}


def test_waves_count_as_high_from_their_frequency_on() -> None:
    at = np.arange(28)
    waves = [0.1 * np.cos(2 * np.pi * cycles * at / 28) for cycles in (3, 6, 7, 14)]
    noise = np.stack([np.broadcast_to(wave, (1, 28, 28)) for wave in waves])
    assert high_frequency(gallery(noise), {}) == pytest.approx([0, 0, 1, 1], abs=1e-9)
    assert high_frequency(gallery(noise.swapaxes(2, 3)), {"above": 0.4}) == pytest.approx([0, 0, 0, 1], abs=1e-9)
    assert high_frequency(gallery(noise), {"of": "image"}) == pytest.approx(0)  # grey all over
    halves = noise[:1] + 2 * noise[2:3]  # four times the energy
    assert high_frequency(gallery(halves), {}) == pytest.approx([0.8])


def test_white_noise_is_mostly_of_high_frequency() -> None:
    share = high_frequency(gallery(RNG.normal(0, 0.1, (400, 3, 32, 32))), {})
    assert share.mean() == pytest.approx(1 - np.pi / 16, abs=0.01)


def test_only_adversarials_of_images_that_were_right_have_a_frequency() -> None:
    noise = RNG.normal(0, 0.1, (4, 1, 8, 8))
    noise[3] = 0
    kept = gallery(noise, clean_pred=np.array([1, 0, 0, 0]), adv_pred=np.array([2, 0, 1, 1]))
    assert len(high_frequency(kept, {})) == 1
    assert len(high_frequency(gallery(noise, adv_pred=np.full(4, -1)), {})) == 0
