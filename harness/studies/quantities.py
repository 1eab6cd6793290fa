"""Quantities that studies measure, from training records or judged images.

Each quantity is a function to an array with a value an image (its mean is the measured value, its spread gives the
interval where there is one seed), or to a single number. Plain frames in, so a table can be rebuilt from records alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..metrics.pairs import Floats
from ..schema.models import Card

Settings = Mapping[str, Any]
Gallery = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Reading:
    """What a quantity is read from, and how.

    Attributes:
        needs: ``"card"``: the model's training record. ``"samples"``: judged images. ``"cost"``: what the attack took.
            ``"gallery"``: the pair's first attacked images themselves.
        read: ``read(what it needs, settings)``: values, one per image, or a single one.
        share: Whether it is a share of images, so that its interval over images is Wilson's.
        every: Whether there is a value for every image of the sample: then models are compared image by image.
    """

    needs: Literal["card", "samples", "cost", "gallery"]
    read: Callable[[Any, Settings], Floats]
    share: bool = False
    every: bool = False


def _one(value: float) -> Floats:
    return np.asarray([value], dtype=float)


def judged_wrong(samples: pd.DataFrame) -> Floats:
    """1 where the model errs on the returned image (on the clean one where none came for it), else 0.

    The error rate that papers print. Unlike :func:`harness.metrics.pairs.broken` it counts an image as right that the
    model errs on as it is but not once it was attacked: what happens where the images were crafted on another model. An
    invalid image counts as an error: what an attack did to it is not known, and the model gets no credit for that.
    """
    after = samples["adv_pred"].to_numpy()
    looked_at = samples["attacked"].to_numpy(bool) | (after >= 0)
    seen = np.where(looked_at, after, samples["clean_pred"].to_numpy())
    wrong: Floats = (seen != samples["label"].to_numpy()).astype(float)
    return wrong


def _distance(samples: pd.DataFrame, settings: Settings) -> Floats:
    distances: Floats = samples[settings.get("norm", "rms")].to_numpy(float)
    return distances[samples["clean_correct"].to_numpy(bool) & ~np.isnan(distances)]


def _median(samples: pd.DataFrame, settings: Settings) -> Floats:
    distances = _distance(samples, settings)
    return _one(float(np.median(distances)) if len(distances) else math.nan)


def _spread(samples: pd.DataFrame, settings: Settings) -> Floats:
    distances = _distance(samples, settings)
    return _one(float(np.std(distances, ddof=1)) if len(distances) > 1 else math.nan)


def _between(samples: pd.DataFrame, settings: Settings) -> Floats:
    """1 where a correctly classified image's distance is in [low, high), 0 for the other correctly classified ones."""
    right = samples[samples["clean_correct"].to_numpy(bool)]
    distances = right[settings.get("norm", "l2")].fillna(np.inf).to_numpy(float)
    inside: Floats = ((distances >= settings["low"]) & (distances < settings["high"])).astype(float)
    return inside


def gaussian_model(samples: pd.DataFrame, std: float, norm: str = "l2") -> float:
    """Error under Gaussian noise, foretold from the distances to the boundary (Lyu et al. 2015, eqs. 30-33).

    One direction counts, and distances are taken as normal: P(miss) + (1 - P(miss)) P(eta - a >= 0), where eta is the
    noise along it and a the distance, so that eta - a is normal as well.

    Args:
        samples: A minimal attack's judged images.
        std: Standard deviation of the noise.
        norm: Of the distances; the model is about L2.

    Returns:
        A share of images; NaN for fewer than two distances.
    """
    distances = _distance(samples, {"norm": norm})
    if len(distances) < 2:
        return math.nan
    miss = 1 - float(samples["clean_correct"].mean())
    score = float(distances.mean()) / math.hypot(std, float(np.std(distances, ddof=1)))
    return miss + (1 - miss) * 0.5 * math.erfc(score / math.sqrt(2))


def crossing(samples: pd.DataFrame, std: float, norm: str = "l2") -> Floats:
    """Chance that Gaussian noise crosses the nearest boundary, an image (Lyu et al. 2015, eq. 28 with n = 1).

    P(eta >= a) at each distance a as it was found, with no assumption on how distances are spread; 0 for an image
    that is wrong without noise. In a linear model of two classes it is exact; others have more boundaries than one.

    Args:
        samples: A minimal attack's judged images.
        std: Standard deviation of the noise.
        norm: Of the distances; the model is about L2.

    Returns:
        A probability an image.
    """
    from scipy.special import ndtr

    distances = samples[norm].fillna(np.inf).to_numpy(float)
    chance: Floats = ndtr(-distances / std) * samples["clean_correct"].to_numpy(float)
    return chance


def _newly_wrong(samples: pd.DataFrame) -> Floats:
    broken: Floats = judged_wrong(samples) * samples["clean_correct"].to_numpy(float)
    return broken


def linear_density(samples: pd.DataFrame, std: float, width: float, norm: str = "l2") -> float:
    """Errors that Gaussian noise adds, if the density of distances grows linearly from zero (section V.B, table IX).

    With density k a at distance a, noise of standard deviation s along the nearest direction crosses with probability
    k s^2 / 4, the integral of k a P(eta >= a). The slope k is that of as many distances below ``width`` as were found:
    their share is k width^2 / 2. The paper reads it off its figure 7, which ends at 0.1, and does not say how.

    Args:
        samples: A minimal attack's judged images.
        std: Standard deviation of the noise, well below ``width``.
        width: Up to where the density is taken as linear.
        norm: Of the distances.

    Returns:
        A share of all images; NaN without any that is right.
    """
    near = _between(samples, {"low": 0.0, "high": width, "norm": norm})
    if not len(near):
        return math.nan
    slope = 2 * float(near.mean()) / width**2
    return float(samples["clean_correct"].mean()) * slope * std**2 / 4


def high_frequency(gallery: Gallery, settings: Settings) -> Floats:
    """Share of the energy of adversarial noise at high spatial frequencies, an image (Gu & Rigazio 2014, section 3.4).

    The power spectrum over both axes, channels together, mean included, no window. White noise has 1 - pi r^2 of its
    energy outside of a circle of radius r: 0.80 at the default of 0.25 cycles a pixel, half of Nyquist's limit.

    Args:
        gallery: A pair's first attacked images: ``x``, ``x_adv`` (N, C, H, W), ``label``, ``clean_pred``, ``adv_pred``.
        settings: ``above``: cycles a pixel from where a frequency counts as high. ``of``: ``"noise"``, or ``"image"``
            for the clean image itself.

    Returns:
        A share for every adversarial of an image that the model gets right.
    """
    label, before, after = (np.asarray(gallery[name]) for name in ("label", "clean_pred", "adv_pred"))
    found = (before == label) & (after != label) & (after >= 0)
    image, noisy = (np.asarray(gallery[name], float)[found] for name in ("x", "x_adv"))
    looked_at = image if settings.get("of", "noise") == "image" else noisy - image
    down, across = (np.fft.fftfreq(size) for size in looked_at.shape[-2:])
    high = np.hypot(down[:, None], across[None, :]) >= settings.get("above", 0.25)
    energy = (np.abs(np.fft.fft2(looked_at)) ** 2).sum(axis=1)
    moved = energy.sum(axis=(1, 2)) > 0
    share: Floats = energy[moved][:, high].sum(axis=1) / energy[moved].sum(axis=(1, 2))
    return share


def _last(card: Card, settings: Settings) -> Floats:
    """A field of the training history, of the given epoch (1 is the first; the last by default)."""
    at = settings.get("epoch", len(card.history))
    line = next((line for line in card.history if line.epoch == at), None)
    return _one(math.nan if line is None else {**dict(line), **line.logged}.get(settings["field"], math.nan))


def _epoch_seconds(card: Card, _: Settings) -> Floats:
    """Median over epochs, which other work on the machine moves less than it does their sum."""
    return _one(float(np.median([line.seconds for line in card.history])) if card.history else math.nan)


QUANTITIES: Final[dict[str, Reading]] = {
    "test_error": Reading("card", lambda card, _: _one(1 - card.test_accuracy), share=True),
    "test_accuracy": Reading("card", lambda card, _: _one(card.test_accuracy), share=True),
    "train_error": Reading("card", lambda card, _: _one(1 - card.train_accuracy), share=True),
    "parameters": Reading("card", lambda card, _: _one(math.nan if card.parameters is None else card.parameters)),
    "history": Reading("card", _last),
    "epoch_seconds": Reading("card", _epoch_seconds),
    "clean_error": Reading("samples", lambda frame, _: 1.0 - frame["clean_correct"].to_numpy(float), True, True),
    "error": Reading("samples", lambda frame, _: judged_wrong(frame), True, True),
    "accuracy": Reading("samples", lambda frame, _: 1.0 - judged_wrong(frame), True, True),
    "newly_wrong": Reading("samples", lambda frame, _: _newly_wrong(frame), True, True),
    "distortion": Reading("samples", _distance),
    "backwards": Reading("cost", lambda cost, _: _one(cost.backwards)),
    "seconds": Reading("cost", lambda cost, _: _one(cost.seconds)),
    "median_distance": Reading("samples", _median),
    "distance_std": Reading("samples", _spread),
    "distance_share": Reading("samples", _between, share=True),
    "gaussian_model": Reading("samples", lambda frame, how: _one(gaussian_model(frame, **how))),
    "crossing": Reading("samples", lambda frame, how: crossing(frame, **how), False, True),
    "high_frequency": Reading("gallery", high_frequency),
    "linear_density": Reading("samples", lambda frame, how: _one(linear_density(frame, **how))),
}
"""Quantities by name.

From a model's card: ``test_error``, ``test_accuracy``, ``train_error``, on the whole data set; ``parameters``, their
number; ``history``, a ``field`` of the training history at ``epoch``, also one that the defense logs there;
``epoch_seconds``, wall time of an epoch (median): compare it between models that one machine trained.

From a cell's images: ``clean_error`` before the attack, ``error`` and ``accuracy`` after it; ``newly_wrong`` is the
share that is right before and wrong after it. ``distortion`` is the mean distance of the adversarials found of images
that the model gets right (``norm``, by default the root mean square over pixels), ``median_distance`` its median,
``distance_std`` its standard deviation; ``distance_share`` is the share of the images that the model gets right with a
distance in [``low``, ``high``) (``norm``, by default L2). ``gaussian_model`` (``std``) and ``linear_density`` (``std``,
``width``) are errors under noise that a model of the distances foretells, ``crossing`` (``std``) those that the
distances do by themselves.

From its first attacked images: ``high_frequency``, the share of the energy of noise or image (``of``) at ``above``
cycles a pixel or more.

From the cost of the attack: ``backwards``, passes an attacked image; ``seconds``, wall time of the whole cell."""
