"""What a key stands for, and why it is stale or fresh."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness import environment
from harness.cli.tables import versions
from harness.errors import UserError
from harness.records.explain import explain
from harness.records.files import read_json, write_json
from harness.records.home import Home
from harness.records.results import write_shard
from harness.schema.base import Provenance
from tests.helpers.boards import outcome
from tests.helpers.commands import call, complaint


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("explain") / "home"
    command = ["run", "quick", "--model", "mlp-8", "--defense", "standard:epochs=1", "--attack", "noise*"]
    result = call(*command, "--samples", 20, "--jobs", 1, "--home", home)
    assert result.exit_code == 0, result.output
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Home:
    return Home(Path(shutil.copytree(made, tmp_path / "home")))


def pair(home: Home) -> str:
    return sorted(file.parent.name for file in home.path.glob("cells/*/result.json"))[0]


def model(home: Home) -> str:
    (key,) = (folder.name for folder in home.path.glob("models/*"))
    return key


def unrun(home: Home) -> str:
    """A pair that the suite asks for and the command left out."""
    (plan,) = home.plans.glob("*.json")
    record = read_json(plan)
    return sorted({cell["cell"] for cell in record["battery"]} - {cell["cell"] for cell in record["cells"]})[0]


def change(path: Path, **values: Any) -> None:
    write_json(path, read_json(path) | values)


def test_a_finished_pair_is_fresh(home: Home) -> None:
    key = pair(home)
    meta = read_json(home.cell(key) / "result.json")
    found = explain(home, key, versions())
    assert (found.kind, found.key, found.state) == ("pair", key, "fresh")
    assert found.reasons == ("whole, and made of what is here now",)
    assert found.title.startswith("digits mlp-8 standard(epochs=1) seed 0: noise")
    assert found.title.endswith("20 images")
    assert found.declaration["attack.is"] == "noise"
    assert found.declaration["victim.defense.epochs"] == 1
    assert found.command == meta["command"]
    assert found.made_with["torch"] == (environment.versions()["torch"],) * 2
    assert {file.name for file in found.files} >= {"result.json", "samples.parquet", "gallery.safetensors"}
    assert all(size == file.stat().st_size for file, size in found.files.items())
    assert found.runs == read_json(home.cell(key) / "runs.json")
    assert len(found.plans) == 1


def test_a_trained_model_is_fresh(home: Home) -> None:
    found = explain(home, model(home), versions())
    assert (found.kind, found.state) == ("model", "fresh")
    assert found.title == "digits mlp-8 standard(epochs=1) seed 0"
    assert found.declaration["defense.is"] == "standard"
    assert found.command.startswith("gauntlet run quick --dataset digits --model mlp-8 --defense standard:epochs=1")
    assert "--attack" not in found.command
    assert "weights.safetensors" in {file.name for file in found.files}


def test_the_beginning_of_a_key_will_do(home: Home) -> None:
    keys = sorted({cell["cell"] for cell in read_json(next(home.plans.glob("*.json")))["battery"]} | {model(home)})
    for key in keys:
        short = next(key[:n] for n in range(1, 17) if sum(other.startswith(key[:n]) for other in keys) == 1)
        assert explain(home, short).key == key


def test_what_was_not_run_is_missing(home: Home) -> None:
    found = explain(home, unrun(home))
    assert (found.state, found.reasons) == ("missing", ("it was not run", "its suite asks for it, and no command did"))
    assert found.command.endswith(f"--attack {shlex.quote(found.declaration['attack'])}")
    assert found.declaration["n"] == 20
    assert found.made_with == {}
    assert found.files == {}


def test_an_interrupted_pair_says_how_far_it_came(home: Home) -> None:
    key = pair(home)
    from harness.records.results import read_pair

    samples = read_pair(home.cell(key)).samples
    shutil.rmtree(home.cell(key))
    write_shard(home.cell(key), 0, outcome(samples), Provenance())
    (home.cell(key).parent / f"{key}.damaged-1").mkdir()
    found = explain(home, key)
    assert found.state == "missing"
    assert found.reasons == ("interrupted: 1 shards are done", "1 earlier results were set aside beside it")
    assert "--attack" in found.command  # of the plan


@pytest.mark.parametrize("file", ["result.json", "samples.parquet", "gallery.safetensors"])
def test_a_damaged_pair_names_the_file(home: Home, file: str) -> None:
    (home.cell(pair(home)) / file).write_bytes(b"damaged")
    found = explain(home, pair(home))
    assert found.state == "damaged"
    assert file in found.reasons[0]
    assert "gauntlet run sets it aside" in found.reasons[0]
    assert found.command


def test_a_result_of_other_weights_is_stale(home: Home) -> None:
    folder = home.model(model(home))
    content = (folder / "weights.safetensors").read_bytes()[:-1] + b"?"
    (folder / "weights.safetensors").write_bytes(content)
    assert explain(home, model(home)).state == "damaged"
    change(folder / "card.json", sha256=hashlib.sha256(content).hexdigest())
    assert explain(home, model(home)).state == "fresh"
    found = explain(home, pair(home))
    assert (found.state, found.reasons) == ("stale", (f"its model {model(home)} was trained again since",))


def test_a_result_without_its_model_is_stale(home: Home) -> None:
    key = model(home)
    (home.model(key) / "card.json").unlink()
    assert explain(home, pair(home)).state == "stale"
    found = explain(home, key)
    assert (found.state, found.reasons) == ("missing", ("not trained",))
    write_json(home.model(key) / "failed.json", {"error": "the loss is nan"})
    assert explain(home, key).reasons == ("training failed: the loss is nan",)


def test_other_versions_are_shown_and_do_not_make_it_stale(home: Home) -> None:
    file = home.cell(pair(home)) / "result.json"
    change(file, versions=read_json(file)["versions"] | {"torch": "1.0"})
    found = explain(home, pair(home))
    assert found.state == "fresh"
    assert found.made_with["torch"] == ("1.0", environment.versions()["torch"])
    assert "other versions of torch; a finished result stands nevertheless" in found.reasons[0]


@pytest.mark.parametrize("bumped", ["attack noise", "defense standard"])
def test_a_bumped_version_supersedes(home: Home, bumped: str) -> None:
    found = explain(home, pair(home), versions() | {bumped: 99})
    assert found.state == "superseded"
    assert f"{bumped.split()[1]} is at version 99 today, this is of version 1" in found.reasons[0]


def test_an_attack_is_no_defense_of_the_same_name(home: Home) -> None:
    assert explain(home, pair(home), versions() | {"defense noise": 99, "attack standard": 99}).state == "fresh"


def newer(home: Home, field: str, old: str, new: str) -> None:
    """A later plan in which another key stands for the same names."""
    plan = next(file for file in home.plans.glob("*.json") if file.name != "newer.json")
    text = plan.read_text().replace(f'"{field}": "{old}"', f'"{field}": "{new}"')
    record = json.loads(text.replace('"command": "gauntlet', '"command": "later gauntlet'))
    write_json(home.plans / "newer.json", record | {"plan": "newer"})
    later = plan.stat().st_mtime_ns + 10**9
    os.utime(home.plans / "newer.json", ns=(later, later))


def test_a_newer_plan_supersedes(home: Home) -> None:
    key = pair(home)
    newer(home, "cell", key, "f" * 16)
    found = explain(home, key)
    assert found.state == "superseded"
    assert f"superseded by {'f' * 16} of a newer plan: " in found.reasons[0]
    assert explain(home, sorted(file.name for file in home.path.glob("cells/*"))[1]).state == "fresh"
    newer(home, "model", model(home), "e" * 16)
    found = explain(home, model(home))
    assert (found.state, found.reasons) == ("superseded", (f"superseded by the model {'e' * 16} of a newer plan",))


def test_what_no_plan_asks_for_is_on_no_board(home: Home) -> None:
    for file in home.plans.glob("*.json"):
        file.unlink()
    found = explain(home, pair(home))
    assert found.state == "fresh"
    assert "no plan here asks for it" in found.reasons[0]


def test_a_failed_attack_says_so(home: Home) -> None:
    change(home.cell(pair(home)) / "result.json", status="crashed", errors=["no luck"])
    assert "its status is crashed: no luck" in explain(home, pair(home)).reasons[0]


def test_keys_that_are_none(home: Home, tmp_path: Path) -> None:
    line = complaint(call("explain", "xyz", "--home", home.path))
    assert "begins with 'xyz'; choose from" in line
    assert pair(home) in line or "more" in line
    first = sorted(cell["cell"] for cell in read_json(next(home.plans.glob("*.json")))["battery"])[0]
    twin = first[:15] + ("0" if first[15] != "0" else "1")
    (home.path / "cells" / twin).mkdir()
    line = complaint(call("explain", first[:15], "--home", home.path))
    assert f"2 keys begin with '{first[:15]}': " in line
    assert first in line
    assert twin in line
    assert explain(home, first).key == first
    assert "no runs in" in complaint(call("explain", "x", "--home", tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no pair and no model"):
        explain(Home(tmp_path), "")


def test_the_command_prints_all_of_it(home: Home) -> None:
    for key in (pair(home), model(home), unrun(home)):
        result = call("explain", key[:12], "--home", home.path)
        assert result.exit_code == 0, result.output
        for word in (key, "made by: gauntlet run quick", "mlp-8", "declaration"):
            assert word in result.stdout
        assert ("asked for by: gauntlet" in result.stdout) == (key != unrun(home))


def test_a_result_of_before_there_were_digests_is_unverified(home: Home) -> None:
    path = home.cell(pair(home)) / "result.json"
    assert read_json(path)["files"].keys() == {"samples.parquet", "gallery.safetensors"}
    record = {name: value for name, value in read_json(path).items() if name not in ("seal", "files")}
    write_json(path, record | {"format": 2})
    found = explain(home, pair(home))
    assert (found.state, found.reasons[0].rpartition(": ")[2]) == ("fresh", "unverified")
