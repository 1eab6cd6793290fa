from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binomtest

from harness.metrics.comparison import Comparison, compare, contrast, standing
from harness.metrics.pairs import worst_case
from tests.helpers.boards import frame, pair, record

NAN = math.nan


def one(only_a: int, only_b: int, both: int = 0, neither: int = 0) -> Comparison:
    """One seed each, by how many images stand where."""
    a = np.repeat([True, False, True, False], [only_a, only_b, both, neither])
    b = np.repeat([False, True, True, False], [only_a, only_b, both, neither])
    return contrast(a[None], b[None])


@pytest.mark.parametrize(
    ("only_a", "only_b"), [(0, 0), (1, 0), (0, 5), (0, 6), (3, 9), (10, 10), (40, 61), (300, 420), (1, 2500)]
)
class TestMcNemar:
    def test_is_the_sign_test_on_images_that_differ(self, only_a: int, only_b: int) -> None:
        differ = only_a + only_b
        expected = binomtest(only_a, differ).pvalue if differ else 1.0
        assert one(only_a, only_b, 50, 7).p_value == pytest.approx(expected, rel=1e-9, abs=1e-300)

    def test_agrees_with_statsmodels(self, only_a: int, only_b: int) -> None:
        tables = pytest.importorskip("statsmodels.stats.contingency_tables")
        expected = tables.mcnemar([[50, only_a], [only_b, 7]], exact=True).pvalue
        assert one(only_a, only_b, 50, 7).p_value == pytest.approx(expected, rel=1e-9, abs=1e-300)

    def test_turned_round_it_is_the_same(self, only_a: int, only_b: int) -> None:
        this, that = one(only_a, only_b, 5, 3), one(only_b, only_a, 5, 3)
        assert (this.difference, this.low, this.high) == pytest.approx((-that.difference, -that.high, -that.low))
        assert this.p_value == pytest.approx(that.p_value)
        assert (this.only_a, this.only_b) == (only_a, only_b)


def test_significance_begins_where_the_exact_test_says() -> None:
    assert not one(5, 0, 95).significant  # 2 / 32
    assert one(6, 0, 94).significant  # 2 / 64


def test_interval_is_that_of_bonett_and_price() -> None:
    """Their formula in the four counts, written out."""
    found = one(12, 4, 60, 24)
    p12, p21, n = (12 + 1) / 102, (4 + 1) / 102, 102
    half = 1.959963984540054 * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / n)
    assert (found.low, found.high) == pytest.approx((p12 - p21 - half, p12 - p21 + half))
    assert found.difference == pytest.approx(0.08)
    assert found.low < found.difference < found.high


def test_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    for n, chances in [(30, (0.1, 0.05)), (200, (0.3, 0.1)), (100, (0.02, 0.0))]:
        truth = chances[0] - chances[1]
        counts = rng.multinomial(n, [*chances, 1 - sum(chances)], size=2000)
        ends = {tuple(c): one(c[0], c[1], c[2]) for c in np.unique(counts, axis=0).tolist()}
        inside = [ends[tuple(c)].low <= truth <= ends[tuple(c)].high for c in counts.tolist()]
        assert np.mean(inside) > 0.93


def test_the_test_is_level() -> None:
    rng = np.random.default_rng(1)
    base, noise = rng.random((400, 1, 60)), 0.3
    a, b = (base + noise * rng.random((400, seeds, 60)) > 0.7 for seeds in (3, 2))
    wrong = [contrast(first, second).significant for first, second in zip(a, b, strict=True)]
    assert np.mean(wrong) < 0.08


def test_no_image_that_differs_says_nothing() -> None:
    same = one(0, 0, 10, 10)
    assert (same.difference, same.p_value, same.significant) == (0.0, 1.0, False)
    assert same.low < 0 < same.high


def test_over_seeds_by_enumeration() -> None:
    """All sign flips of the per-image differences, one by one."""
    rng = np.random.default_rng(2)
    for seeds_a, seeds_b in [(2, 2), (3, 2), (1, 3)]:
        a, b = rng.random((seeds_a, 9)) < 0.7, rng.random((seeds_b, 9)) < 0.4
        found = contrast(a, b)
        delta = a.mean(0) - b.mean(0)
        flips = np.array(list(itertools.product([-1, 1], repeat=9)))
        expected = (np.abs(flips @ delta) >= abs(delta.sum()) - 1e-9).mean()
        assert found.p_value == pytest.approx(expected)
        assert found.difference == pytest.approx(delta.mean())
        assert (found.only_a, found.only_b) == (np.sum(delta > 1e-9), np.sum(delta < -1e-9))
        assert (found.accuracy_a, found.accuracy_b) == pytest.approx((a.mean(), b.mean()))


def test_copies_of_a_seed_change_nothing() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random((1, 200)) < 0.6, rng.random((1, 200)) < 0.5
    once, thrice = contrast(a, b), contrast(np.repeat(a, 3, 0), np.repeat(b, 2, 0))
    for name in vars(once):
        assert getattr(thrice, name) == pytest.approx(getattr(once, name))


def test_no_images_are_no_numbers() -> None:
    empty = contrast(np.ones((1, 0), bool), np.ones((2, 0), bool))
    assert all(map(math.isnan, (empty.difference, empty.low, empty.high)))
    assert not empty.significant


class TestPairs:
    A = (0.05, NAN, NAN, NAN, NAN)
    B = (0.05, 0.05, 0.05, 0.3, NAN)

    def test_images_stand_if_no_attack_broke_them(self) -> None:
        other = [NAN, 0.05, NAN, NAN, NAN]
        found = compare([[pair(self.A), pair(other, attack="b")]], [[pair(self.B)]], "linf", 0.1)
        assert (found.n, found.accuracy_a, found.accuracy_b, found.only_a, found.only_b) == (5, 0.6, 0.4, 1, 0)
        assert compare([[pair(self.A)]], [[pair(self.B)]], "linf", 0.3).only_a == 3

    def test_clean_errors_do_not_stand(self) -> None:
        assert standing([[pair([NAN, NAN], clean=[True, False])]], "linf", 0.1).tolist() == [[True, False]]

    def test_agrees_with_the_worst_case(self) -> None:
        rng = np.random.default_rng(4)
        a, b = ([[pair(rng.random(30), clean=rng.random(30) < 0.9)] for _ in range(seeds)] for seeds in (2, 3))
        found = compare(a, b, "linf", 0.4)
        assert found.accuracy_a == pytest.approx(np.mean([worst_case(pairs, "linf", 0.4).accuracy for pairs in a]))
        assert found.accuracy_b == pytest.approx(np.mean([worst_case(pairs, "linf", 0.4).accuracy for pairs in b]))

    def test_images_are_matched_by_position_in_the_test_set(self) -> None:
        shuffled = record(frame(self.A).iloc[[3, 0, 4, 2, 1]], eps=None)
        found = compare([[shuffled]], [[pair(self.A)]], "linf", 0.1)
        assert (found.only_a, found.only_b) == (0, 0)

    @pytest.mark.parametrize("samples", [frame(A[:4]), frame(A, index=range(1, 6)), frame(A).assign(label=1)])
    def test_other_images_cannot_be_compared(self, samples: object) -> None:
        with pytest.raises(ValueError, match="same images"):
            compare([[pair(self.A)]], [[pair(self.A)], [record(samples, eps=None)]], "linf", 0.1)

    def test_nothing_to_compare(self) -> None:
        with pytest.raises(ValueError, match="at least one seed"):
            compare([], [[pair(self.A)]], "linf", 0.1)
