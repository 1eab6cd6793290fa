"""Find out whether a permutation of the classes would raise the clean accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from .comparison import contrast

SURE: Final = 1e-3
"""Probability, were the order right, of a gain as clear as the one that is reported."""


@dataclass(frozen=True)
class Order:
    """An order of the classes under which a model is right clearly more often.

    Attributes:
        accuracy: Share of images that it is right on as its classes are.
        otherwise: The same under the order that was found on the other half of the images.
        moved: ``(output, class)`` for each class that another of the model's outputs stands for.
    """

    accuracy: float
    otherwise: float
    moved: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        shown = ", ".join(f"output {output} is class {label}" for output, label in self.moved[:3])
        more = f" and {len(self.moved) - 3} more" if len(self.moved) > 3 else ""
        return (
            f"with its classes in another order the model would be right on {self.otherwise:.1%} of the clean images "
            f"instead of {self.accuracy:.1%} ({shown}{more}): are they in the order of the data set's?"
        )


def better_order(predictions: npt.ArrayLike, labels: npt.ArrayLike, classes: int) -> Order | None:
    """Look for a better order: an assignment on the confusion matrix of one half of the images, tried on the other.

    Each half holds every second image of each class. A class that half does not show keeps its output if it can.

    Returns:
        None where no order is better beyond chance (exact McNemar test on the images, p < :data:`SURE`).
    """
    said, true = np.asarray(predictions, np.int64), np.asarray(labels, np.int64)
    turn = np.zeros(len(true), np.int64)
    for label in np.unique(true):
        turn[true == label] = np.arange(int((true == label).sum())) % 2
    right = said == true
    better = np.zeros(len(true), bool)
    for half in (0, 1):
        learned, tried = turn == half, turn != half
        better[tried] = _assigned(said[learned], true[learned], classes)[said[tried]] == true[tried]
    if not len(true) or better.sum() <= right.sum() or contrast(better[None], right[None]).p_value >= SURE:
        return None
    order = _assigned(said, true, classes)
    moved = tuple((int(output), int(order[output])) for output in np.flatnonzero(order != np.arange(classes)))
    return Order(float(right.mean()), float(better.mean()), moved)


def _assigned(said: npt.NDArray[np.int64], true: npt.NDArray[np.int64], classes: int) -> npt.NDArray[Any]:
    """The class (K,) that each output stands for, by the images that agree; as it is where nothing is known."""
    counts = np.zeros((classes, classes))
    np.add.at(counts, (said, true), 1.0)
    counts[np.arange(classes), np.arange(classes)] += 0.5
    return np.asarray(linear_sum_assignment(counts, maximize=True)[1])
