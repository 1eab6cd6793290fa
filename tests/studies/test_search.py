"""The search of a study's hyperparameters, on networks and images that no study uses."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from harness.datasets.registry import DataSource
from harness.errors import UserError
from harness.execution.jobs import Context
from harness.execution.runner import run
from harness.planning.specs import ModelSpec
from harness.records.home import Home
from harness.studies.search import COLUMNS, SEED, candidates, held_out, plan, scores
from suites import study
from tests.helpers.commands import call

SMOKE = study("lee2017").profile("smoke")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    source = DataSource("digits")
    data = source.load()
    tried = candidates(study("lee2017"), "smoke", data.info, ["dropout", "fg_l2"])
    home = Home(tmp_path_factory.mktemp("search")).create()
    ended = run(
        plan(study("lee2017"), "smoke", data.info, tried), Context(home, {"digits": source}), jobs=1, command=""
    )
    assert ended.failures == ()
    return scores(tried, home, data)


def test_every_value_is_tried_and_the_best_is_named(found: pd.DataFrame) -> None:
    assert tuple(found.columns) == COLUMNS
    assert found["setting"].tolist() == ["dropout"] * 3 + ["fg_l2"] * 2
    for setting, rows in found.groupby("setting"):
        (best,) = rows[rows["best"]].to_dict("records")
        assert best["accuracy"] == rows["accuracy"].max()
        (used,) = rows[rows["used"]].to_dict("records")
        assert used["value"] == SMOKE.settings[setting]
        assert best["accuracy"] > used["accuracy"] or best["value"] == used["value"]
    assert (found["low"] <= found["accuracy"]).all()
    assert (found["accuracy"] <= found["high"]).all()


def test_networks_are_those_of_no_study() -> None:
    info = DataSource("digits").info()
    mine = {one.spec.key for one in candidates(study("lee2017"), "smoke", info)}
    seeds = {one.spec.seed for one in candidates(study("lee2017"), "smoke", info)}
    theirs = {spec.key for seed in range(50) for spec in study("lee2017").models(SMOKE, info, seed).values()}
    assert seeds == {SEED}
    assert not mine & theirs


def test_a_candidate_differs_from_the_profile_in_its_setting_alone() -> None:
    info = DataSource("digits").info()
    for one in candidates(study("lee2017"), "smoke", info):
        usual: ModelSpec = study("lee2017").models(SMOKE, info, SEED)[one.search.model]
        assert (one.spec.key == usual.key) == one.used


def test_held_out_images_are_none_that_the_network_saw() -> None:
    data = DataSource("digits").load()
    one = candidates(study("lee2017"), "smoke", data.info)[0]
    positions = held_out(one.spec, data)
    assert positions is not None
    seen, _ = data.train_sample(600)
    assert not set(positions.tolist()) & set(seen.tolist())
    assert len(positions) == len(data.x_train) - 600
    assert torch.unique(data.y_train[positions]).numel() == 10


@pytest.mark.parametrize(
    ("name", "only", "complaint"),
    [("gu2014", [], "has no hyperparameter"), ("lee2017", ["cc"], "unknown setting of lee2017 'cc'; did you mean c")],
)
def test_what_cannot_be_searched(name: str, only: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        candidates(study(name), "smoke", DataSource("digits").info(), only)


def test_the_command_writes_its_table(tmp_path: Path) -> None:
    result = call("search", "lee2017", "--profile", "smoke", "--setting", "fg_l2", "--home", tmp_path, "--jobs", 1)
    assert result.exit_code == 0, result.output
    assert "best" in result.output
    assert len(pd.read_csv(tmp_path / "search-lee2017-smoke.csv")) == 2
