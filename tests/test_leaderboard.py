from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.leaderboard import EXTRA_COLUMNS, LEADERBOARD_COLUMNS, group_ranks, leaderboard
from harness.metrics.pairs import Board, wilson
from tests.helpers.boards import amend, facts, frame, model, pair, record

NAN = math.nan


def lost(count: int, n: int = 10, first: int = 0) -> list[float]:
    """Distances of an attack that broke ``count`` images in a row."""
    at = np.arange(n)
    return np.where((at >= first) & (at < first + count), 0.05, NAN).tolist()


def make(accuracies: Mapping[str, Sequence[Sequence[float]]], grid: Sequence[float] = (0.1,), **parts: Any) -> Board:
    """Defense to, per seed, the distances of one attack."""
    pairs = [
        pair(distances, model=f"{name}-{seed}", defense=name, seed=seed)
        for name, seeds in accuracies.items()
        for seed, distances in enumerate(seeds)
    ]
    return Board("quick", {"mnist": {"linf": grid}}, pairs, **parts)


def ranks(board: Board) -> dict[str, Any]:
    return leaderboard(board).set_index("defense")["rank"].to_dict()


class TestRows:
    def test_best_first_and_columns(self) -> None:
        rows = leaderboard(make({"weak": [lost(10)], "strong": [lost(0)], "middle": [lost(5)]}))
        assert tuple(rows.columns) == (*LEADERBOARD_COLUMNS, *EXTRA_COLUMNS)
        assert rows["defense"].tolist() == ["strong", "middle", "weak"]
        assert rows["worst_case_accuracy"].tolist() == [1.0, 0.5, 0.0]
        assert rows["strongest_attack"].tolist() == ["", "gradient", "gradient"]

    def test_mean_spread_and_interval_over_seeds(self) -> None:
        row = leaderboard(make({"a": [[0.05, NAN, NAN, NAN], [0.05, 0.05, 0.05, NAN]]})).iloc[0]
        assert row["seeds"] == 2
        assert row["n"] == 4
        assert row["worst_case_accuracy"] == 0.5
        assert row["std"] == pytest.approx(np.std([0.75, 0.25], ddof=1))
        assert (row["worst_case_low"], row["worst_case_high"]) == pytest.approx(wilson(2, 4))

    def test_one_seed_has_no_spread(self) -> None:
        assert math.isnan(leaderboard(make({"a": [[NAN]]}))["std"].iloc[0])

    def test_other_sample_sizes_are_another_competition(self) -> None:
        rows = leaderboard(make({"few": [[NAN, NAN]], "many": [[NAN, NAN, 0.05]]}))
        assert rows["rank"].tolist() == [1, 1]
        assert sorted(rows["n"]) == [2, 3]

    def test_norms_nobody_attacked_have_no_rows(self) -> None:
        board = make({"a": [[NAN]]})
        budgets = {"mnist": {"linf": (0.1,), "l2": (1.0,)}}
        assert leaderboard(Board("quick", budgets, board.pairs))["norm"].unique().tolist() == ["linf"]

    def test_an_empty_board_has_the_columns(self) -> None:
        rows = leaderboard(Board("quick", {}, []))
        assert not len(rows)
        assert tuple(rows.columns) == (*LEADERBOARD_COLUMNS, *EXTRA_COLUMNS)


class TestNoRank:
    @pytest.mark.parametrize("status", ["crashed", "invalid"])
    def test_a_failed_pair_costs_the_rank_and_says_so_once(self, status: str) -> None:
        board = make({"good": [lost(10)], "bad": [lost(0)]})
        spoiled = record(board.pairs[1].samples, **dict(board.pairs[1].result) | {"status": status, "attack": "liar"})
        rows = leaderboard(Board(board.suite, board.budgets, [*board.pairs, spoiled]))
        assert rows["defense"].tolist() == ["good", "bad"]  # although bad is the more robust on paper
        assert rows["rank"].isna().tolist() == [False, True]
        assert rows["rank"].iloc[0] == 1
        assert rows["note"].iloc[1] == f"liar (linf): {status}"
        assert rows["trust"].iloc[1] == "D"

    def test_missing_pairs_and_failed_seeds_cost_the_rank(self) -> None:
        models = {
            "a-0": model("a", 0),
            "b-0": model("b", 0), "b-1": model("b", 1, "failed", "diverged"),
            "c-0": model("c", 0), "d-0": model("d", 0), "d-1": model("d", 1, "failed"),
        }  # fmt: skip
        board = make(
            {name: [[NAN]] for name in "abcd"}, models=models, missing={"b-1": ["x"], "c-0": ["x", "y"], "a-0": []}
        )
        notes = leaderboard(board).set_index("defense")["note"]
        assert notes.to_dict() == {
            "a": "",
            "b": "seed 1: diverged",
            "c": "seed 0: 2 pairs not run",
            "d": "seed 1: failed",
        }

    def test_pairs_that_nobody_asked_for_cost_the_rank_and_are_counted(self) -> None:
        models = {"a-0": model("a", 0), "b-0": model("b", 0), "c-0": model("c", 0), "d-0": model("d", 0)}
        board = make(
            {name: [lost(0)] for name in "abcd"},
            models=models,
            unasked={"b-0": ["x", "y"], "c-0": ["z"], "a-0": []},
            missing={"c-0": ["u", "v"]},
            left_out={"d-0": ["transfer:pgd"]},
        )
        rows = leaderboard(board).set_index("defense")
        assert rows["note"].to_dict() == {
            "a": "",
            "b": "seed 0: 2 of the suite's 3 pairs were not asked for",
            "c": "seed 0: 2 pairs not run; seed 0: 1 of the suite's 4 pairs were not asked for",
            "d": "",
        }
        assert rows["rank"].isna().to_dict() == {"a": False, "b": True, "c": True, "d": False}
        assert rows["trust"].to_dict() == {"a": "B", "b": "B", "c": "D", "d": "B"}

    def test_a_model_that_failed_training_has_rows_without_numbers(self) -> None:
        models = {"a-0": model("a", 0), "x-0": model("x", 0, "failed", "diverged"), "x-1": model("x", 1)}
        models["x-2"] = model("x", 2)
        board = make({"a": [lost(3)]}, models=models, missing={"x-0": ["pgd"], "x-1": ["pgd", "fgsm"]})
        board = Board("quick", {"mnist": {"linf": (0.05, 0.1), "l2": (1.0,)}}, board.pairs, board.missing, models)
        rows = leaderboard(board)
        rows = rows[rows["defense"] == "x"]
        assert list(zip(rows["norm"], rows["eps"], strict=True)) == [("l2", 1.0), ("linf", 0.05), ("linf", 0.1)]
        assert rows["rank"].isna().all()
        numbers = ["clean_accuracy", "worst_case_accuracy", "worst_case_low", "worst_case_high", "std"]
        assert rows[numbers].isna().all(axis=None)
        assert rows[["seeds", "n"]].eq(0).all(axis=None)
        assert rows["strongest_attack"].eq("").all()
        assert rows["trust"].eq("").all()
        assert set(rows["note"]) == {"seed 0: diverged; seed 1: 2 pairs not run; seed 2: nothing was run"}

    def test_a_failed_model_of_another_data_set_has_none(self) -> None:
        models = {"x-0": model("x", 0, "failed").model_copy(update={"dataset": "cifar10"})}
        assert leaderboard(make({"a": [lost(3)]}, models=models))["defense"].tolist() == ["a"]

    def test_trust_d_costs_the_rank_in_that_norm(self) -> None:
        probed = facts(n=10, left=1.0)
        board = make({"masked": [lost(0)], "plain": [lost(10)]}, health={"masked-0": {"linf": probed}})
        amend(board, lambda found: found["seen"]["attacked"].update(detached=True), "masked-0")
        l2 = [
            pair(lost(3), norm="l2", model=f"{name}-0", defense=name, seed=0, attack="ddn")
            for name in ("masked", "plain")
        ]
        rows = leaderboard(
            Board("quick", {"mnist": {"linf": (0.1,), "l2": (2.0,)}}, [*board.pairs, *l2], {}, {}, board.health)
        )
        masked = rows[rows["defense"] == "masked"].set_index("norm")
        assert masked["trust"].to_dict() == {"l2": "B", "linf": "D"}
        assert masked["rank"].isna().to_dict() == {"l2": False, "linf": True}
        assert masked.loc["linf", "note"].startswith("trust D: automatic differentiation does not reach the input")
        assert "automatic differentiation" in masked.loc["linf", "trust_reasons"]
        assert ranks(Board("quick", {"mnist": {"linf": (0.1,)}}, board.pairs, {}, {}, board.health))["plain"] == 1


class TestTrust:
    def test_is_the_worst_over_seeds(self) -> None:
        probed = facts(n=10, left=1.0)
        board = make({"a": [lost(0), lost(0)]}, health={"a-1": {"linf": probed}})
        amend(board, lambda found: found["seen"]["attacked"].update(inner_optimisation=True), "a-1")
        row = leaderboard(board).iloc[0]
        assert row["trust"] == "D"
        assert pd.isna(row["rank"])
        assert row["note"] != ""
        assert row["trust_reasons"].startswith("the forward pass computes gradients of its own; ")

    def test_attacks_that_search_for_nothing_have_none(self) -> None:
        noise = record(frame(lost(2)), attack="noise", family="noise", access="none")
        row = leaderboard(Board("noise", {"mnist": {"linf": (0.1,)}}, [noise])).iloc[0]
        assert (row["trust"], row["trust_reasons"], row["rank"]) == ("", "", 1)

    def test_one_finding_is_named_once(self) -> None:
        row = leaderboard(make({"a": [lost(0), lost(0)]})).iloc[0]
        reasons = row["trust_reasons"].split("; ")
        assert len(reasons) == len(set(reasons))

    @pytest.mark.parametrize("n", [6, 99])
    def test_few_images_and_chance_cost_no_rank(self, n: int) -> None:
        """A network that guesses is ranked, as every B."""
        blind = pair([NAN] * n, clean=np.arange(n) % 10 == 0, model="blind-0", defense="blind")
        board = make({"a": [lost(n, n)]})
        rows = leaderboard(Board("quick", board.budgets, [*board.pairs, blind])).set_index("defense")
        assert rows["rank"].notna().all()
        assert set(rows["trust"]) == {"B"}
        assert f"judged on {n} images, fewer than 100" in rows.loc["a", "trust_reasons"]
        assert "is not above chance" in rows.loc["blind", "trust_reasons"]
        assert "chance" not in rows.loc["a", "trust_reasons"] or n == 6


class TestRanks:
    def test_models_that_are_not_told_apart_share_a_rank(self) -> None:
        """a and b differ on 5 images (p = 0.06), a and c on 6 (p = 0.03), c and d on 5."""
        board = make({"d": [lost(12, 40)], "c": [lost(7, 40)], "b": [lost(6, 40)], "a": [lost(1, 40)]})
        assert ranks(board) == {"a": 1, "b": 1, "c": 3, "d": 3}

    def test_a_group_is_measured_against_its_first(self) -> None:
        """Each is 5 images from the next, and so 10 from the one after."""
        board = make({name: [lost(5 * i, 40)] for i, name in enumerate("abcde")})
        assert ranks(board) == {"a": 1, "b": 1, "c": 3, "d": 3, "e": 5}

    def test_what_counts_is_images_not_accuracies(self) -> None:
        """Two accuracies ten points apart: told apart if the losses are nested, not if they are scattered."""
        nested = make({"a": [lost(40, 100)], "b": [lost(50, 100)]})
        scattered = make({"a": [lost(40, 100)], "b": [lost(50, 100, first=50)]})
        assert ranks(nested) == {"a": 1, "b": 2}
        assert ranks(scattered) == {"a": 1, "b": 1}

    def test_equals_share_a_rank_whatever_their_images(self) -> None:
        # 0.7 + 0.9 and 0.8 + 0.8 differ in the last bit once averaged
        board = make({"a": [lost(1), lost(3)], "b": [lost(2), lost(2)], "c": [lost(9), lost(9)]})
        assert ranks(board) == {"a": 1, "b": 1, "c": 3}

    def test_on_few_images_nothing_is_told_apart(self) -> None:
        assert set(ranks(make({"a": [lost(0, 5)], "b": [lost(5, 5)]})).values()) == {1}

    def test_where_images_differ_accuracy_decides(self) -> None:
        samples = frame(lost(1)).assign(index=np.arange(10) + 100)
        other = record(samples, eps=None, defense="b", model="b-0")
        assert ranks(Board("quick", {"mnist": {"linf": (0.1,)}}, [*make({"a": [lost(0)]}).pairs, other])) == {
            "a": 1,
            "b": 2,
        }

    def test_eps_are_competitions_of_their_own(self) -> None:
        a, b = np.where(np.arange(40) < 20, 0.15, NAN), np.where(np.arange(40) < 20, 0.05, NAN)
        rows = leaderboard(make({"a": [a.tolist()], "b": [b.tolist()]}, grid=(0.1, 0.2)))
        assert rows.pivot(index="defense", columns="eps", values="rank").to_numpy().tolist() == [[1, 1], [2, 1]]

    def test_order_of_the_records_does_not_matter(self) -> None:
        board = make({name: [lost(5 * (i // 2), 40, first=i % 2)] for i, name in enumerate("abcdef")})
        turned = Board(board.suite, board.budgets, board.pairs[::-1])
        pd.testing.assert_frame_equal(leaderboard(board), leaderboard(turned))


class TestGroups:
    def test_nobody(self) -> None:
        assert group_ranks([], lambda i, j: True) == []

    def test_equals_join_together_if_one_does(self) -> None:
        close = {(0, 2)}
        assert group_ranks([0.9, 0.5, 0.5, 0.2], lambda i, j: (i, j) in close) == [1, 1, 1, 4]

    def test_a_new_group_begins_with_the_first_that_is_told_apart(self) -> None:
        close = {(0, 1), (2, 3)}
        assert group_ranks([0.9, 0.8, 0.5, 0.4, 0.3], lambda i, j: (i, j) in close) == [1, 1, 3, 3, 5]

    def test_by_brute_force(self) -> None:
        rng = np.random.default_rng(0)
        for _ in range(200):
            n = int(rng.integers(1, 9))
            accuracies = sorted(rng.integers(0, 5, n).tolist(), reverse=True)
            table = rng.random((n, n)) < 0.5
            found = group_ranks(accuracies, lambda i, j, table=table: bool(table[i, j]))
            assert found[0] == 1
            for i in range(1, n):
                first = found[i - 1] - 1  # where the group of the one before begins
                equals = [j for j in range(n) if accuracies[j] == accuracies[i]]
                joins = any(table[first, j] for j in equals) or accuracies[i] == accuracies[i - 1]
                assert found[i] == (found[i - 1] if joins else i + 1)
