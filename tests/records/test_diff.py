"""Which numbers moved between two homes, and what counts as noise."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from harness.errors import UserError
from harness.metrics.pairs import Pair, wilson
from harness.records.diff import COLUMNS, STATES, counts, differences
from harness.records.files import write_record
from harness.records.home import Home
from tests.helpers.boards import budget, frame, plan, record, write_pair
from tests.helpers.boards import pair as minimal
from tests.helpers.commands import call, complaint

NAN = math.nan


def needed(broken: int, n: int = 100, first: int = 0) -> Any:
    """Distances by which images ``first`` ... ``first + broken`` are lost at eps 0.1."""
    index = np.arange(n)
    return np.where((index >= first) & (index < first + broken), 0.05, NAN)


class Records:
    """A home written by hand."""

    def __init__(self, path: Path, budgets: dict[str, Any] | None = None) -> None:
        self.home = Home(path).create()
        given = budgets or {"mnist": {"linf": [0.1]}}
        self.budgets = {name: {norm: tuple(grid) for norm, grid in norms.items()} for name, norms in given.items()}
        self.plan()

    def plan(self, *pairs: Pair, without: str = "", unasked: str = "", left_out: Sequence[str] = ()) -> None:
        """Pairs as a suite's battery, recorded; results of all cells but one, and but one that is not asked for."""
        entries = [pair.result for pair in pairs]
        asked = [entry for entry in entries if entry.cell != unasked]
        record = plan(*entries, asked=asked, suite="linf", budgets=self.budgets, left_out=tuple(left_out))
        write_record(self.home.plans / "p.json", record)
        for pair in pairs:
            if pair.result.cell not in (without, unasked):
                self.add(pair.result.cell, pair)

    def add(self, cell: str, pair: Pair, **meta: Any) -> Path:
        return self.home.cell(write_pair(self.home, pair, cell=cell, **meta).cell)


@pytest.fixture
def a(tmp_path: Path) -> Records:
    return Records(tmp_path / "a")


@pytest.fixture
def b(tmp_path: Path) -> Records:
    return Records(tmp_path / "b")


def only(a: Records, b: Records) -> dict[str, Any]:
    found = differences(a.home, b.home)
    assert list(found) == list(COLUMNS)
    (row,) = found.to_dict("records")
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
    b.add("c", Pair(pair.result, pair.samples.sample(frac=1, random_state=0).reset_index(drop=True)))
    assert only(a, b)["state"] == "equal"


@pytest.mark.parametrize(("after", "state"), [(30, "equal"), (36, "within noise"), (70, "beyond noise")])
def test_on_other_images_intervals_decide(a: Records, b: Records, after: int, state: str) -> None:
    a.add("c", budget(needed(30), 0.1))
    other = budget(needed(after), 0.1)
    b.add("c", Pair(other.result, other.samples.assign(index=np.arange(100) + 7)))
    row = only(a, b)
    assert (row["state"], row["test"]) == (state, "intervals")
    low, high = wilson(70, 100)
    assert row["low"] == pytest.approx(wilson(100 - after, 100)[0] - high)
    assert row["high"] == pytest.approx(wilson(100 - after, 100)[1] - low)
    assert math.isnan(row["p_value"])


def test_other_labels_are_other_images(a: Records, b: Records) -> None:
    pair = budget(needed(30), 0.1)
    a.add("c", pair)
    b.add("c", Pair(pair.result, pair.samples.assign(label=1)))
    assert only(a, b)["test"] == "intervals"


def test_a_minimal_attack_is_looked_at_wherever_a_plan_judges_it(tmp_path: Path) -> None:
    a, b = (Records(tmp_path / name, {"mnist": {"linf": (0.1, eps)}}) for name, eps in (("a", 0.2), ("b", 0.3)))
    a.add("c", minimal([0.05, 0.15, 0.25, NAN]))
    b.add("c", minimal([0.05, 0.05, 0.25, NAN]))
    found = differences(a.home, b.home).set_index("eps")
    assert sorted(found.index) == [0.1, 0.2, 0.3]
    assert dict(found["state"]) == {0.1: "within noise", 0.2: "equal", 0.3: "equal"}
    assert found.loc[0.1, "difference"] == -0.25


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
    "change",
    [
        {"attack": "fgsm"},
        {"defense": "pgd"},
        {"seed": 1},
        {"norm": "l2"},
        {"source": "x"},
        {"cascade": True},
        {"part": "train"},
    ],
)
def test_another_name_is_another_pair(a: Records, b: Records, change: dict[str, Any]) -> None:
    a.add("old", budget(needed(30), 0.1))
    b.add("new", budget(needed(80), 0.1, **change))
    assert counts(differences(a.home, b.home)) == dict.fromkeys(STATES, 0) | {"only in A": 1, "only in B": 1}


def test_a_result_that_does_not_say_its_part_is_of_test_images(a: Records, b: Records) -> None:
    a.add("old", budget(needed(30), 0.1))
    b.add("new", budget(needed(30), 0.1, part="test"))
    row = only(a, b)
    assert (row["matched"], row["part"]) == ("name", "test")


def cascade(*broken: int, n: int = 100, **meta: Any) -> list[Pair]:
    """Attacks of a cascade, each of which broke so many of the images that those before it had left."""
    pairs, gone = [], 0
    for number, count in enumerate(broken):
        samples = frame(needed(count, n, gone), attacked=np.arange(n) >= gone)
        pairs.append(record(samples, cell=f"c{number}", attack=f"attack {number}", cascade=True, **meta))
        gone += count
    return pairs


def states(a: Records, b: Records) -> dict[str, str]:
    found = differences(a.home, b.home)
    return dict(zip(found["attack"], found["state"], strict=True))


def test_what_a_cascade_never_met_does_not_stand(a: Records, b: Records) -> None:
    a.plan(*cascade(60, 0))
    b.plan(*cascade(20, 40))
    assert states(a, b) == {"worst case": "equal", "attack 0": "no verdict", "attack 1": "no verdict"}
    rows = differences(a.home, b.home).set_index("attack")
    assert rows.loc["worst case", ["accuracy_a", "accuracy_b"]].tolist() == [0.4, 0.4]
    assert rows.drop("worst case")[["accuracy_a", "accuracy_b", "difference", "p_value"]].isna().all(axis=None)


def test_a_pair_of_a_cascade_that_failed_is_still_told(a: Records, b: Records) -> None:
    a.plan(*cascade(60, 0))
    b.plan(*cascade(60), *cascade(60, 0, status="crashed")[1:])
    assert states(a, b) == {"worst case": "beyond noise", "attack 0": "no verdict", "attack 1": "beyond noise"}


def two(broken: int, **meta: Any) -> list[Pair]:
    """Two attacks that each break so many images, none of them the same."""
    return [
        budget(needed(broken, first=50 * one), 0.1, cell=f"c{one}", attack=f"attack {one}", **meta) for one in range(2)
    ]


@pytest.mark.parametrize(("after", "state"), [(20, "equal"), (22, "within noise"), (23, "beyond noise")])
def test_a_worst_case_moves_where_none_of_its_attacks_does(a: Records, b: Records, after: int, state: str) -> None:
    a.plan(*two(20))
    b.plan(*two(after))
    assert states(a, b)["attack 0"] == ("equal" if after == 20 else "within noise")
    row = differences(a.home, b.home).set_index("attack").loc["worst case"]
    assert (row["state"], row["suite"], row["matched"], row["cell_a"]) == (state, "linf", "key", "m0")
    assert (row["only_a"], row["only_b"]) == (2 * after - 40, 0)
    assert (row["accuracy_a"], row["accuracy_b"]) == (0.6, 1 - 2 * after / 100)
    assert row["p_value"] == pytest.approx(2.0 ** (41 - 2 * after) if after > 20 else 1)


def test_the_worst_case_of_a_cascade_is_that_of_the_full_matrix(a: Records, b: Records) -> None:
    a.plan(*cascade(20, 20))
    b.plan(*(budget(needed(20, first=20 * one), 0.1, cell=f"d{one}", attack=f"attack {one}") for one in range(2)))
    assert states(a, b)["worst case"] == "equal"


@pytest.mark.parametrize("home", [0, 1])
@pytest.mark.parametrize("lack", ["without", "unasked"])
def test_a_model_that_lacks_a_pair_has_no_worst_case(a: Records, b: Records, home: int, lack: str) -> None:
    for number, records in enumerate((a, b)):
        records.plan(*two(20), **{lack: "c1" if number == home else ""})  # type: ignore[arg-type]
    row = differences(a.home, b.home).set_index("attack").loc["worst case"]
    lacking, whole = "ab"[home], "ba"[home]
    assert (row["state"], row[f"status_{lacking}"], row[f"status_{whole}"]) == ("no verdict", "incomplete", "ok")
    assert (math.isnan(row[f"accuracy_{lacking}"]), row[f"accuracy_{whole}"]) == (True, 0.6)


@pytest.mark.parametrize(
    ("left_out", "state"),
    [
        ((["transfer:x"], ["transfer:x"]), "beyond noise"),
        ((["transfer:x"], []), "no verdict"),
        (([], ["y"]), "no verdict"),
    ],
)
def test_what_one_home_left_out_moves_nothing(
    a: Records, b: Records, left_out: tuple[list[str], list[str]], state: str
) -> None:
    for records, broken, labels in ((a, 40, left_out[0]), (b, 20, left_out[1])):
        records.plan(*two(broken), left_out=labels)
    row = differences(a.home, b.home).set_index("attack").loc["worst case"]
    assert (row["state"], row["status_a"], row["status_b"]) == (state, "ok", "ok")
    assert (row["accuracy_a"], row["accuracy_b"]) == pytest.approx((0.2, 0.6))


def test_a_result_that_is_not_its_plans_counts_as_missing(a: Records, b: Records) -> None:
    for records in (a, b):
        records.plan(*two(20))
    b.add("c1", two(20)[1], model="m1")
    assert states(a, b)["worst case"] == "no verdict"


def test_worst_cases_at_other_eps_are_other_numbers(tmp_path: Path) -> None:
    a, b = (Records(tmp_path / name, {"mnist": {"linf": (0.1, eps)}}) for name, eps in (("a", 0.2), ("b", 0.3)))
    for records in (a, b):
        records.plan(minimal([0.05, 0.15, 0.25, NAN], cell="c"))
    found = differences(a.home, b.home)
    worst = found[found["attack"] == "worst case"].set_index("eps")
    assert dict(worst["state"]) == {0.1: "equal", 0.2: "only in A", 0.3: "only in B"}
    assert (worst.loc[0.2, "accuracy_a"], worst.loc[0.3, "accuracy_b"]) == (0.5, 0.25)


def test_a_model_trained_anew_is_found_by_its_names_on_as_many_images_first(a: Records, b: Records) -> None:
    short = budget(needed(10, n=50), 0.1, cell="short", model="m1")
    a.plan(budget(needed(20), 0.1, cell="long"))
    b.plan(budget(needed(80), 0.1, cell="new", model="m1"), short)
    found = differences(a.home, b.home)
    worst = found[found["attack"] == "worst case"][["state", "matched", "cell_a", "cell_b", "n_a", "n_b", "test"]]
    assert worst.to_numpy().tolist() == [
        ["beyond noise", "name", "m0", "m1", 100, 100, "paired"],
        ["only in B", "", "", "m1", 0, 50, ""],
    ]
    b.plan(short)
    row = differences(a.home, b.home).set_index("attack").loc["worst case"]
    assert (row["n_a"], row["n_b"], row["test"], row["state"]) == (100, 50, "intervals", "equal")


def test_the_key_comes_before_the_name_and_as_many_images_before_the_newest(a: Records, b: Records) -> None:
    a.add("same", budget(needed(30), 0.1))
    a.add("old", budget(needed(30), 0.1))
    b.add("same", budget(needed(30), 0.1))
    b.add("alike", budget(needed(31), 0.1))
    newest = b.add("longer", budget(needed(30, n=50), 0.1))
    os.utime(newest / "result.json", ns=(2 * 10**18, 2 * 10**18))
    found = differences(a.home, b.home)
    assert dict(zip(found["cell_a"], found["cell_b"], strict=True)) == {"same": "same", "old": "alike", "": "longer"}


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
        prediction = pair.samples["label"] + np.where(np.arange(100) < wrong, 3, 0)
        home.add("c", Pair(pair.result, pair.samples.assign(adv_pred=prediction)), status="unclipped")
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
    found = differences(a.home, b.home, lambda path, _: told.append(path))
    assert told == [b.home.cell("c")]
    assert found["state"].tolist() == ["only in A"]


def test_the_command_shows_what_moved_and_writes_all(a: Records, b: Records, tmp_path: Path) -> None:
    for home, far in ((a, 30), (b, 80)):
        home.plan(*(budget(needed(n), 0.1, cell=name, attack=name) for name, n in (("still", 30), ("far", far))))
    result = call("diff", a.home.path, b.home.path, "--csv", tmp_path / "out.csv")
    assert result.exit_code == 0, result.output
    table, summary = result.stdout.split("A is ")
    assert "far" in table
    assert "still" not in table
    assert "-50.0%" in table
    none = ", 0 no verdict, 0 only in A, 0 only in B"
    assert f"worst cases of models: 1 beyond noise, 0 within noise, 0 equal{none}" in summary
    assert f"pairs: 1 beyond noise, 0 within noise, 1 equal{none}" in summary
    found = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert found["attack"].tolist() == ["worst case", "far", "still"]
    assert found["suite"].tolist() == ["linf", "", ""]


@pytest.mark.parametrize("missing", [0, 1])
def test_a_home_that_is_not_there(a: Records, tmp_path: Path, missing: int) -> None:
    homes = [a.home.path, a.home.path]
    homes[missing] = tmp_path / "nowhere"
    assert f"no runs in {tmp_path / 'nowhere'}" in complaint(call("diff", *homes))
