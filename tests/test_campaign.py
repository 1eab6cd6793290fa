"""Boards from records: who may be ranked, and what an older declaration of the same name is worth."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.campaign import boards, write_plan
from harness.leaderboard import leaderboard
from harness.metrics import DISTANCES, FLAGS, Board, Pair
from harness.store import Home

N = 10


def samples(broken: int) -> pd.DataFrame:
    found = np.arange(N) < broken
    frame = pd.DataFrame({"index": np.arange(N), "label": 0, "clean_pred": 0, "clean_correct": True, "attacked": True})
    frame["wrong_share"] = found.astype(float)
    frame["survives_rounding"] = found
    frame["adv_pred"] = found.astype(int)
    frame["adversarial"] = found
    for name in FLAGS:
        frame[name] = False
    for name in DISTANCES:
        frame[name] = np.where(found, 0.05, np.nan)
    return frame.assign(shard=0)


class Records:
    """Plans over two attacks, and results as they come in."""

    def __init__(self) -> None:
        self.plans: list[Mapping[str, Any]] = []
        self.results: dict[str, Pair] = {}
        self.facts: Callable[[str, str], Mapping[str, Any] | None] = lambda model, probe: None

    def plan(
        self,
        *models: tuple[str, str],
        run: Mapping[str, int],
        attacks: tuple[str, ...] = ("noise", "pgd"),
        cascade: bool = False,
        walkers: tuple[str, ...] = (),
        stochastic: bool = False,
    ) -> None:
        """Models as (defense, key); ``run`` says which attacks, and how many images they break."""
        way = "-cascade" if cascade else ""
        cells = [
            {
                "cell": f"{key}-{attack}{way}",
                "cascade": cascade,
                "model": key,
                "dataset": "digits",
                "n": N,
                "attack": attack,
            }
            | {"norm": "linf", "eps": 0.1, "source": "", "needs_a_boundary": attack in walkers}
            for _, key in models
            for attack in attacks
        ]
        entries = [
            {"model": key, "dataset": "digits", "architecture": "mlp-8", "defense": defense, "seed": 0, "ranked": True}
            | {"stochastic": stochastic}
            for defense, key in models
        ]
        wanted = [cell for cell in cells if cell["attack"] in run]
        record = {"suite": "s", "budgets": {"digits": {"linf": [0.1]}}, "models": entries, "cells": wanted}
        looks = [{"probe": f"probe-{key}", "model": key, "norm": "linf"} for _, key in models]
        self.plans.append(record | {"battery": cells, "probes": looks})
        named = {key: defense for defense, key in models}
        for cell in wanted:
            meta = {"architecture": "mlp-8", "defense": named[cell["model"]], "seed": 0, "toolkit": "gauntlet"}
            meta |= {"kind": "budget", "status": "ok", "forwards": 1, "backwards": 1, "seconds": 1.0}
            self.results[cell["cell"]] = Pair(cell | meta, samples(run[cell["attack"]]))

    def board(self) -> Board:
        (board,) = boards(
            self.plans,
            self.results.get,
            lambda key: {"status": "ok", "error": "", "card": {}},
            self.facts,
        )
        return board


def ranks(board: Board) -> dict[str, tuple[object, str]]:
    frame = leaderboard(board)
    return {
        row["defense"]: (None if pd.isna(row["rank"]) else int(row["rank"]), row["note"])
        for row in frame.to_dict("records")
    }


def test_a_model_that_met_fewer_attacks_has_no_rank() -> None:
    records = Records()
    records.plan(("standard", "a"), run={"noise": 1, "pgd": 8})
    records.plan(("dropout", "b"), run={"noise": 0})
    found = ranks(records.board())
    assert found["standard"] == (1, "")
    assert found["dropout"][0] is None
    assert "not run" in found["dropout"][1]


def test_an_attack_added_to_the_suite_is_owed_by_everybody() -> None:
    records = Records()
    records.plan(("standard", "a"), run={"noise": 1, "pgd": 2})
    records.plan(("dropout", "b"), run={"noise": 1, "pgd": 3, "square": 4}, attacks=("noise", "pgd", "square"))
    found = ranks(records.board())
    assert found["dropout"] == (1, "")
    assert found["standard"][0] is None
    assert "not run" in found["standard"][1]


def test_a_model_that_draws_owes_no_walk_along_its_boundary() -> None:
    records = Records()
    walk = {"attacks": ("noise", "hop"), "walkers": ("hop",)}
    records.plan(("noisy", "b"), run={"noise": 1}, attacks=("noise",), stochastic=True)
    records.plan(("standard", "a"), run={"noise": 1, "hop": 2}, **walk)  # type: ignore[arg-type]
    assert ranks(records.board())["noisy"] == (1, "")
    records.plan(("other", "c"), run={"noise": 1}, **walk)  # type: ignore[arg-type]
    assert "not run" in ranks(records.board())["other"][1]


def test_what_a_plan_no_longer_asks_of_a_model_is_not_asked() -> None:
    records = Records()
    records.plan(("noisy", "b"), run={"noise": 1}, attacks=("noise", "hop"), walkers=("hop",), stochastic=True)
    assert "not run" in ranks(records.board())["noisy"][1]
    records.plan(("noisy", "b"), run={"noise": 1}, attacks=("noise",), stochastic=True)
    assert ranks(records.board())["noisy"] == (1, "")


def test_what_is_left_out_afterwards_still_counts() -> None:
    records = Records()
    both = ("noise", "pgd", "transfer:pgd")
    records.plan(("standard", "a"), run={"noise": 1, "pgd": 2, "transfer:pgd": 7}, attacks=both)
    records.plan(("dropout", "b"), run={"noise": 1, "pgd": 2}, attacks=both)
    for model in (("standard", "a"), ("dropout", "b")):
        records.plan(model, run={"noise": 1, "pgd": 2})
        records.plans[-1] = {**records.plans[-1], "left_out": ["transfer:pgd"]}
    rows = leaderboard(records.board()).set_index("defense")
    assert rows["worst_case_accuracy"].to_dict() == {"dropout": 0.8, "standard": 0.3}
    assert rows["rank"].notna().all()


def test_a_model_declared_anew_takes_the_place_of_the_old_one() -> None:
    records = Records()
    records.plan(("standard", "old"), run={"noise": 0, "pgd": 0})
    records.plan(("standard", "new"), run={"noise": 1, "pgd": 8})
    board = records.board()
    assert set(board.models) == {"new"}
    (row,) = leaderboard(board).to_dict("records")
    assert row["seeds"] == 1
    assert row["worst_case_accuracy"] == 0.2


def test_the_rest_of_the_battery_may_come_later() -> None:
    records = Records()
    records.plan(("standard", "a"), run={"noise": 1})
    records.plan(("standard", "a"), run={"pgd": 8})
    assert ranks(records.board())["standard"] == (1, "")


def test_what_a_probe_found_is_on_the_board_under_its_norm() -> None:
    records = Records()
    records.plan(("standard", "a"), ("pgd", "unprobed"), run={"noise": 1, "pgd": 3})
    records.facts = lambda model, probe: {"of": model, "from": probe} if model != "unprobed" else None
    assert records.board().health == {"a": {"linf": {"of": "a", "from": "probe-a"}}, "unprobed": {}}


def test_a_cascade_does_not_replace_what_saw_every_image() -> None:
    records = Records()
    records.plan(("standard", "a"), run={"noise": 1, "pgd": 3})
    records.plan(("standard", "a"), ("pgd", "b"), run={"noise": 2, "pgd": 4}, cascade=True)
    shown = {pair.meta["cell"] for pair in records.board().pairs}
    assert shown == {"a-noise", "a-pgd", "b-noise-cascade", "b-pgd-cascade"}


def test_the_full_matrix_replaces_a_cascade() -> None:
    records = Records()
    records.plan(("standard", "a"), run={"noise": 2, "pgd": 4}, cascade=True)
    records.plan(("standard", "a"), run={"noise": 1, "pgd": 3})
    assert {pair.meta["cell"] for pair in records.board().pairs} == {"a-noise", "a-pgd"}


def test_a_clock_that_was_set_back_does_not_make_a_new_plan_an_old_one(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").create()
    write_plan(home, {"plan": "b", "n": 1})
    future = time.time_ns() + 10**13
    os.utime(home.plans / "b.json", ns=(future, future))
    write_plan(home, {"plan": "a", "n": 2})
    order = sorted(home.plans.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    assert [file.stem for file in order] == ["b", "a"]
    kept = (home.plans / "a.json").stat().st_mtime_ns
    write_plan(home, {"plan": "a", "n": 2})
    assert (home.plans / "a.json").stat().st_mtime_ns == kept
