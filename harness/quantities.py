"""What studies measure: from a training record, or from the judged images of one model-attack pair.

Each quantity is a function to an array with a value an image (its mean is the measured value, its spread gives the
interval where there is one seed), or to a single number. Plain frames in, so a table can be rebuilt from records alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

from .metrics import Floats

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Reading:
    """What a quantity is read from, and how.

    Attributes:
        needs: ``"card"``: the model's training record. ``"samples"``: judged images.
        read: ``read(card or frame, settings)``: values, one an image, or a single one.
        share: Whether it is a share of images, so that its interval over images is Wilson's.
    """

    needs: Literal["card", "samples"]
    read: Callable[[Any, Settings], Floats]
    share: bool = False


def _one(value: float) -> Floats:
    return np.asarray([value], dtype=float)


def judged_wrong(samples: pd.DataFrame) -> Floats:
    """1 where the model errs on the returned image (on the clean one where the attack was not called), else 0.

    The error rate that papers print. Unlike :func:`harness.metrics.broken` it counts an image as right that the model
    errs on as it is but not once it was attacked: what happens where the images were crafted on another model. An
    invalid image counts as an error: what an attack did to it is not known, and the model gets no credit for that.
    """
    after = samples["adv_pred"].to_numpy()
    seen = np.where(samples["attacked"].to_numpy(bool), after, samples["clean_pred"].to_numpy())
    wrong: Floats = (seen != samples["label"].to_numpy()).astype(float)
    return wrong


def _distance(samples: pd.DataFrame, settings: Settings) -> Floats:
    found = samples["adversarial"].to_numpy(bool) & samples["clean_correct"].to_numpy(bool)
    distances: Floats = samples[settings.get("norm", "rms")].to_numpy(float)[found]
    return distances


def _median(samples: pd.DataFrame, settings: Settings) -> Floats:
    distances = _distance(samples, settings)
    return _one(float(np.median(distances)) if len(distances) else math.nan)


def _last(card: Mapping[str, Any], settings: Settings) -> Floats:
    """A field of the training history, of the given epoch (1 is the first; the last by default)."""
    history = card.get("history", [])
    at = settings.get("epoch", len(history))
    rows = [row for row in history if row.get("epoch") == at]
    value = rows[0].get(settings["field"]) if rows else None
    return _one(math.nan if value is None else float(value))


QUANTITIES: Final[dict[str, Reading]] = {
    "test_error": Reading("card", lambda card, _: _one(1 - card["test_accuracy"]), share=True),
    "train_error": Reading("card", lambda card, _: _one(1 - card["train_accuracy"]), share=True),
    "history": Reading("card", _last),
    "clean_error": Reading("samples", lambda frame, _: 1.0 - frame["clean_correct"].to_numpy(float), share=True),
    "error": Reading("samples", lambda frame, _: judged_wrong(frame), share=True),
    "accuracy": Reading("samples", lambda frame, _: 1.0 - judged_wrong(frame), share=True),
    "distortion": Reading("samples", _distance),
    "median_distance": Reading("samples", _median),
}
"""Quantities by name. ``test_error``, ``train_error``: on the whole data set, from the training record.
``clean_error``, ``error``, ``accuracy``: on the cell's images, before and after the attack. ``distortion``: mean
distance of the adversarials found of images that the model gets right (``norm``, by default the root mean square over
pixels); ``median_distance``: its median. ``history``: ``field`` of the training history at ``epoch``."""
