"""Boards from records: who may be ranked, and what an older declaration of the same name is worth."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import RestException

from harness.errors import UserError
from harness.leaderboard import leaderboard
from harness.metrics.pairs import DISTANCES, FLAGS, Board, Pair, pair_rows, worst_case
from harness.records.boards import boards, boards_from_home
from harness.records.files import read_json, set_aside, write_json, write_record
from harness.records.home import Home
from harness.records.plans import read_plan, write_plan
from harness.schema.models import Card, ModelEntry, ModelState
from harness.schema.pairs import Result
from harness.schema.plans import PlanRecord, ProbeEntry
from harness.schema.probes import ProbeFacts
from harness.tracking.connection import default_uri
from harness.tracking.reading import read_boards
from harness.tracking.tracker import Tracker
from harness.trust.grade import trust
from tests.helpers.boards import frame as sample_frame
from tests.helpers.boards import plan, record, result, write_pair
from tests.helpers.boards import sound as sound_board

N = 10
MODEL = {"dataset": "mnist", "architecture": "mlp-200-200", "seed": 0}


def samples(broken: int) -> pd.DataFrame:
    found = np.arange(N) < broken
    label = np.arange(N) % 10
    frame = pd.DataFrame({"index": np.arange(N), "label": label, "clean_pred": label, "clean_correct": True})
    frame["target"] = -1
    frame["attacked"] = True
    frame["wrong_share"] = found.astype(float)
    frame["survives_rounding"] = found
    frame["adv_pred"] = (label + found) % 10
    frame["adversarial"] = found
    for name in FLAGS:
        frame[name] = False
    for name in DISTANCES:
        frame[name] = np.where(found, 0.05, np.nan)
    return frame.assign(shard=0)


class Records:
    """Plans over two attacks, and results as they come in."""

    def __init__(self) -> None:
        self.plans: list[PlanRecord] = []
        self.results: dict[str, Pair] = {}
        self.facts: Callable[[str, str], ProbeFacts | None] = lambda model, probe: None

    def plan(
        self,
        *models: tuple[str, str],
        run: Mapping[str, int],
        attacks: tuple[str, ...] = ("noise", "pgd"),
        cascade: bool = False,
        walkers: tuple[str, ...] = (),
        stochastic: bool = False,
        left_out: tuple[str, ...] | None = None,
        lost: tuple[str, ...] = (),
    ) -> None:
        """Models as (defense, key); ``run`` says which attacks, and how many images they break; some ``lost`` that."""
        way = "-cascade" if cascade else ""
        named = {"dataset": "digits", "architecture": "mlp-8", "seed": 0}
        pairs = [
            result(
                N,
                **named,
                cell=f"{key}-{attack}{way}",
                cascade=cascade,
                model=key,
                defense=defense,
                attack=attack,
                needs_a_boundary=attack in walkers,
                source="mlp-8 standard seed 1" if attack.startswith("transfer:") else "",
            )
            for defense, key in models
            for attack in attacks
        ]
        wanted = [pair for pair in pairs if pair.attack in run]
        record = plan(
            *pairs,
            asked=wanted,
            suite="s",
            budgets={"digits": {"linf": (0.1,)}},
            models=tuple(ModelEntry(**named, defense=d, model=key, stochastic=stochastic) for d, key in models),
            probes=tuple(ProbeEntry(probe=f"probe-{key}", model=key, norm="linf") for _, key in models),
            left_out=left_out or (),
        )
        self.plans.append(record)
        self.results |= {pair.cell: Pair(pair, samples(run[pair.attack])) for pair in wanted if pair.attack not in lost}

    def board(self) -> Board:
        (board,) = boards(
            self.plans,
            self.results.get,
            lambda key: ModelState(),
            self.facts,
        )
        return board


ALL = ("noise", "pgd", "square")


def grade(board: Board, model: str) -> str:
    found = trust(board, model, "linf")
    assert found is not None
    return found.grade


def answer(board: Board, model: str, name: str) -> tuple[str, str]:
    """Status and grade of one check."""
    found = trust(board, model, "linf")
    assert found is not None
    return next((check.status, check.grade) for check in found.checks if check.name == name)


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
    assert found["dropout"] == (None, "seed 0: 1 of the suite's 2 pairs were not asked for")
    board = records.board()
    assert (dict(board.unasked), dict(board.missing)) == ({"b": ["pgd (linf 0.1)"]}, {})


@pytest.mark.parametrize("asked_again", [False, True])
def test_what_was_asked_for_and_has_no_result_is_missing_whoever_asked(asked_again: bool) -> None:
    records = Records()
    records.plan(("standard", "a"), run={"noise": 1, "pgd": 2, "square": 3}, attacks=ALL, lost=("pgd",))
    if asked_again:  # a choice of attacks afterwards makes no failure a choice
        records.plan(("standard", "a"), run={"noise": 1}, attacks=ALL)
    board = records.board()
    assert (dict(board.unasked), dict(board.missing)) == ({}, {"a": ["pgd (linf 0.1)"]})
    assert ranks(board)["standard"] == (None, "seed 0: 1 pairs not run")
    assert grade(board, "a") == "D"


def test_missing_and_unasked_pairs_are_told_apart() -> None:
    records = Records()
    records.plan(("standard", "a"), run={"noise": 1, "pgd": 2}, attacks=ALL, lost=("pgd",))
    board = records.board()
    assert (dict(board.unasked), dict(board.missing)) == ({"a": ["square (linf 0.1)"]}, {"a": ["pgd (linf 0.1)"]})
    note = "seed 0: 1 pairs not run; seed 0: 1 of the suite's 3 pairs were not asked for"
    assert ranks(board)["standard"] == (None, note)


def test_a_battery_reduced_by_hand_is_no_failure() -> None:
    records = Records()
    records.plan(("standard", "a"), run={"noise": 1, "pgd": 2}, attacks=ALL)
    board = records.board()
    assert grade(board, "a") == "B"
    found = trust(board, "a", "linf")
    assert found is not None
    answers = {check.name: check for check in found.checks}
    assert (answers["battery-asked"].status, answers["battery-complete"].status) == ("skipped", "passed")
    assert ranks(board)["standard"][0] is None
    records.plan(("standard", "a"), run={"square": 3}, attacks=ALL)  # the rest comes later
    assert (dict(records.board().unasked), ranks(records.board())["standard"]) == ({}, (1, ""))


WITH_TRANSFER = ("noise", "pgd", "transfer:pgd")
LEFT_OUT = ("transfer:pgd",)


def test_a_transfer_from_the_model_itself_is_not_missed_and_any_other_pair_is() -> None:
    """Of two seeds of one defense the one is the other's source: its battery lacks that transfer by nature."""
    records = Records()
    records.plan(("standard", "a"), run={"noise": 1, "pgd": 8})
    records.plan(("dropout", "b"), run={"noise": 1, "pgd": 7, "transfer:pgd": 2}, attacks=WITH_TRANSFER)
    assert dict(records.board().missing) == {}
    records.plan(("dropout", "c"), run={"noise": 1, "pgd": 7, "square": 2}, attacks=ALL)
    assert records.board().missing["a"] == ["square (linf 0.1)"]


def test_transfers_that_were_left_out_cost_no_rank_and_the_a() -> None:
    records = Records()
    records.plan(("standard", "a"), run={"noise": 1, "pgd": 8}, left_out=LEFT_OUT)
    records.plan(("dropout", "b"), run={"noise": 1, "pgd": 7, "transfer:pgd": 2}, attacks=WITH_TRANSFER, left_out=())
    board = records.board()
    assert (dict(board.left_out), dict(board.unasked), dict(board.missing)) == ({"a": ["transfer:pgd"]}, {}, {})
    assert [ranks(board)[name][1] for name in ("standard", "dropout")] == ["", ""]
    assert answer(board, "a", "white-box-vs-transfer") == ("skipped", "B")
    assert answer(board, "b", "white-box-vs-transfer")[1] == "A"


def test_a_suite_without_transfers_leaves_none_out() -> None:
    records = Records()
    records.plan(("standard", "a"), run={"noise": 1, "pgd": 8})
    records.plan(("dropout", "b"), run={"noise": 1, "pgd": 8}, left_out=())
    assert dict(records.board().left_out) == {}
    assert answer(records.board(), "a", "white-box-vs-transfer") == ("skipped", "A")


def test_what_a_transfer_found_stays_found_when_it_is_left_out_later() -> None:
    records = Records()
    records.plan(("standard", "a"), run={"noise": 1, "pgd": 2, "transfer:pgd": 9}, attacks=WITH_TRANSFER)
    for _ in range(2):
        records.plan(("standard", "a"), run={"noise": 1, "pgd": 2}, left_out=LEFT_OUT)
        board = records.board()
        assert {pair.result.attack for pair in board.pairs} == set(WITH_TRANSFER)
        assert leaderboard(board)["worst_case_accuracy"].tolist() == [0.1]
        assert dict(board.left_out) == {}


@pytest.mark.parametrize("times", [1, 2])
def test_a_transfer_that_failed_and_is_left_out_later_was_not_asked_and_is_not_missing(times: int) -> None:
    records = Records()
    run = {"noise": 1, "pgd": 2, "transfer:pgd": 9}
    records.plan(("standard", "a"), run=run, attacks=WITH_TRANSFER, lost=LEFT_OUT)
    assert dict(records.board().missing) == {"a": ["transfer:pgd from mlp-8 standard seed 1 (linf 0.1)"]}
    for _ in range(times):
        records.plan(("standard", "a"), run={"noise": 1, "pgd": 2}, left_out=LEFT_OUT)
    board = records.board()
    assert (dict(board.missing), dict(board.left_out)) == ({}, {"a": ["transfer:pgd"]})
    assert ranks(board)["standard"] == (1, "")
    records.plan(("standard", "a"), run=run, attacks=WITH_TRANSFER, lost=LEFT_OUT)  # and asked for again
    assert dict(records.board().missing) == {"a": ["transfer:pgd from mlp-8 standard seed 1 (linf 0.1)"]}


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
    assert "1 of the suite's 2 pairs were not asked for" in ranks(records.board())["other"][1]


def test_what_a_plan_no_longer_asks_of_a_model_is_not_asked() -> None:
    records = Records()
    records.plan(("noisy", "b"), run={"noise": 1}, attacks=("noise", "hop"), walkers=("hop",), stochastic=True)
    assert "1 of the suite's 2 pairs were not asked for" in ranks(records.board())["noisy"][1]
    records.plan(("noisy", "b"), run={"noise": 1}, attacks=("noise",), stochastic=True)
    assert ranks(records.board())["noisy"] == (1, "")


def test_what_is_left_out_afterwards_still_counts() -> None:
    records = Records()
    both = ("noise", "pgd", "transfer:pgd")
    records.plan(("standard", "a"), run={"noise": 1, "pgd": 2, "transfer:pgd": 7}, attacks=both)
    records.plan(("dropout", "b"), run={"noise": 1, "pgd": 2}, attacks=both)
    for model in (("standard", "a"), ("dropout", "b")):
        records.plan(model, run={"noise": 1, "pgd": 2})
        records.plans[-1] = records.plans[-1].model_copy(update={"left_out": ("transfer:pgd",)})
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


BOTH = {"a-noise", "a-pgd", "a-noise-cascade", "a-pgd-cascade"}


def test_a_cascade_and_what_saw_every_image_both_count() -> None:
    """Attacks of a cascade were not shown what those before them broke in it."""
    records = Records()
    records.plan(("standard", "a"), run={"noise": 1, "pgd": 3})
    records.plan(("standard", "a"), ("pgd", "b"), run={"noise": 2, "pgd": 4}, cascade=True)
    shown = {pair.result.cell for pair in records.board().pairs}
    assert shown == {*BOTH, "b-noise-cascade", "b-pgd-cascade"}


def test_the_full_matrix_and_the_cascade_before_it_both_count() -> None:
    records = Records()
    records.plan(("standard", "a"), run={"noise": 2, "pgd": 4}, cascade=True)
    records.plan(("standard", "a"), run={"noise": 1, "pgd": 3})
    assert {pair.result.cell for pair in records.board().pairs} == BOTH


@pytest.mark.parametrize("cascade", [True, False])
def test_of_a_pair_run_both_ways_the_one_that_is_done_will_do(cascade: bool) -> None:
    records = Records()
    records.plan(("standard", "a"), run={"noise": 1, "pgd": 3}, cascade=not cascade)
    records.plan(("standard", "a"), run={"noise": 2}, cascade=cascade)
    board = records.board()
    assert len(board.pairs) == 3
    assert bool(board.missing or board.unasked) == (not cascade)  # the full matrix was asked for, and is not there


def test_pairs_of_one_plan_that_are_called_alike_all_count() -> None:
    """Two eps that six digits do not tell apart, and an attack twice."""
    records = Records()
    records.plan(("standard", "a"), run={"noise": 1, "pgd": 3})
    (made,) = records.plans
    again = [
        pair.model_copy(update={"cell": f"{pair.cell}-{name}", "eps": eps})
        for pair in made.battery
        for name, eps in (("near", 0.1 + 1e-9), ("twin", pair.eps))
    ]
    every = (*made.battery, *again)
    records.plans = [made.model_copy(update={"battery": every, "cells": every})]
    board = records.board()
    assert len(board.pairs) == 2
    assert {name: len(names) for name, names in board.missing.items()} == {"a": 4}


def test_a_clock_that_was_set_back_does_not_make_a_new_plan_an_old_one(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").create()
    write_plan(home, plan(plan="b"))
    future = time.time_ns() + 10**13
    os.utime(home.plans / "b.json", ns=(future, future))
    write_plan(home, plan(plan="a"))
    order = sorted(home.plans.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    assert [file.stem for file in order] == ["b", "a"]
    kept = (home.plans / "a.json").stat().st_mtime_ns
    write_plan(home, plan(plan="a"))
    assert (home.plans / "a.json").stat().st_mtime_ns == kept


@pytest.fixture
def written(tmp_path: Path) -> Home:
    """A home of three models under one suite: under all of it, under some by hand, and without its transfer."""
    home = Home(tmp_path / "home").create()
    for place, (key, asked, left_out) in enumerate(
        (("whole", None, ()), ("chosen", {"fgsm", "pgd", "noise"}, ()), ("lonely", None, ("transfer:pgd",)))
    ):
        fields = {"model": key, "defense": key, "command": "x", "declaration": {"is": "Cell"}}
        write_record(home.model(key) / "card.json", Card(**MODEL, defense=key, sha256=key, seconds=1.0))
        pairs = [pair for pair in sound_board().pairs if pair.result.attack not in left_out]
        battery = [Result(**dict(pair.result) | fields | {"cell": f"{key}{i:02d}"}) for i, pair in enumerate(pairs)]
        wanted = [one for one in battery if asked is None or one.attack in asked]
        for pair, one in zip(pairs, battery, strict=True):
            if one in wanted:
                write_pair(home, pair, **dict(one))
        entry = ModelEntry(**MODEL, defense=key, model=key, declaration={"is": key})
        write_plan(home, plan(*battery, asked=wanted, plan=f"p{place}", models=(entry,), left_out=left_out))
    return home


@pytest.mark.slow
def test_boards_from_home_and_from_mlflow_say_the_same(written: Home) -> None:
    tracker = Tracker(written, default_uri(written))
    tracker.rebuild()
    (here,), (there,) = boards_from_home(written), read_boards(tracker)
    for board in (here, there):
        assert {key: len(names) for key, names in board.unasked.items()} == {"chosen": 7}
        assert dict(board.left_out) == {"lonely": ["transfer:pgd"]}
        assert dict(board.missing) == {}
    for model in ("whole", "chosen", "lonely"):
        assert trust(here, model, "linf") == trust(there, model, "linf")
    assert answer(there, "chosen", "battery-asked") == ("skipped", "B")
    assert answer(there, "lonely", "white-box-vs-transfer") == ("skipped", "B")
    pd.testing.assert_frame_equal(leaderboard(here), leaderboard(there))
    found = {run.data.tags["gauntlet.model"]: run for run in tracker._find("model", "chosen")}
    run = found["chosen"]
    assert run.info.status == "FINISHED"  # a choice is no failure
    assert "apgd (linf 0.1): not asked for" in run.data.tags["no_rank"]
    assert "score/linf quick" not in run.data.metrics
    assert "score/linf quick" in tracker._find("model", "lonely")[0].data.metrics


@pytest.mark.parametrize("left_out", ["transfer:pgd", [1], {"a": "b"}, None])
def test_a_plan_that_leaves_out_nonsense_is_damaged(written: Home, left_out: object) -> None:
    path = written.plans / "p0.json"
    write_json(path, read_json(path) | {"left_out": left_out})
    with pytest.raises(UserError, match="is damaged"):
        read_plan(path)


def test_plans_of_before_leave_nothing_out(written: Home) -> None:
    path = written.plans / "p2.json"
    write_json(path, {name: value for name, value in read_json(path).items() if name != "left_out"})
    (board,) = boards_from_home(written)
    assert dict(board.left_out) == {}


@pytest.mark.slow
def test_mlflow_models_show_what_holds_now(written: Home) -> None:
    """A number that fell is the one that is shown, and one that no longer holds is shown no more."""
    tracker = Tracker(written, default_uri(written))
    tracker.rebuild()

    def shown(key: str) -> tuple[dict[str, float], dict[str, float]]:
        (run,) = tracker._find("model", key)
        where = f"tags.`gauntlet.model` = '{key}'"
        (model,) = tracker.client.search_logged_models([tracker.experiment], filter_string=where)
        assert model.source_run_id == run.info.run_id
        (images,) = run.inputs.dataset_inputs
        judged = {(metric.dataset_name, metric.dataset_digest) for metric in model.metrics}
        assert judged == {(images.dataset.name, images.dataset.digest)}
        latest = sorted(model.metrics, key=lambda metric: metric.timestamp)
        return run.data.metrics, {metric.key: metric.value for metric in latest}

    (board,) = boards_from_home(written)
    for key, pairs in board.by_model.items():
        of_run, of_model = shown(key)
        assert of_model.items() <= of_run.items()
        rows = pair_rows(board)
        for row in rows[rows["defense"] == key].to_dict("records"):
            assert of_model[f"{row['attack']} linf {row['eps']:g} quick"] == row["robust_accuracy"]
        worst = {f"worst linf {eps:g} quick": worst_case(pairs, "linf", eps).accuracy for eps in (0.05, 0.1)}
        assert (worst.items() <= of_model.items()) == (key != "chosen")
        assert of_model.get("score/linf quick") == (None if key == "chosen" else worst["worst linf 0.05 quick"])

    one = next(pair for pair in board.by_model["whole"] if pair.result.attack == "apgd" and pair.result.eps == 0.05)
    broken = record(sample_frame(np.full(one.n, 0.05)), **{**dict(one.result), "n": one.n})
    write_pair(written, broken)
    gone = next(pair.result.cell for pair in board.by_model["lonely"] if pair.result.attack == "fgsm")
    set_aside(written.cell(gone))
    tracker.reopen()
    tracker.close_all()
    for numbers in shown("whole"):
        assert numbers["worst linf 0.05 quick"] == numbers["score/linf quick"] == 0
    of_run, of_model = shown("lonely")
    assert "apgd linf 0.1 quick" in of_model
    assert not {"worst linf 0.1 quick", "score/linf quick"} & of_model.keys()
    assert np.isnan(of_run["score/linf quick"])
    tracker.reopen()
    tracker.close_all()  # nothing new, nothing twice
    assert shown("lonely")[1] == of_model


@pytest.mark.slow
def test_a_server_without_models_gets_the_runs(written: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker(written, default_uri(written))
    answer = RestException({"error_code": "ENDPOINT_NOT_FOUND", "message": "what is a model"})

    def refuse(*_: object, **__: object) -> None:
        raise answer

    monkeypatch.setattr(type(tracker.client), "search_logged_models", refuse)
    tracker.rebuild()
    assert tracker.sort_key() == "score/linf quick"
