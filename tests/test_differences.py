"""Which numbers moved between two homes, and what counts as noise."""

from __future__ import annotations

import math
import os
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from harness.differences import COLUMNS, STATES, counts, differences
from harness.errors import UserError
from harness.metrics import Pair, wilson
from harness.results import samples_to_bytes
from harness.store import Home, write_json

HELPERS = runpy.run_path(str(Path(__file__).parent / "boards.py"))
CLI = runpy.run_path(str(Path(__file__).parent / "commands.py"))
budget, minimal, NAN = HELPERS["budget"], HELPERS["pair"], math.nan


def needed(broken: int, n: int = 100, first: int = 0) -> Any:
    """Distances by which images ``first`` ... ``first + broken`` are lost at eps 0.1."""
    index = np.arange(n)
    return np.where((index >= first) & (index < first + broken), 0.05, NAN)


class Records:
    """A home written by hand."""

    def __init__(self, path: Path, budgets: dict[str, Any] | None = None) -> None:
        self.home = Home(path).create()
        record = {"plan": "p", "suite": "s", "command": "test", "reference": {}}
        empty: dict[str, list[str]] = {"models": [], "cells": [], "battery": [], "probes": []}
        write_json(self.home.plans / "p.json", record | empty | {"budgets": budgets or {"mnist": {"linf": [0.1, 0.2]}}})

    def add(self, cell: str, pair: Pair, **meta: Any) -> Path:
        folder = self.home.cell(cell)
        write_json(folder / "result.json", {**pair.meta, "cell": cell, **meta})
        (folder / "samples.parquet").write_bytes(samples_to_bytes(pair.samples))
        return folder


@pytest.fixture
def a(tmp_path: Path) -> Records:
    return Records(tmp_path / "a")


@pytest.fixture
def b(tmp_path: Path) -> Records:
    return Records(tmp_path / "b")


def only(a: Records, b: Records) -> dict[str, Any]:
    frame = differences(a.home, b.home)
    assert list(frame) == list(COLUMNS)
    (row,) = frame.to_dict("records")
    return row


@pytest.mark.parametrize(
    ("before", "after", "state"),
    [
        ((30, 0), (30, 0), "equal"),
        ((30, 0), (35, 0), "within noise"),  # 5 images, 2 / 32
        ((30, 0), (36, 0), "beyond noise"),  # 6 images, 2 / 64
        ((36, 0), (30, 0), "beyond noise"),
        ((30, 0), (30, 10), "within noise"),  # as many, but others
    ],
)
def test_on_the_same_images_the_test_is_exact(
    a: Records, b: Records, before: tuple[int, int], after: tuple[int, int], state: str
) -> None:
    first, second = needed(before[0], first=before[1]), needed(after[0], first=after[1])
    a.add("c", budget(first, 0.1))
    b.add("c", budget(second, 0.1))
    row = only(a, b)
    stands = np.isnan(first), np.isnan(second)
    lost, won = int((stands[0] & ~stands[1]).sum()), int((~stands[0] & stands[1]).sum())
    assert (row["state"], row["test"], row["matched"]) == (state, "paired", "key")
    assert (row["only_a"], row["only_b"]) == (lost, won)
    assert (row["accuracy_a"], row["accuracy_b"]) == (stands[0].mean(), stands[1].mean())
    assert row["difference"] == pytest.approx(stands[1].mean() - stands[0].mean())
    assert row["p_value"] == pytest.approx(binomtest(lost, lost + won).pvalue if lost + won else 1.0)
    assert row["low"] < row["difference"] < row["high"]


def test_the_order_of_images_does_not_matter(a: Records, b: Records) -> None:
    pair = budget(needed(40), 0.1)
    a.add("c", pair)
    b.add("c", Pair(pair.meta, pair.samples.sample(frac=1, random_state=0).reset_index(drop=True)))
    assert only(a, b)["state"] == "equal"


@pytest.mark.parametrize(("after", "state"), [(30, "equal"), (36, "within noise"), (70, "beyond noise")])
def test_on_other_images_intervals_decide(a: Records, b: Records, after: int, state: str) -> None:
    a.add("c", budget(needed(30), 0.1))
    other = budget(needed(after), 0.1)
    b.add("c", Pair(other.meta, other.samples.assign(index=np.arange(100) + 7)))
    row = only(a, b)
    assert (row["state"], row["test"]) == (state, "intervals")
    low, high = wilson(70, 100)
    assert row["low"] == pytest.approx(wilson(100 - after, 100)[0] - high)
    assert row["high"] == pytest.approx(wilson(100 - after, 100)[1] - low)
    assert math.isnan(row["p_value"])


def test_other_labels_are_other_images(a: Records, b: Records) -> None:
    pair = budget(needed(30), 0.1)
    a.add("c", pair)
    b.add("c", Pair(pair.meta, pair.samples.assign(label=1)))
    assert only(a, b)["test"] == "intervals"


def test_a_minimal_attack_is_looked_at_wherever_a_plan_judges_it(tmp_path: Path, a: Records) -> None:
    b = Records(tmp_path / "b", {"mnist": {"linf": [0.1, 0.3]}})
    a.add("c", minimal([0.05, 0.15, 0.25, NAN]))
    b.add("c", minimal([0.05, 0.05, 0.25, NAN]))
    frame = differences(a.home, b.home).set_index("eps")
    assert sorted(frame.index) == [0.1, 0.2, 0.3]
    assert dict(frame["state"]) == {0.1: "within noise", 0.2: "equal", 0.3: "equal"}
    assert frame.loc[0.1, "difference"] == -0.25


def test_a_minimal_attack_that_no_plan_judges_counts_at_any_distance(tmp_path: Path) -> None:
    homes = [Records(tmp_path / name, {"mnist": {"l2": [1.0]}}) for name in "ab"]
    homes[0].add("c", minimal([5.0, NAN]))
    homes[1].add("c", minimal([5.0, 9.0]))
    row = only(*homes)
    assert (row["eps"], row["accuracy_a"], row["accuracy_b"]) == (math.inf, 0.5, 0.0)


def test_another_version_is_found_by_its_names(a: Records, b: Records) -> None:
    a.add("old", budget(needed(30), 0.1))
    b.add("new", budget(needed(80), 0.1))
    row = only(a, b)
    assert (row["matched"], row["cell_a"], row["cell_b"], row["state"]) == ("name", "old", "new", "beyond noise")


@pytest.mark.parametrize(
    "change", [{"attack": "fgsm"}, {"defense": "pgd"}, {"seed": 1}, {"norm": "l2"}, {"source": "x"}, {"cascade": True}]
)
def test_another_name_is_another_pair(a: Records, b: Records, change: dict[str, Any]) -> None:
    a.add("old", budget(needed(30), 0.1))
    b.add("new", budget(needed(80), 0.1, **change))
    assert counts(differences(a.home, b.home)) == dict.fromkeys(STATES, 0) | {"only in A": 1, "only in B": 1}


def test_the_key_comes_before_the_name_and_as_many_images_before_the_newest(a: Records, b: Records) -> None:
    a.add("same", budget(needed(30), 0.1))
    a.add("old", budget(needed(30), 0.1))
    b.add("same", budget(needed(30), 0.1))
    b.add("alike", budget(needed(31), 0.1))
    newest = b.add("longer", budget(needed(30, n=50), 0.1))
    os.utime(newest / "result.json", ns=(2 * 10**18, 2 * 10**18))
    frame = differences(a.home, b.home)
    assert dict(zip(frame["cell_a"], frame["cell_b"], strict=True)) == {"same": "same", "old": "alike", "": "longer"}


def test_a_failure_is_beyond_noise(a: Records, b: Records) -> None:
    a.add("c", budget(needed(30), 0.1))
    b.add("c", budget(needed(30), 0.1), status="crashed")
    row = only(a, b)
    assert (row["state"], row["status_b"]) == ("beyond noise", "crashed")
    assert math.isnan(row["accuracy_b"])
    assert math.isnan(row["difference"])


def test_the_same_failure_is_equal(a: Records, b: Records) -> None:
    for home in (a, b):
        home.add("c", budget(needed(30), 0.1), status="crashed")
    assert only(a, b)["state"] == "equal"


def test_what_left_the_box_is_compared_by_its_predictions(a: Records, b: Records) -> None:
    for home, wrong in ((a, 10), (b, 60)):
        pair = budget(needed(0), 0.1)
        prediction = np.where(np.arange(100) < wrong, 3, 0)
        home.add("c", Pair(pair.meta, pair.samples.assign(adv_pred=prediction)), status="unclipped")
    row = only(a, b)
    assert (row["accuracy_a"], row["accuracy_b"], row["state"]) == (0.9, 0.4, "beyond noise")


def test_the_most_telling_comes_first(a: Records, b: Records) -> None:
    for name, before, after in (("x", 10, 12), ("y", 10, 40), ("z", 10, 90), ("w", 10, 10)):
        a.add(name, budget(needed(before), 0.1, attack=name))
        b.add(name, budget(needed(after), 0.1, attack=name))
    b.add("crash", budget(needed(1), 0.1, attack="crash"), status="crashed")
    a.add("crash", budget(needed(1), 0.1, attack="crash"))
    assert differences(a.home, b.home)["attack"].tolist() == ["crash", "z", "y", "x", "w"]


def test_empty_homes_have_nothing_to_compare(a: Records, b: Records) -> None:
    assert counts(differences(a.home, b.home)) == dict.fromkeys(STATES, 0)


def test_damage_is_named_and_left_out(a: Records, b: Records) -> None:
    for home in (a, b):
        home.add("c", budget(needed(30), 0.1))
    (b.home.cell("c") / "samples.parquet").write_bytes(b"damaged")
    with pytest.raises(UserError, match="is damaged"):
        differences(a.home, b.home)
    told: list[Path] = []
    frame = differences(a.home, b.home, lambda path, _: told.append(path))
    assert told == [b.home.cell("c")]
    assert frame["state"].tolist() == ["only in A"]


def test_the_command_shows_what_moved_and_writes_all(a: Records, b: Records, tmp_path: Path) -> None:
    for name, after in (("still", 30), ("far", 80)):
        a.add(name, budget(needed(30), 0.1, attack=name))
        b.add(name, budget(needed(after), 0.1, attack=name))
    result = CLI["call"]("diff", a.home.path, b.home.path, "--csv", tmp_path / "out.csv")
    assert result.exit_code == 0, result.output
    table, summary = result.stdout.split("A is ")
    assert "far" in table
    assert "still" not in table
    assert "-50.0%" in table
    assert "1 beyond noise, 0 within noise, 1 equal, 0 only in A, 0 only in B" in " ".join(summary.split())
    frame = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert frame["attack"].tolist() == ["far", "still"]


@pytest.mark.parametrize("missing", [0, 1])
def test_a_home_that_is_not_there(a: Records, tmp_path: Path, missing: int) -> None:
    homes = [a.home.path, a.home.path]
    homes[missing] = tmp_path / "nowhere"
    assert f"no runs in {tmp_path / 'nowhere'}" in CLI["complaint"](CLI["call"]("diff", *homes))
