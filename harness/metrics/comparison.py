"""Paired comparison of two models on the same images: significance and intervals.

Two accuracies on the same images are not independent: what counts is the images on which the models differ. Each p
value stands for itself: nothing corrects for the number of comparisons a reader makes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..schema.eps import limit
from .pairs import Bools, Pair, nearest, reference

SIGNIFICANCE: Final = 0.05
"""Models whose p value is not below this are not told apart."""


@dataclass(frozen=True)
class Comparison:
    """Two models, a and b, at one norm and eps. An image stands if no attack of the suite broke it.

    Attributes:
        accuracy_a: Share of images that stand in a; a mean over seeds.
        accuracy_b: The same of b.
        only_a: Images that stand in a alone; over seeds: in a larger share of a's seeds than of b's.
        only_b: The same of b.
        difference: ``accuracy_a - accuracy_b``.
        low: Lower end of a 95 % interval of the difference over other images.
        high: Upper end.
        p_value: Chance of a difference at least as large, were the names of the models on each image a coin's toss.
        significant: ``p_value`` < :data:`SIGNIFICANCE`.
    """

    n: int
    accuracy_a: float
    accuracy_b: float
    only_a: int
    only_b: int
    difference: float
    low: float
    high: float
    p_value: float

    @property
    def significant(self) -> bool:
        """Whether the models are told apart."""
        return self.p_value < SIGNIFICANCE


def compare(a: Sequence[Sequence[Pair]], b: Sequence[Sequence[Pair]], norm: str, eps: float) -> Comparison:
    """Compare the worst cases of two models on the same images.

    With one seed each the test is McNemar's, exact: the images that only one of the two keeps are coins. With more,
    an image's share of seeds takes the place of the yes or no, and the exact distribution under flips of the signs of
    the differences that of the binomial. Either way it says whether other *images* could turn the result; what other
    training runs would do is shown by the spread over seeds. The models may have different numbers of seeds.

    Raises:
        ValueError: A model without seeds or pairs, or seeds that were not judged on the same images.

    Source: McNemar 1947 for the test; for the interval the adjusted Wald interval of Bonett and Price 2012.
    """
    if not a or not b:
        raise ValueError("a comparison needs at least one seed of either model")
    first = images(a[0])
    if not all(np.array_equal(first, images(pairs)) for pairs in [*a, *b]):
        raise ValueError("the models were not judged on the same images")
    return contrast(standing(a, norm, eps), standing(b, norm, eps))


def standing(seeds: Sequence[Sequence[Pair]], norm: str, eps: float) -> Bools:
    """Which images no attack broke, (seeds, images), in ascending order of the images."""
    rows = [nearest(pairs, norm)["distance"].sort_index().to_numpy(float) > limit(eps) for pairs in seeds]
    return np.stack(rows)


def contrast(a: Bools, b: Bools) -> Comparison:
    """Compare two models by the images that stand: (seeds of a, images), and the same images in that order for b."""
    n = a.shape[1]
    scale = math.lcm(len(a), len(b))  # whole numbers: equal sums must be equal
    delta = a.sum(0, dtype=np.int64) * (scale // len(a)) - b.sum(0, dtype=np.int64) * (scale // len(b))
    low, high = _interval(delta / scale)
    return Comparison(
        n=n,
        accuracy_a=float(a.mean()) if n else math.nan,
        accuracy_b=float(b.mean()) if n else math.nan,
        only_a=int((delta > 0).sum()),
        only_b=int((delta < 0).sum()),
        difference=float(delta.sum()) / (scale * n) if n else math.nan,
        low=low,
        high=high,
        p_value=_sign_flips(delta),
    )


def images(pairs: Sequence[Pair]) -> npt.NDArray[Any]:
    """What a model was judged on: (images, 2), positions and labels in ascending order."""
    judged = reference(pairs).columns
    order = np.argsort(judged["index"], kind="stable")
    return np.stack([judged["index"], judged["label"]], axis=1)[order]


def _interval(delta: npt.NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of a mean of paired differences in [-1, 1]: Wald's after one image more for either model.

    The two extra images keep it honest where few images or none differ.
    """
    from scipy.special import ndtri

    if not len(delta):
        return math.nan, math.nan
    n = len(delta) + 2
    centre = float(delta.sum()) / n
    spread = (float((delta**2).sum()) + 2) / n - centre**2
    half = float(ndtri(0.975)) * math.sqrt(spread / n)
    return max(-1.0, centre - half), min(1.0, centre + half)


def _sign_flips(delta: npt.NDArray[np.int64]) -> float:
    """Exact two-sided p value of a sum, were the sign of every term a coin's toss. McNemar's if all are -1, 0 or 1."""
    from scipy.special import gammaln

    sizes, counts = np.unique(np.abs(delta[delta != 0]), return_counts=True)
    chances = np.ones(1)  # of the sums -top ... top
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        heads = np.arange(count + 1)
        ways = gammaln(count + 1) - gammaln(heads + 1) - gammaln(count - heads + 1)
        terms = np.zeros(2 * size * count + 1)
        terms[:: 2 * size] = np.exp(ways - count * math.log(2))
        chances = _convolved(chances, terms) if len(chances) > 1 else terms
    top = len(chances) // 2
    far = np.abs(np.arange(-top, top + 1)) >= abs(int(delta.sum()))
    return min(1.0, float(chances[far].sum()))


def _convolved(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    length = len(a) + len(b) - 1
    result: npt.NDArray[np.float64] = np.fft.irfft(np.fft.rfft(a, length) * np.fft.rfft(b, length), length)
    return np.maximum(result, 0)  # the transform leaves zeros a rounding error below
