"""Attacked images as pictures: original, adversarial, magnified difference."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.metrics.pairs import FLAGS, Pair, broken

from ..drawing.png import data_uri
from ..drawing.text import FLAG_NAMES, class_name, is_number

FACTORS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
PER_STRIP: Final = 4
PER_SECTION: Final = 60


@dataclass(frozen=True)
class AttackedImage:
    """One attacked image.

    Attributes:
        index: Its position in the test set.
        original: PNG data URI.
        adversarial: PNG data URI, "" if no image came back.
        difference: PNG data URI of 0.5 + factor * (x_adv - x), "" if no image came back.
        factor: The magnification.
        label: Name of the true class.
        before: Name of the class predicted on the clean image.
        after: The same on the returned image, "" if there is none.
        broken: Whether the referee accepted it as adversarial.
        problem: Why it is invalid, "" if it is not.
        distances: Norm to distance; empty unless adversarial.
    """

    index: int
    original: str
    adversarial: str
    difference: str
    factor: int
    label: str
    before: str
    after: str
    broken: bool
    problem: str
    distances: Mapping[str, float]


def magnification(delta: npt.NDArray[Any]) -> int:
    """The largest round factor at which the largest change still fits half the range of a pixel."""
    largest = float(np.nan_to_num(np.abs(delta), nan=0.0, posinf=0.0).max(initial=0.0))
    fitting = [factor for factor in FACTORS if factor * largest <= 0.5]
    return fitting[-1] if fitting and largest > 0 else 1


def choose(pairs: Sequence[Pair], norm: str, eps: float) -> Pair | None:
    """The pair to show for one model and norm: the one that broke most at eps, of those that kept images."""
    kept = [pair for pair in pairs if pair.result.norm == norm and len(pair.gallery.get("index", ()))]
    return max(kept, key=lambda pair: int(broken(pair.columns, norm, eps).sum()), default=None)


def pictures(pair: Pair, limit: int = PER_STRIP) -> list[AttackedImage]:
    """The first attacked images of a pair, whether they broke or not: nothing is picked for its looks."""
    gallery = dict(pair.gallery)  # read whole, once
    names = pair.result.class_names
    samples = pair.samples.set_index("index")
    found: list[AttackedImage] = []
    for row, index in enumerate(gallery["index"]):
        if len(found) == limit:
            break
        if int(index) not in samples.index or not samples.at[int(index), "attacked"]:
            continue
        record: dict[Hashable, Any] = samples.loc[int(index)].to_dict()
        x = np.asarray(gallery["x"][row], dtype=np.float64)
        x_adv = np.asarray(gallery["x_adv"][row], dtype=np.float64)
        after = int(gallery["adv_pred"][row])
        delta = x_adv - x
        factor = magnification(delta)
        missing = record["crashed"] or record["wrong_shape"]
        problems = [FLAG_NAMES[flag] for flag in FLAGS if record[flag]]
        distances = {name: float(record[name]) for name in ("linf", "l2") if is_number(record[name])}
        found.append(
            AttackedImage(
                index=int(index),
                original=data_uri(x),
                adversarial="" if missing else data_uri(x_adv),
                difference="" if missing else data_uri(0.5 + factor * delta),
                factor=factor,
                label=class_name(names, int(gallery["label"][row])),
                before=class_name(names, int(gallery["clean_pred"][row])),
                after="" if after < 0 else class_name(names, after),
                broken=bool(record["adversarial"]),
                problem=", ".join(problems),
                distances=distances if record["adversarial"] else {},
            )
        )
    return found
