"""Accuracy by class, clean and robust."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.metrics.pairs import Bools, reference, wilson

from ..boards.results import SuiteResults
from ..boards.rows import Entry
from ..drawing.text import class_name

Share = tuple[float, float, float]
"""A share with the ends of its 95 % interval."""


@dataclass(frozen=True)
class ClassRow:
    """One class: its images, the share the model gets right, and per norm the share that no attack broke."""

    name: str
    n: int
    clean: Share
    worst: Mapping[str, Share]


def class_rows(results: SuiteResults, entry: Entry, norms: Sequence[str]) -> list[ClassRow]:
    """A row a class that has images, means over seeds."""
    judged = [reference(pairs).samples.sort_values("index") for pairs in entry.models.values()]
    if not judged:
        return []
    labels = judged[0]["label"].to_numpy()
    clean = np.stack([one["clean_correct"].to_numpy(bool) for one in judged])
    worst = {norm: results.stands(entry, norm, results.reference(norm)) for norm in norms}
    return [
        ClassRow(
            name=class_name(results.classes, int(label)),
            n=int((labels == label).sum()),
            clean=share(clean[:, labels == label]),
            worst={norm: share(stands[:, labels == label]) for norm, stands in worst.items()},
        )
        for label in np.unique(labels)
    ]


def share(values: Bools) -> Share:
    """Mean of yes and no over (seeds, images), with Wilson's interval over the images at that mean."""
    n = values.shape[1]
    value = float(values.mean()) if n else float("nan")
    return (value, *wilson(value * n, n))
