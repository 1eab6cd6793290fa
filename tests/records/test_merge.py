"""Homes merged into one: nothing lost, doubled or changed, and what contradicts is named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.errors import UserError
from harness.leaderboard import leaderboard
from harness.metrics.pairs import pair_rows, summary
from harness.records import witnesses
from harness.records.boards import boards_from_home
from harness.records.files import read_json, write_bytes, write_json
from harness.records.home import Home
from harness.records.merge import homes, merge
from harness.records.plans import read_plans
from harness.records.results import read_pair, write_result
from harness.schema.base import Provenance
from harness.tracking.connection import default_uri
from harness.tracking.tracker import Tracker
from tests.helpers.boards import outcome
from tests.helpers.commands import call, complaint

pytestmark = pytest.mark.slow

RUN = ["run", "quick", "--model", "mlp-8", "--defense", "standard:epochs=2", "--defense", "pgd:epochs=1,steps=2"]
RUN += ["--samples", "12", "--jobs", "1"]


def start(home: Path, *more: str) -> None:
    result = call(*RUN, "--home", home, *more)
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of the quick suite on two models."""
    home = tmp_path_factory.mktemp("whole") / "home"
    start(home)
    return home


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same in two parts."""
    folder = tmp_path_factory.mktemp("parts")
    for number in (1, 2):
        start(folder / str(number), "--part", f"{number}/2")
    return [folder / "1", folder / "2"]


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def cells(home: Path) -> set[str]:
    return {file.parent.name for file in home.glob("cells/*/result.json")}


def rows(home: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pairs without times and run ids, and the leaderboard."""
    (board,) = boards_from_home(Home(home))
    return pair_rows(board).drop(columns=["seconds", "run_id"]), leaderboard(board)


def reports(home: Path, out: Path, source: str) -> dict[str, bytes]:
    result = call("report", "--home", home, "--from", source, "--out", out / source)
    assert result.exit_code == 0, result.output
    found = {name: (out / source / name).read_bytes() for name in ("leaderboard.csv", "leaderboard.md")}
    for run in {run for file in home.glob("cells/*/runs.json") for run in read_json(file).values()}:
        assert run.encode() not in found["leaderboard.csv"]
        found["leaderboard.md"] = found["leaderboard.md"].replace(run.encode(), b"RUN")  # another store, other ids
    assert found["leaderboard.md"].count(b"RUN") == len(cells(home))
    return found


def test_parts_are_halves_that_train_one_model_each(halves: list[Path], whole: Path) -> None:
    first, second = map(cells, halves)
    assert not first & second
    assert first | second == cells(whole)
    assert [len(list(home.glob("models/*/card.json"))) for home in halves] == [1, 1]


@pytest.mark.parametrize("order", [1, -1])
def test_merged_parts_equal_one_run(halves: list[Path], whole: Path, tmp_path: Path, order: int) -> None:
    home = Home(tmp_path / "merged").create()
    for half in halves[::order]:
        assert merge(Home(half), home).whole
    assert cells(home.path) == cells(whole)
    for found, expected in zip(rows(home.path), rows(whole), strict=True):
        pd.testing.assert_frame_equal(found, expected, check_exact=True)


def test_merged_parts_are_tracked_and_leave_nothing_to_do(halves: list[Path], tmp_path: Path) -> None:
    home = tmp_path / "merged"
    result = call("sync", *halves, "--home", home)
    assert result.exit_code == 0, result.output
    assert reports(home, tmp_path, "home") == reports(home, tmp_path, "mlflow")
    before = sorted(file.stat().st_mtime_ns for file in home.glob("cells/*/result.json"))
    start(home)  # all is there: the whole command has nothing left to do
    assert sorted(file.stat().st_mtime_ns for file in home.glob("cells/*/result.json")) == before


@pytest.mark.long
def test_parts_leave_a_teams_store_to_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = f"sqlite:///{tmp_path / 'team.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.chdir(tmp_path)  # MLflow puts artifacts of such a store where it stands
    parts = [tmp_path / number for number in "12"]
    for part in parts:
        start(part, "--part", f"{part.name}/2", "--attack", "noise*")
        assert cells(part)
        assert {store for file in part.glob("cells/*/runs.json") for store in read_json(file)} == {"home"}
    assert not (tmp_path / "team.db").exists()
    assert call("sync", *parts, "--home", tmp_path / "all").exit_code == 0
    client = Tracker(Home(tmp_path / "all"), store).client
    (experiment,) = client.search_experiments(filter_string="name = 'gauntlet'")
    kept = [run.data.tags.get("gauntlet.pair") for run in client.search_runs([experiment.experiment_id])]
    assert sorted(filter(None, kept)) == sorted(cells(tmp_path / "all"))

    start(parts[0], "--part", "1/2", "--attack", "noise*", "--tracking-uri", f"sqlite:///{tmp_path / 'own.db'}")
    assert (tmp_path / "own.db").exists()  # who names a store gets it


def test_a_home_rebuilt_from_results_alone_has_the_same_leaderboard(whole: Path, tmp_path: Path) -> None:
    for folder in ("cells", "models", "plans", "health", "planted", "certificates"):
        shutil.copytree(whole / folder, tmp_path / "results" / folder)
    for file in (tmp_path / "results").rglob("runs.json"):
        file.unlink()
    home = tmp_path / "rebuilt"
    assert call("sync", tmp_path / "results", "--home", home).exit_code == 0
    expected = reports(whole, tmp_path / "a", "mlflow")
    assert reports(home, tmp_path / "b", "mlflow") == expected
    assert reports(home, tmp_path / "c", "home") == expected
    runs = Tracker(Home(home), default_uri(Home(home))).search("attributes.status = 'FINISHED'")
    kinds = [run.data.tags["gauntlet.kind"] for run in runs]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"pair": len(cells(whole)), "model": 2, "plan": 1}


def test_again_there_is_nothing_new(whole: Path, tmp_path: Path) -> None:
    home = Home(tmp_path / "home").create()
    first = merge(Home(whole), home)
    state = {file: file.read_bytes() for file in home.path.rglob("*") if file.is_file()}
    second = merge(Home(whole), home)
    assert first.whole
    assert second.whole
    assert first.new["cells"] == second.same["cells"] == len(cells(whole))
    assert first.new["models"] == second.same["models"] == 2
    assert not any(second.new.values())
    assert {file: file.read_bytes() for file in home.path.rglob("*") if file.is_file()} == state


def test_a_killed_merge_is_gone_on_with(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    left = iter(range(25))

    def kill(path: Path, content: bytes) -> None:
        if next(left, None) is None:
            raise Killed
        write_bytes(path, content)

    home = Home(tmp_path / "home").create()
    monkeypatch.setattr("harness.records.merge.write_bytes", kill)
    with pytest.raises(Killed):
        merge(Home(whole), home)
    half = cells(home.path)
    assert half < cells(whole)
    for key in half:  # whatever counts is whole
        read_pair(home.cell(key))
    monkeypatch.undo()
    assert merge(Home(whole), home).whole
    assert cells(home.path) == cells(whole)


def changed(home: Path, key: str) -> None:
    """Another number in one result."""
    folder = home / "cells" / key
    pair = read_pair(folder)
    samples = pair.samples
    samples.loc[0, "l2"] = 0.123
    result = pair.result.model_copy(update={"summary": summary(samples)})
    write_result(folder, result, samples, dict(pair.gallery))


def test_different_numbers_are_refused_by_name(whole: Path, copy: Path, tmp_path: Path) -> None:
    key = sorted(cells(whole))[3]
    changed(copy, key)
    lost = sorted(cells(whole))[5]
    home = tmp_path / "home"
    shutil.copytree(whole, home)
    shutil.rmtree(home / "cells" / lost)
    before = {file: file.read_bytes() for file in (home / "cells" / key).iterdir()}
    line = complaint(call("sync", copy, "--home", home))
    assert f"refused: {copy / 'cells' / key}: other numbers than those in {home / 'cells' / key}" in line
    assert {file: file.read_bytes() for file in (home / "cells" / key).iterdir()} == before
    assert cells(home) == cells(whole)  # the rest is merged


def test_refused_pairs_take_no_witnesses_away(whole: Path, copy: Path, tmp_path: Path) -> None:
    """There, half of what broke here did not break: those witnesses stay."""
    table = next(path for path in sorted((copy / "witnesses").rglob("*")) if path.is_file())
    rows, facts = witnesses.read_table(table)
    keys, counts = np.unique(rows["cell"].astype(str), return_counts=True)
    key = str(keys[counts.argmax()])
    assert counts.max() > 1
    changed(copy, key)
    kept = np.ones(len(rows["cell"]), bool)
    kept[(rows["cell"] == key).nonzero()[0][0]] = False
    table.unlink()
    witnesses.merge(table, {name: values[kept] for name, values in rows.items()}, facts, set())
    home = Path(shutil.copytree(whole, tmp_path / "home"))
    there = home / table.relative_to(copy)
    before = there.read_bytes()
    done = merge(Home(copy), Home(home))
    assert [key in line for line in done.refused] == [True]
    assert there.read_bytes() == before


def test_other_times_are_the_same_numbers(whole: Path, copy: Path) -> None:
    for file in copy.glob("cells/*/result.json"):
        write_json(file, read_json(file) | {"seconds": 1e6, "git_commit": "another", "command": "another"})
    done = merge(Home(copy), Home(whole))
    assert done.whole
    assert not any(done.new.values())


def retrained(home: Path) -> str:
    """Give a model other weights, as another machine might; its key."""
    import hashlib

    card = sorted(home.glob("models/*/card.json"))[0]
    weights = card.with_name("weights.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    write_json(card, read_json(card) | {"sha256": hashlib.sha256(content).hexdigest()})
    return card.parent.name


def test_results_of_other_weights_are_refused(whole: Path, copy: Path, tmp_path: Path) -> None:
    model = retrained(copy)
    of = {file.parent.name for file in whole.glob("cells/*/result.json") if read_json(file)["model"] == model}
    home = Home(tmp_path / "home").create()
    merge(Home(whole), home)
    for key in of:
        shutil.rmtree(home.cell(key))
    for file in copy.glob("cells/*/result.json"):
        record = read_json(file)
        digest = read_json(copy / "models" / model / "card.json")["sha256"]
        write_json(
            file, record | {"weights": {name: digest if name == model else d for name, d in record["weights"].items()}}
        )
    done = merge(Home(copy), home)
    assert sum("other weights of the model" in line for line in done.refused) >= len(of)
    assert any(line.startswith(f"{copy / 'models' / model}: other weights") for line in done.refused)
    assert not of & cells(home.path)
    assert read_json(home.model(model) / "card.json") == read_json(whole / "models" / model / "card.json")


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "samples": ("cells/*/samples.parquet", lambda file: file.write_bytes(file.read_bytes()[:-9])),
    "no samples": ("cells/*/samples.parquet", Path.unlink),
    "result": ("cells/*/result.json", lambda file: file.write_text("{")),
    "a list": ("cells/*/result.json", lambda file: file.write_text("[]")),
    "keys": ("cells/*/result.json", lambda file: file.write_text('{"n": 12}')),
    "gallery": ("cells/*/gallery.safetensors", lambda file: file.write_bytes(b"x" * 50)),
    "weights": ("models/*/weights.safetensors", lambda file: file.write_bytes(file.read_bytes()[:-1] + b"?")),
    "no weights": ("models/*/weights.safetensors", Path.unlink),
    "card": ("models/*/card.json", lambda file: file.write_text("3")),
    "plan": ("plans/*.json", lambda file: file.write_text("{}")),
    "health": ("health/*.json", lambda file: file.write_text("nothing")),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_are_named_and_left_behind(copy: Path, tmp_path: Path, name: str) -> None:
    pattern, damage = DAMAGES[name]
    file = sorted(copy.glob(pattern))[0]
    damage(file)
    home = Home(tmp_path / "home").create()
    done = merge(Home(copy), home)
    assert not done.refused
    (line,) = done.damaged
    assert str(file) in line
    assert "left behind" in line
    assert "\n" not in line
    assert not (home.path / file.relative_to(copy)).exists()
    missing = name != "plan" and file.parent.parent.name == "cells"
    assert len(cells(home.path)) == len(cells(copy) | {file.parent.name} if missing else cells(copy)) - missing


@pytest.mark.parametrize("name", [name for name in DAMAGES if name not in ("no samples",)])
def test_what_is_damaged_here_is_set_aside_for_what_is_whole_there(
    whole: Path, copy: Path, tmp_path: Path, name: str
) -> None:
    pattern, damage = DAMAGES[name]
    file = sorted(copy.glob(pattern))[0]
    content = file.read_bytes()
    damage(file)
    (line,) = merge(Home(whole), Home(copy)).damaged
    assert "damaged-1" in line
    assert file.read_bytes() == content
    assert merge(Home(whole), Home(copy)).whole


def test_unfinished_pairs_bring_their_shards(copy: Path, tmp_path: Path) -> None:
    from harness.records.results import shard_path, write_shard

    key = sorted(cells(copy))[0]
    pair = read_pair(copy / "cells" / key)
    shutil.rmtree(copy / "cells" / key)
    for shard in (0, 1):
        write_shard(copy / "cells" / key, shard, outcome(pair.samples), Provenance(weights=pair.result.weights))
    shard_path(copy / "cells" / key, 1).write_bytes(b"damaged")
    home = Home(tmp_path / "home").create()
    (line,) = merge(Home(copy), home).damaged
    assert str(shard_path(copy / "cells" / key, 1)) in line
    assert [file.name for file in (home.cell(key) / "shards").iterdir()] == ["00000.safetensors"]


def test_a_plan_was_first_asked_for_when_the_earlier_was(whole: Path, copy: Path, tmp_path: Path) -> None:
    (plan,) = whole.glob("plans/*.json")
    early, late = 10**18, 10**18 + 10**9
    os.utime(copy / "plans" / plan.name, ns=(early, early))
    other = tmp_path / "other" / "plans"
    other.mkdir(parents=True)
    shutil.copy(plan, other)
    os.utime(other / plan.name, ns=(late, late))
    for order in ([copy, other.parent], [other.parent, copy]):
        home = Home(tmp_path / order[0].name / "into").create()
        for source in order:
            assert merge(Home(source), home).whole
        assert (home.plans / plan.name).stat().st_mtime_ns == early
        assert read_plans(home) == read_plans(Home(whole))


def test_what_was_set_aside_or_half_written_stays_behind(copy: Path, tmp_path: Path) -> None:
    key = sorted(cells(copy))[0]
    shutil.copytree(copy / "cells" / key, copy / "cells" / f"{key}.damaged-1")
    (copy / "plans" / ".x.json.123.part").write_text("{")
    home = Home(tmp_path / "home").create()
    assert merge(Home(copy), home).whole
    assert cells(home.path) == cells(copy) - {f"{key}.damaged-1"}
    assert not list(home.plans.glob(".*"))


def test_homes_that_are_none(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for given, words in [
        ([tmp_path / "nowhere"], "no runs in"),
        ([tmp_path / "empty"], "no home of gauntlet"),
        ([whole, whole / "."], "named twice"),
        ([tmp_path / "into"], "no runs in"),
        ([whole], "into itself"),
    ]:
        with pytest.raises(UserError, match=words):
            homes(given, whole if words == "into itself" else tmp_path / "into")
    assert complaint(call("sync", tmp_path / "nowhere", "--home", tmp_path / "into"))
    assert not (tmp_path / "into").exists()
