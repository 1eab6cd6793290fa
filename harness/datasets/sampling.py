"""Stratified orders and fixed splits of images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def stratified_order(y: Tensor, salt: int | None) -> Tensor:
    """A fixed pseudo-random order of a labelled set in which every prefix is stratified.

    Each class is shuffled, then the classes are dealt out in proportion to their sizes: the k-th of n images of a class
    stands at the quantile (k + 1/2) / n, which is Sainte-Lague's apportionment. The shuffle sorts by a bijective hash
    of the position (SplitMix64), so that no library's random generator has a say in it. Another salt gives another
    order; None leaves the images of a class in theirs.

    Returns:
        A permutation of 0..N-1, int64 (N,).
    """
    label = y.numpy()
    mixed = np.arange(1, len(label) + 1, dtype=np.uint64)
    if salt is not None:
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
    by_class = np.lexsort((mixed, label))
    size = np.unique(label, return_counts=True)[1]
    rank = np.arange(len(label)) - np.repeat(size.cumsum() - size, size)
    quantile = (2 * rank + 1) / np.repeat(2 * size, size)
    return torch.from_numpy(by_class[np.lexsort((mixed[by_class], quantile))])


def fixed_split(y: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of training and test images, each ascending: a fixed stratified split, 80 to 20."""
    order = stratified_order(y, salt=2)
    test = round(0.2 * len(y))
    return order[test:].sort().values, order[:test].sort().values
