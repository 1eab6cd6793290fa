"""A published number: equal to the digit elsewhere, and nothing in it changes in silence."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from defenses import defenses
from harness.datasets.registry import DATASETS, Dataset
from harness.errors import UserError
from harness.leaderboard import LEADERBOARD_COLUMNS, leaderboard
from harness.metrics.pairs import nearest, worst_case
from harness.planning.declared import model_spec
from harness.publishing.archive import names, opened
from harness.publishing.judging import referee
from harness.publishing.publish import NUMBERS, numbers
from harness.records import witnesses
from harness.records.boards import boards_from_home
from harness.records.files import json_text, read_json, sealed
from harness.records.home import Home
from harness.records.merge import merge
from harness.records.results import read_pair, write_result
from harness.schema.eps import limit
from tests.helpers.changes import changes
from tests.helpers.commands import call

pytestmark = pytest.mark.slow
CHANGES = int(os.environ.get("GAUNTLET_CHANGES", "60"))  # nox -s verify asks for 500


def rows(home: Path) -> pd.DataFrame:
    (board,) = boards_from_home(Home(home))
    return leaderboard(board)[list(LEADERBOARD_COLUMNS)]


def digest(path: Path) -> str:
    """SHA-256 of a file; of one that is not there ""."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def reseal(bundle: Path) -> None:
    """What who forges a bundle does: the manifest made anew."""
    manifest = read_json(bundle / "manifest.json")
    files = [path for path in bundle.rglob("*") if path.is_file() and path.name != "manifest.json"]
    digests = {path.relative_to(bundle).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (bundle / "manifest.json").write_text(json_text({**manifest, "files": digests}))


@pytest.fixture
def bundle(published: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(published[1], tmp_path / "bundle"))


def test_numbers_are_the_same_elsewhere(published: tuple[Path, Path]) -> None:
    home, bundle = published
    result = call("verify", bundle)
    assert result.exit_code == 0, result.output
    assert re.search(
        r"\nholds: \d+ accuracies of 2 models are at most what .*; [1-9]\d* certificates computed", result.output
    )
    pd.testing.assert_frame_equal(rows(home), rows(bundle))
    (board,) = boards_from_home(Home(bundle))
    assert set(board.budgets["digits"]) == {"linf", "l2", "l1"}
    row = re.compile(r"^mlp-8 (\w+)\S* .*tiny +(l\w+) ([\d.]+) +30 +([\d.]+) % +([\d.]+) %", re.MULTILINE)
    shown = row.findall(result.output.replace("steps=2", "").replace(", ", ""))
    assert len(shown) == 2 * sum(len(grid) for grid in board.budgets["digits"].values())
    assert all(says == at_most for *_, says, at_most in shown)
    told = {(defense, norm, eps): float(says) for defense, norm, eps, says, _ in shown}
    for pairs in board.by_model.values():
        for norm, grid in board.budgets["digits"].items():
            for eps in grid:
                share = 100 * worst_case(pairs, norm, eps).accuracy
                assert told[pairs[0].result.defense.partition("(")[0], norm, f"{eps:g}"] == pytest.approx(
                    share, abs=0.005
                )


def test_the_same_home_makes_the_same_bytes(published: tuple[Path, Path], tmp_path: Path) -> None:
    home, bundle = published
    moved = Path(shutil.copytree(home, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("mlflow*", "report")))
    digests = []
    for place, name in ((home, "a"), (moved, "b")):
        for form in ("tar", "zip"):
            assert call("publish", place, "--out", tmp_path / f"{name}.{form}", "--by", "The Tester").exit_code == 0
            digests.append(hashlib.sha256((tmp_path / f"{name}.{form}").read_bytes()).hexdigest())
    assert digests[:2] == digests[2:]
    assert call("verify", tmp_path / "a.zip").exit_code == 0
    manifest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    assert call("verify", tmp_path / "a.tar", "--digest", manifest).exit_code == 0
    assert call("verify", tmp_path / "a.tar", "--digest", "0" * 64).exit_code == 1


def test_every_broken_image_has_a_witness_at_its_distance(published: tuple[Path, Path]) -> None:
    """Also after two homes were merged, in either order, and where only the table of the model is kept."""
    home = Home(published[0])
    (board,) = boards_from_home(home)
    for key, pairs in board.by_model.items():
        (path,) = witnesses.tables(home, key)
        table, _ = witnesses.read_table(path)
        for norm in board.budgets["digits"]:
            told = nearest(pairs, norm)
            found = pd.Series(table[norm]).groupby(table["index"]).min()
            told = told[told["stands"] & np.isfinite(told["distance"])]
            assert found[told.index].tolist() == told["distance"].tolist()


def test_tables_merge_in_any_order(published: tuple[Path, Path], tmp_path: Path) -> None:
    home = Home(published[0])
    (board,) = boards_from_home(home)
    key = next(iter(board.by_model))
    whole = witnesses.tables(home, key)[0].read_bytes()
    cells = [pair.result for pair in board.by_model[key]]
    made = []
    for order in (cells, cells[::-1], [*cells, *cells]):
        other = Home(tmp_path / str(len(made)))
        for result in order:
            rows = witnesses.of_pair(home.cell(result.cell), result)
            assert rows is not None
            how = {"model": key, "weights": result.weights[key], "part": "test"}
            witnesses.keep(other, result.cell, rows, board.budgets["digits"], **how)
        made.append(witnesses.tables(other, key)[0].read_bytes())
    assert all(table == whole for table in made)


def test_what_sync_takes_over_can_be_published(published: tuple[Path, Path], tmp_path: Path) -> None:
    home, into = Home(published[0]), Home(tmp_path / "merged").create()
    assert merge(home, into).whole
    assert merge(home, into).new["witnesses"] == 0
    key = next(iter(boards_from_home(home)[0].by_model))
    assert digest(witnesses.tables(home, key)[0]) == digest(witnesses.tables(into, key)[0])


def test_a_single_change_is_named(published: tuple[Path, Path], tmp_path: Path) -> None:
    """Of bytes, places, and well-formed edits sealed anew; all but those of the manifest itself."""
    whole = rows(published[1])
    for seed in range(CHANGES):
        bundle = Path(shutil.copytree(published[1], tmp_path / str(seed)))
        what = changes(bundle, random.Random(seed))
        result = call("verify", bundle)
        assert result.exit_code in (1, 2), (seed, what, result.output)
        assert "Traceback" not in result.output
        assert any(line.startswith("gauntlet: ") for line in result.output.splitlines()), (seed, what)
        assert "\nholds: " not in result.output
        shutil.rmtree(bundle)
    pd.testing.assert_frame_equal(whole, rows(published[1]))


def test_a_forged_number_does_not_hold(bundle: Path) -> None:
    """Everything sealed anew, and the manifest with it: images are what a number stands on."""
    home = Home(bundle)
    (board,) = boards_from_home(home)
    pairs = next(iter(board.by_model.values()))
    lost = nearest(pairs, "linf")
    at = lost[(lost["distance"] > 0) & (lost["distance"] <= limit(0.15))].index[0]
    for pair in pairs:  # the image stands, all tables say
        folder = home.cell(pair.result.cell)
        found = read_pair(folder)
        samples = pd.DataFrame(dict(found.records))
        row = samples["index"] == at
        samples.loc[row, ["adversarial", "survives_rounding"]] = False
        samples.loc[row, ["l0", "l1", "l2", "linf", "rms"]] = np.nan
        summary = dict(read_json(folder / "result.json")["summary"])
        packed = (folder / witnesses.FILE).read_bytes()
        result = found.result.model_copy(update={"summary": {}})
        del summary
        write_result(folder, result, samples, dict(found.gallery), packed)
    reseal(bundle)
    result = call("verify", bundle)
    assert result.exit_code == 1
    assert f"image {at}, of which cells/" in " ".join(result.output.split())
    assert "numbers.json: worst_case_accuracy of" in result.output


def test_a_forged_certificate_does_not_hold(bundle: Path) -> None:
    """An image that stands is said to be certified: no witness speaks against it."""
    (board,) = boards_from_home(Home(bundle))
    forged = []
    for path in sorted(bundle.glob("certificates/*/*.json")):
        record = read_json(path)
        facts, pairs = record["facts"], board.by_model[next(iter(record["weights"]))]
        lost = nearest(pairs, facts["norm"])["distance"]
        for level in facts["levels"]:
            stands = [bool(lost[at] > limit(level["eps"])) for at in facts["index"]]
            if stands != level["certified"]:
                forged.append(
                    f"in {facts['norm']}: {sum(stands) - sum(level['certified'])} images are not certified here"
                )
                level["certified"] = stands
        path.write_text(json_text(record))
    assert forged
    reseal(bundle)
    result = call("verify", bundle)
    assert result.exit_code == 1
    said = " ".join(result.output.split())
    assert all(line in said for line in forged), (forged, said)


@pytest.mark.parametrize("way", ["by draws", "said twice"])
def test_a_certificate_that_nobody_computes_again_does_not_hold(way: str, bundle: Path) -> None:
    home = Home(bundle)
    (board,) = boards_from_home(home)
    for path in sorted(bundle.glob("certificates/*/*.json")):
        record = read_json(path)
        facts, pairs = record["facts"], board.by_model[next(iter(record["weights"]))]
        lost = nearest(pairs, facts["norm"])["distance"]
        honest = [dict(level) for level in facts["levels"]]
        for level in facts["levels"]:
            level["certified"] = [bool(lost[at] > limit(level["eps"])) for at in facts["index"]]
        if way == "by draws":
            facts["alpha"] = 0.001
        else:
            facts["levels"] += honest
        path.write_text(json_text(record))
    told = sealed(numbers(boards_from_home(home)))
    (bundle / NUMBERS).write_text(json_text(told))
    reseal(bundle)
    result = call("verify", bundle)
    said = " ".join(result.output.split())
    assert result.exit_code == 1
    assert ("are said to be by draws, or not to be" if way == "by draws" else "are not certified here") in said


def test_a_witness_that_breaks_nothing_proves_nothing(bundle: Path, digits: Dataset) -> None:
    (board,) = boards_from_home(Home(bundle))
    key = next(iter(board.by_model))
    (path,) = witnesses.tables(Home(bundle), key)
    table, facts = witnesses.read_table(path)
    path.unlink()
    table["x_adv"] = digits.test.x[torch.tensor(table["index"])].numpy()
    assert witnesses.merge(path, table, facts, set())
    for pair in board.by_model[key]:
        folder = Home(bundle).cell(pair.result.cell)
        (folder / witnesses.FILE).unlink()
        files = {name: sha for name, sha in pair.result.files.items() if name != witnesses.FILE}
        record = read_json(folder / "result.json")
        (folder / "result.json").write_text(json_text({**record, "files": files}))
    reseal(bundle)
    result = call("verify", bundle)
    assert result.exit_code == 1
    assert "images do not break the model here" in result.output
    assert "have no witness" in result.output
    assert "accuracies not proved" in result.output


def test_a_changed_home_is_named_or_publishes_the_same(published: tuple[Path, Path], tmp_path: Path) -> None:
    """Edits that are not sealed anew, of a home, which has no manifest."""
    left_out = shutil.ignore_patterns("mlflow*", "report", "progress", "pending", "runs.json", "closed.json", "origin")
    whole = Path(shutil.copytree(published[0], tmp_path / "whole", ignore=left_out))
    (whole / ".lock").unlink(missing_ok=True)
    for seed in range(CHANGES if CHANGES >= 500 else CHANGES // 3):
        home = Path(shutil.copytree(whole, tmp_path / str(seed)))
        what = changes(home, random.Random(seed), sealed=False)
        result = call("publish", home, "--out", tmp_path / f"{seed}.tar", "--by", "The Tester")
        if result.exit_code == 0 and "not there, though it was asked for" not in result.output:
            with opened(tmp_path / f"{seed}.tar") as folder:
                other = {*names(folder), *names(published[1])}
                other = {path for path in other if digest(folder / path) != digest(published[1] / path)}
            assert not other, (seed, what)
        else:
            assert "Traceback" not in result.output, (seed, what)
        shutil.rmtree(home)


def test_weights_that_lie_elsewhere(published: tuple[Path, Path], tmp_path: Path) -> None:
    home, whole = published
    bundle = tmp_path / "light"
    result = call("publish", home, "--out", bundle, "--no-weights", "--weights-at", "https://example.org/w")
    assert result.exit_code == 0, result.output
    assert not list(bundle.rglob("weights.safetensors"))
    result = call("verify", bundle)
    assert result.exit_code == 2
    assert "not judged: " in result.output
    assert "its weights are at https://example.org/w" in result.output
    for path in whole.rglob("weights.safetensors"):
        shutil.copyfile(path, bundle / path.relative_to(whole))
    assert call("verify", bundle).exit_code == 0
    models = sorted(bundle.rglob("weights.safetensors"))
    shutil.copyfile(models[0], models[1])
    assert "was changed" in call("verify", bundle).output


def test_a_name_takes_no_memory(bundle: Path) -> None:
    """Of a network that is declared a million times as large as its weights."""
    (board,) = boards_from_home(Home(bundle))
    key, known = next(iter(board.models.items()))
    assert known.card is not None
    spec = model_spec(known.card.declaration, defenses(), {})
    large = dataclasses.replace(spec, architecture="mlp-99999-99999-99999-99999")
    home = Home(bundle / "elsewhere")
    shutil.copytree(bundle / "models" / key, home.model(large.key))
    with pytest.raises(UserError, match="does not fit its declaration"):
        referee(home, large, DATASETS["digits"], "cpu")
