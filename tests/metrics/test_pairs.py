from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from harness.metrics.pairs import (
    DISTANCES,
    PAIR_COLUMNS,
    Board,
    Pair,
    broken,
    curve,
    nearest,
    pair_rows,
    reach,
    rounding,
    summary,
    wilson,
    worst_case,
)
from harness.schema.eps import TOLERANCE
from tests.helpers.boards import frame, pair, record, sound

NAN = math.nan
BUDGETS = {"mnist": {"linf": (0.1, 0.3)}}


class TestWilson:
    @pytest.mark.parametrize(
        ("successes", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (0, 1), (1, 1), (437, 1000), (9_999, 10_000)]
    )
    @pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
    def test_agrees_with_scipy(self, successes: int, n: int, confidence: float) -> None:
        expected = binomtest(successes, n).proportion_ci(confidence, method="wilson")
        assert wilson(successes, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)

    def test_agrees_with_statsmodels(self) -> None:
        proportion = pytest.importorskip("statsmodels.stats.proportion")
        assert wilson(37, 120) == pytest.approx(proportion.proportion_confint(37, 120, method="wilson"), abs=1e-12)

    def test_nothing_measured_is_no_number(self) -> None:
        assert all(map(math.isnan, wilson(0, 0)))

    @pytest.mark.parametrize("n", [1, 7, 1000])
    def test_stays_in_the_unit_interval_and_holds_the_proportion(self, n: int) -> None:
        for successes in np.linspace(0, n, 9):  # means over seeds are not whole
            low, high = wilson(float(successes), n)
            assert 0 <= low <= successes / n + 1e-12
            assert successes / n - 1e-12 <= high <= 1


class TestBroken:
    def test_clean_errors_and_near_adversarials_are_lost_and_nothing_else(self) -> None:
        samples = frame([NAN, 0.05, 0.2, NAN], [False, True, True, True])
        assert broken(samples, "linf", 0.1).tolist() == [True, True, False, False]

    def test_eps_has_the_tolerance_of_a_float32_and_no_more(self) -> None:
        samples = frame([0.1 * (1 + 0.9 * TOLERANCE), 0.1 * (1 + 1.5 * TOLERANCE)], [True, True])
        assert broken(samples, "linf", 0.1).tolist() == [True, False]

    def test_a_distance_without_a_valid_adversarial_does_not_count(self) -> None:
        samples = frame([0.05], [True]).assign(adversarial=False)
        assert not broken(samples, "linf", 0.1).any()

    def test_counts_under_another_norm_at_the_distance_there(self) -> None:
        samples = frame([0.03, 0.06], [True, True])  # the helper puts L2 at 1 and 2
        assert broken(samples, "l2", 1.0).tolist() == [True, False]


class TestSummary:
    def test_failures_are_censored_never_zero(self) -> None:
        values = summary(frame([0.1, 0.3, NAN, NAN], [True, True, True, False]))
        assert values["n"] == 4
        assert values["clean_accuracy"] == 0.75
        assert values["success_rate"] == pytest.approx(2 / 3)  # of the attacked
        assert values["median_linf"] == pytest.approx(0.2)
        assert values["mean_linf"] == pytest.approx(0.2)

    def test_no_success_has_no_distance(self) -> None:
        values = summary(frame([NAN, NAN], [True, True]))
        assert values["success_rate"] == 0
        assert all(math.isnan(values[f"{kind}_{norm}"]) for kind in ("median", "mean") for norm in DISTANCES)

    def test_nothing_attacked_has_no_success_rate(self) -> None:
        assert math.isnan(summary(frame([NAN], [False]))["success_rate"])

    def test_no_images_are_no_numbers(self) -> None:
        values = summary(frame([], []))
        assert values["n"] == 0
        assert math.isnan(values["clean_accuracy"])

    def test_an_image_with_two_faults_is_invalid_once(self) -> None:
        flags = {"over_budget": [1, 0, 1], "out_of_box": [1, 0, 0]}
        values = summary(frame([NAN] * 3, flags=flags))
        assert (values["invalid"], values["invalid_over_budget"], values["invalid_out_of_box"]) == (2, 2, 1)


@pytest.mark.parametrize("images", [[0, 1, 2], [0, 1], [1, 0], [2], [0, 2, 7], []])
def test_reach_is_that_of_the_images_that_are_asked_about(images: list[int]) -> None:
    one = pair([0.3, 0.4, NAN], clean=[True, False, True])
    known = {0: 0.3, 1: 0.0, 2: math.inf}
    found = reach(one, np.array(images, int), "linf")
    assert found.tolist() == pytest.approx([known.get(image, math.inf) for image in images])


class TestNearest:
    def test_takes_the_smallest_over_attacks_and_says_whose(self) -> None:
        found = nearest([pair([0.3, NAN, 0.1], attack="a"), pair([0.2, NAN, 0.2], attack="b")], "linf")
        assert found["distance"].tolist() == pytest.approx([0.2, math.inf, 0.1])
        assert found["attack"].tolist() == ["b", "", "a"]

    def test_a_clean_error_is_at_distance_zero_and_nobodys(self) -> None:
        found = nearest([pair([NAN, 0.2], clean=[False, True], attack="a")], "linf")
        assert found["distance"].tolist() == [0.0, 0.2]
        assert found["attack"].tolist() == ["", "a"]

    def test_images_are_matched_by_index_not_by_position(self) -> None:
        first = pair([0.3, 0.4, NAN], attack="a")
        other = pair([0.1, 0.2, 0.5], attack="b")
        shuffled = record(other.samples.iloc[[2, 0, 1]], **dict(other.result))
        assert nearest([first, shuffled], "linf")["distance"].tolist() == pytest.approx([0.1, 0.2, 0.5])

    @pytest.mark.parametrize("turned", [False, True])
    def test_a_pair_on_fewer_images_broke_none_of_the_rest(self, turned: bool) -> None:
        pairs = [pair([0.1], attack="few"), pair([0.2, 0.2], attack="all")]
        found = nearest(pairs[::-1] if turned else pairs, "linf")
        assert found["distance"].tolist() == pytest.approx([0.1, 0.2])

    def test_no_pairs(self) -> None:
        with pytest.raises(ValueError, match="no pairs"):
            nearest([], "linf")


class TestCurve:
    def test_is_the_share_beyond_each_eps(self) -> None:
        values = curve([0.0, 0.1, 0.1, 0.4, math.inf], [0.0, 0.05, 0.1, 0.3, 0.4, 9.0])
        assert values == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.2, 0.2])

    def test_no_images_are_no_number(self) -> None:
        assert np.isnan(curve([], [0.0, 0.1])).all()

    def test_goes_through_the_worst_case_at_every_eps(self) -> None:
        pairs = sound(n=40).pairs
        for norm, grid in {"linf": (0.05, 0.1), "l2": (1.0, 3.0)}.items():
            values = curve(nearest(pairs, norm)["distance"], grid)
            assert values == pytest.approx([worst_case(pairs, norm, eps).accuracy for eps in grid])
            assert 0 < values[1] < values[0] < 1

    def test_never_rises(self) -> None:
        distances = np.random.default_rng(0).exponential(size=200)
        assert (np.diff(curve(distances, np.linspace(0, 3, 50))) <= 0).all()


class TestRounding:
    def test_is_the_share_of_the_adversarials_within_eps(self) -> None:
        samples = frame([0.05, 0.05, 0.05, 0.2, NAN], survives=[True, False, True, False, True])
        assert rounding(samples, "linf", 0.1) == pytest.approx(2 / 3)
        assert rounding(samples, "linf", 0.3) == 0.5

    def test_no_adversarial_has_no_share(self) -> None:
        assert math.isnan(rounding(frame([0.2, NAN]), "linf", 0.1))


class TestWorstCase:
    def test_by_brute_force(self) -> None:
        rng = np.random.default_rng(3)
        for _ in range(30):
            n, attacks = int(rng.integers(1, 25)), int(rng.integers(1, 6))
            clean = rng.random(n) < 0.8
            table = np.where(rng.random((attacks, n)) < 0.6, rng.random((attacks, n)), NAN)
            pairs = [pair(row, clean=clean, attack=f"a{i}") for i, row in enumerate(table)]
            eps = float(rng.random())
            killers = [{i for i in range(attacks) if clean[j] and table[i, j] <= eps} for j in range(n)]
            case = worst_case(pairs, "linf", eps)
            survivors = sum(bool(clean[j]) and not killers[j] for j in range(n))
            assert case.n == n
            assert case.accuracy == pytest.approx(survivors / n)
            assert (case.low, case.high) == pytest.approx(wilson(survivors, n))
            assert case.broken_by == {f"a{i}": sum(i in k for k in killers) for i in range(attacks)}
            assert case.alone == {f"a{i}": sum(k == {i} for k in killers) for i in range(attacks)}
            most = max(case.broken_by.values())
            assert case.strongest == "" if most == 0 else case.broken_by[case.strongest] == most

    def test_another_attack_never_raises_it(self) -> None:
        rng = np.random.default_rng(5)
        for _ in range(50):
            n = int(rng.integers(1, 30))
            clean = rng.random(n) < 0.9
            tables = [np.where(rng.random(n) < 0.5, rng.random(n), NAN) for _ in range(6)]
            pairs = [pair(row, clean=clean, attack=f"a{i}") for i, row in enumerate(tables)]
            for eps in (0.2, 0.7):
                left = [worst_case(pairs[: count + 1], "linf", eps).accuracy for count in range(len(pairs))]
                assert (np.diff(left) <= 0).all()

    def test_one_attack_under_two_budgets_is_one_attack(self) -> None:
        pairs = [pair([0.05, NAN], attack="a", eps=0.1), pair([0.05, 0.05], attack="a", eps=0.3)]
        case = worst_case(pairs, "linf", 0.1)
        assert case.broken_by == {"a": 2}
        assert case.alone == {"a": 2}

    def test_a_tie_goes_to_whoever_broke_more_alone(self) -> None:
        pairs = [pair([0.1, 0.1, NAN, NAN], attack="a"), pair([0.1, 0.1, NAN, NAN], attack="b")]
        pairs.append(pair([NAN, NAN, 0.1, 0.1], attack="c"))
        assert worst_case(pairs, "linf", 0.2).strongest == "c"

    def test_nobody_is_the_strongest_of_the_harmless(self) -> None:
        case = worst_case([pair([NAN, 0.9])], "linf", 0.2)
        assert (case.accuracy, case.strongest) == (1.0, "")

    @pytest.mark.parametrize("turned", [False, True])
    def test_is_judged_on_the_pair_with_most_images(self, turned: bool) -> None:
        pairs = [pair([0.1], attack="few"), pair([NAN, NAN, NAN, 0.1], attack="all")]
        case = worst_case(pairs[::-1] if turned else pairs, "linf", 0.2)
        assert (case.n, case.accuracy, case.alone) == (4, 0.5, {"few": 1, "all": 1})

    def test_no_images_are_no_number(self) -> None:
        case = worst_case([pair([])], "linf", 0.2)
        assert case.n == 0
        assert math.isnan(case.accuracy)
        assert math.isnan(case.low)


class TestPairRows:
    def test_a_minimal_attack_has_a_row_for_every_eps_of_one_run(self) -> None:
        board = Board("quick", BUDGETS, [pair([0.05, 0.2, NAN, NAN], clean=[1, 1, 1, 0], run_id="r")])
        rows = pair_rows(board)
        assert tuple(rows.columns) == PAIR_COLUMNS
        assert rows["eps"].tolist() == [0.1, 0.3]
        assert rows["robust_accuracy"].tolist() == [0.5, 0.25]
        assert rows["run_id"].tolist() == ["r", "r"]
        assert rows["n"].tolist() == [4, 4]
        expected = [wilson(2, 4), wilson(1, 4)]
        assert rows[["robust_accuracy_low", "robust_accuracy_high"]].to_numpy() == pytest.approx(np.array(expected))

    def test_a_budget_attack_has_the_row_of_its_eps(self) -> None:
        rows = pair_rows(Board("quick", BUDGETS, [pair([0.1, NAN], eps=0.1, kind="budget")]))
        assert rows[["eps", "robust_accuracy"]].to_numpy().tolist() == [[0.1, 0.5]]

    @pytest.mark.parametrize("status", ["crashed", "invalid"])
    def test_a_failed_pair_has_no_accuracy(self, status: str) -> None:
        row = pair_rows(Board("quick", BUDGETS, [pair([0.05, NAN], eps=0.1, status=status)])).iloc[0]
        assert row[["success_rate", "robust_accuracy", "robust_accuracy_low", "robust_accuracy_high"]].isna().all()

    def test_a_pair_of_a_cascade_saw_a_part_and_has_no_accuracy(self) -> None:
        samples = frame([0.05, NAN, NAN, NAN], attacked=[True, True, False, False])
        (whole, part) = (record(samples, attack=name, cascade=name == "part") for name in ("whole", "part"))
        rows = pair_rows(Board("quick", BUDGETS, [whole, part])).set_index("attack")
        withheld = ["robust_accuracy", "robust_accuracy_low", "robust_accuracy_high", "success_on_correct"]
        assert rows.loc["part", withheld].isna().all()
        assert rows.loc["whole", "success_on_correct"] == 0.25
        assert rows.loc["part", "success_rate"] == 0.5
        others = [name for name in PAIR_COLUMNS if name not in (*withheld, "attack")]
        pd.testing.assert_series_equal(rows.loc["part", others], rows.loc["whole", others], check_names=False)
        assert rows.loc["whole", "robust_accuracy"] == 0.75

    def test_rounding_is_told_at_every_eps(self) -> None:
        samples = frame([0.05, 0.2, NAN, NAN], survives=[True, False, False, False])
        rows = pair_rows(Board("quick", BUDGETS, [record(samples, eps=None, kind="minimal")]))
        assert rows["survives_rounding"].tolist() == [1.0, 0.5]

    def test_the_suite_is_the_boards(self) -> None:
        assert pair_rows(Board("mine", BUDGETS, [pair([0.1], suite="other")]))["suite"].unique().tolist() == ["mine"]

    def test_order_does_not_depend_on_the_order_of_the_records(self) -> None:
        pairs = [*sound(n=10).pairs, *(pair([0.1], defense=name, model=name, seed=1) for name in "ab")]
        board = Board("quick", {"mnist": {"linf": (0.05, 0.1)}}, pairs)
        turned = Board(board.suite, board.budgets, pairs[::-1])
        pd.testing.assert_frame_equal(pair_rows(board), pair_rows(turned))

    def test_an_empty_board_has_the_columns(self) -> None:
        assert tuple(pair_rows(Board("quick", {}, [])).columns) == PAIR_COLUMNS


class TestWithheld:
    """Of 20 images, five lost to a gradient attack, a black-box attack met two in a tenth and broke none."""

    FIRST = record(frame(np.where(np.arange(20) < 5, 0.05, NAN)), attack="apgd", eps=0.1, cascade=True)

    def met(self, *places: int, share: str = "tenth", withheld: int = 0, **meta: Any) -> Pair:
        there = frame(np.full(20, NAN), attacked=np.isin(np.arange(20), places))
        base = {"attack": "square", "eps": 0.1, "cascade": True, "share": share, "withheld": withheld}
        return record(there, **base | meta)

    def test_the_lower_end_allows_for_what_may_fall(self) -> None:
        found = worst_case([self.FIRST, self.met(6, 12), self.met(share="rest", withheld=13)], "linf", 0.1)
        assert (found.accuracy, found.unseen) == (0.75, 13)
        assert found.doubt == pytest.approx(13 * wilson(0, 2)[1])
        assert (found.low, found.high) == (wilson(15 - found.doubt, 20)[0], wilson(15, 20)[1])

    def test_what_met_every_image_withholds_none(self) -> None:
        rest = self.met(*(at for at in range(5, 20) if at not in (6, 12)), share="rest")
        found = worst_case([self.FIRST, self.met(6, 12), rest], "linf", 0.1)
        assert (found.unseen, found.doubt) == (0, 0.0)
        assert (found.low, found.high) == wilson(15, 20)

    def test_what_is_proved_is_not_withheld(self) -> None:
        found = worst_case([self.FIRST, self.met(6), self.met(share="rest", withheld=3)], "linf", 0.1)
        assert found.unseen == 3

    def test_every_attack_has_to_have_met_an_image(self) -> None:
        one = [self.met(6, 12), self.met(share="rest", withheld=13)]
        other = [
            self.met(12, 13, attack="rays", eps=None),
            self.met(share="rest", withheld=13, attack="rays", eps=None),
        ]
        found = worst_case([self.FIRST, *one, *other], "linf", 0.1)
        assert found.unseen == 14
        assert found.doubt == pytest.approx(14 * wilson(0, 1)[1])
        apart = [self.met(6), self.met(7, attack="rays"), *(self.met(share="rest", withheld=14, attack="rays"),)]
        assert worst_case([self.FIRST, *apart], "linf", 0.1).doubt == 14

    def test_what_stands_at_a_larger_eps_stands_unseen_at_a_smaller_one(self) -> None:
        pairs = [self.FIRST, self.met(6, 12), self.met(share="rest", withheld=13)]
        assert worst_case(pairs, "linf", 0.05).unseen == 13
        assert worst_case(pairs, "linf", 0.3).unseen == 0
