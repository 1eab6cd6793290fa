from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from harness import metrics
from harness.metrics import (
    LEADERBOARD_COLUMNS,
    PAIR_COLUMNS,
    TOLERANCE,
    Board,
    Pair,
    broken,
    curve,
    leaderboard,
    nearest,
    pair_rows,
    summary,
    wilson,
    worst_case,
)

HELPERS = runpy.run_path(str(Path(__file__).parent / "reports" / "conftest.py"))
make_pair, frame, build_board = HELPERS["make_pair"], HELPERS["frame"], HELPERS["build_board"]
NAN = math.nan
BUDGETS = {"mnist": {"linf": (0.1, 0.3)}}


def pair(distance: Any, clean: Any = None, norm: str = "linf", **meta: Any) -> Pair:
    clean = np.ones(len(distance), bool) if clean is None else clean
    return make_pair(frame(clean, norm, distance), **{"norm": norm, "eps": None, "kind": "minimal"} | meta)


def model(name: str, seed: int, status: str = "ok", error: str = "") -> dict[str, Any]:
    return {
        "dataset": "mnist", "architecture": "mlp-200-200", "defense": name, "seed": seed, "status": status,
        "error": error, "card": {},
    }  # fmt: skip


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
        samples = frame([False, True, True, True], "linf", [NAN, 0.05, 0.2, NAN])
        assert broken(samples, "linf", 0.1).tolist() == [True, True, False, False]

    def test_eps_has_the_tolerance_of_a_float32_and_no_more(self) -> None:
        samples = frame([True, True], "linf", [0.1 * (1 + 0.9 * TOLERANCE), 0.1 * (1 + 1.5 * TOLERANCE)])
        assert broken(samples, "linf", 0.1).tolist() == [True, False]

    def test_tolerance_is_that_of_the_threat_model(self) -> None:
        assert pytest.importorskip("harness.threat").TOLERANCE == TOLERANCE

    def test_a_distance_without_a_valid_adversarial_does_not_count(self) -> None:
        samples = frame([True], "linf", [0.05]).assign(adversarial=False)
        assert not broken(samples, "linf", 0.1).any()

    def test_counts_under_another_norm_at_the_distance_there(self) -> None:
        samples = frame([True, True], "linf", [0.03, 0.06])  # the helper puts L2 at 1 and 2
        assert broken(samples, "l2", 1.0).tolist() == [True, False]


class TestSummary:
    def test_failures_are_censored_never_zero(self) -> None:
        values = summary(frame([True, True, True, False], "linf", [0.1, 0.3, NAN, NAN]))
        assert values["n"] == 4
        assert values["clean_accuracy"] == 0.75
        assert values["success_rate"] == pytest.approx(2 / 3)  # of the attacked
        assert values["median_linf"] == pytest.approx(0.2)
        assert values["mean_linf"] == pytest.approx(0.2)

    def test_no_success_has_no_distance(self) -> None:
        values = summary(frame([True, True], "linf", [NAN, NAN]))
        assert values["success_rate"] == 0
        assert all(math.isnan(values[f"{kind}_{norm}"]) for kind in ("median", "mean") for norm in metrics.DISTANCES)

    def test_nothing_attacked_has_no_success_rate(self) -> None:
        assert math.isnan(summary(frame([False], "linf", [NAN]))["success_rate"])

    def test_no_images_are_no_numbers(self) -> None:
        values = summary(frame([], "linf", []))
        assert values["n"] == 0
        assert math.isnan(values["clean_accuracy"])

    def test_an_image_with_two_faults_is_invalid_once(self) -> None:
        flags = {"over_budget": [1, 0, 1], "out_of_box": [1, 0, 0]}
        values = summary(frame([True] * 3, "linf", [NAN] * 3, flags))
        assert (values["invalid"], values["invalid_over_budget"], values["invalid_out_of_box"]) == (2, 2, 1)


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
        shuffled = make_pair(other.samples.iloc[[2, 0, 1]], **other.meta)
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
        board = build_board(n=40, seeds=1)
        for pairs in metrics.by_model(board.pairs).values():
            for norm, grid in board.budgets["mnist"].items():
                values = curve(nearest(pairs, norm)["distance"], grid)
                assert values == pytest.approx([worst_case(pairs, norm, eps).accuracy for eps in grid])

    def test_never_rises(self) -> None:
        distances = np.random.default_rng(0).exponential(size=200)
        assert (np.diff(curve(distances, np.linspace(0, 3, 50))) <= 0).all()


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

    def test_the_suite_is_the_boards(self) -> None:
        assert pair_rows(Board("mine", BUDGETS, [pair([0.1], suite="other")]))["suite"].unique().tolist() == ["mine"]

    def test_order_does_not_depend_on_the_order_of_the_records(self) -> None:
        board = build_board(n=10, seeds=2)
        turned = Board(board.suite, board.budgets, board.pairs[::-1], board.missing, board.models)
        pd.testing.assert_frame_equal(pair_rows(board), pair_rows(turned))

    def test_an_empty_board_has_the_columns(self) -> None:
        assert tuple(pair_rows(Board("quick", {}, [])).columns) == PAIR_COLUMNS


class TestLeaderboard:
    @staticmethod
    def board(accuracies: dict[str, list[list[float]]], **parts: Any) -> Board:
        """Defense to, per seed, the distances of one attack."""
        pairs = [
            pair(distances, model=f"{name}-{seed}", defense=name, seed=seed)
            for name, seeds in accuracies.items()
            for seed, distances in enumerate(seeds)
        ]
        return Board("quick", {"mnist": {"linf": (0.1,)}}, pairs, **parts)

    def test_best_first_and_columns(self) -> None:
        rows = leaderboard(self.board({"weak": [[0.05, 0.05]], "strong": [[0.2, NAN]], "middle": [[0.05, NAN]]}))
        assert tuple(rows.columns[: len(LEADERBOARD_COLUMNS)]) == LEADERBOARD_COLUMNS
        assert rows["defense"].tolist() == ["strong", "middle", "weak"]
        assert rows["rank"].tolist() == [1, 2, 3]
        assert rows["worst_case_accuracy"].tolist() == [1.0, 0.5, 0.0]
        assert rows["strongest_attack"].tolist() == ["", "gradient", "gradient"]

    def test_mean_spread_and_interval_over_seeds(self) -> None:
        row = leaderboard(self.board({"a": [[0.05, NAN, NAN, NAN], [0.05, 0.05, 0.05, NAN]]})).iloc[0]
        assert row["seeds"] == 2
        assert row["n"] == 4
        assert row["worst_case_accuracy"] == 0.5
        assert row["std"] == pytest.approx(np.std([0.75, 0.25], ddof=1))
        assert (row["worst_case_low"], row["worst_case_high"]) == pytest.approx(wilson(2, 4))

    def test_one_seed_has_no_spread(self) -> None:
        assert math.isnan(leaderboard(self.board({"a": [[NAN]]}))["std"].iloc[0])

    def test_equals_share_a_rank_and_the_next_is_skipped(self) -> None:
        ten = np.full(10, NAN)

        def lost(count: int) -> list[float]:
            return np.where(np.arange(10) < count, 0.05, ten).tolist()

        # 0.7 + 0.9 and 0.8 + 0.8 differ in the last bit once averaged
        rows = leaderboard(self.board({"a": [lost(1), lost(3)], "b": [lost(2), lost(2)], "c": [lost(9), lost(9)]}))
        assert rows["rank"].tolist() == [1, 1, 3]

    @pytest.mark.parametrize("status", ["crashed", "invalid"])
    def test_a_failed_pair_costs_the_rank_and_says_so(self, status: str) -> None:
        board = self.board({"good": [[0.05, 0.05]], "bad": [[NAN, NAN]]})
        spoiled = make_pair(board.pairs[1].samples, **dict(board.pairs[1].meta) | {"status": status, "attack": "liar"})
        rows = leaderboard(Board(board.suite, board.budgets, [*board.pairs, spoiled]))
        assert rows["defense"].tolist() == ["good", "bad"]  # although bad is the more robust on paper
        assert rows["rank"].isna().tolist() == [False, True]
        assert rows["rank"].iloc[0] == 1
        assert rows["note"].iloc[1] == f"liar (linf): {status}"

    def test_missing_pairs_and_failed_seeds_cost_the_rank(self) -> None:
        models = {
            "a-0": model("a", 0),
            "b-0": model("b", 0), "b-1": model("b", 1, "failed", "diverged"),
            "c-0": model("c", 0), "d-0": model("d", 0), "d-1": model("d", 1, "failed"),
        }  # fmt: skip
        board = self.board(
            {name: [[NAN]] for name in "abcd"}, models=models, missing={"b-1": ["x"], "c-0": ["x", "y"], "a-0": []}
        )
        notes = leaderboard(board).set_index("defense")["note"]
        assert notes.to_dict() == {
            "a": "",
            "b": "seed 1: diverged",
            "c": "seed 0: 2 pairs not run",
            "d": "seed 1: failed",
        }

    def test_other_sample_sizes_are_another_competition(self) -> None:
        rows = leaderboard(self.board({"few": [[NAN, NAN]], "many": [[NAN, NAN, 0.05]]}))
        assert rows["rank"].tolist() == [1, 1]
        assert sorted(rows["n"]) == [2, 3]

    def test_norms_nobody_attacked_have_no_rows(self) -> None:
        board = self.board({"a": [[NAN]]})
        budgets = {"mnist": {"linf": (0.1,), "l2": (1.0,)}}
        assert leaderboard(Board("quick", budgets, board.pairs))["norm"].unique().tolist() == ["linf"]

    def test_an_empty_board_has_the_columns(self) -> None:
        rows = leaderboard(Board("quick", {}, []))
        assert not len(rows)
        assert tuple(rows.columns[: len(LEADERBOARD_COLUMNS)]) == LEADERBOARD_COLUMNS
