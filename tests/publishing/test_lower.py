"""Somebody's images: those that break a model lower its numbers, all others do nothing but say so."""

from __future__ import annotations

import hashlib
import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from harness.datasets.registry import Dataset
from harness.metrics.pairs import nearest, worst_case
from harness.records import witnesses
from harness.records.boards import boards_from_home
from harness.records.home import Home
from harness.records.results import read_pair, write_result
from harness.schema.eps import limit
from tests.helpers.commands import call, complaint

pytestmark = pytest.mark.slow


@pytest.fixture
def home(published: tuple[Path, Path], tmp_path: Path) -> Home:
    return Home(Path(shutil.copytree(published[0], tmp_path / "home")))


def accuracies(home: Home, key: str) -> dict[tuple[str, float], float]:
    (board,) = boards_from_home(home)
    grids = board.budgets["digits"].items()
    return {(norm, eps): worst_case(board.by_model[key], norm, eps).accuracy for norm, grid in grids for eps in grid}


def contents(home: Home) -> dict[str, str]:
    """Digests of the files that numbers are made of."""
    paths = [path for kind in ("cells", "plans", "witnesses") for path in (home.path / kind).rglob("*.*")]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}


def forget(home: Home, key: str, places: list[int]) -> None:
    """As if no attack had broken these images."""
    (board,) = boards_from_home(home)
    for pair in board.by_model[key]:
        folder = home.cell(pair.result.cell)
        found = read_pair(folder)
        samples = pd.DataFrame(dict(found.records))
        rows = samples["index"].isin(places)
        samples.loc[rows, ["adversarial", "survives_rounding"]] = False
        samples.loc[rows, ["l0", "l1", "l2", "linf", "rms"]] = np.nan
        result = found.result.model_copy(update={"summary": {}})
        write_result(folder, result, samples, dict(found.gallery))
    (path,) = witnesses.tables(home, key)
    table, facts = witnesses.read_table(path)
    path.unlink()
    kept = ~np.isin(table["index"], places)
    witnesses.merge(path, {name: value[kept] for name, value in table.items()}, facts, set())


def test_ten_images_lower_exactly_what_they_break(home: Home, digits: Dataset, tmp_path: Path) -> None:
    (board,) = boards_from_home(home)
    key = next(key for key, model in board.models.items() if model.defense.startswith("standard"))
    table, _ = witnesses.read_table(witnesses.tables(home, key)[0])
    told = nearest(board.by_model[key], "linf")
    index, (x, _) = digits.test_sample(30)
    clean = dict(zip(index.tolist(), x, strict=True))
    reached = told[(told["distance"] > 0) & (told["distance"] <= limit(0.1))].index.tolist()[:4]
    wrong = told[~told["stands"]].index.tolist()
    right = told[told["stands"] & ~told.index.isin(reached)].index.tolist()
    assert len(reached) == 4
    assert len(right) >= 5
    images = {}
    for place in reached:
        mine = np.flatnonzero(table["index"] == place)
        images[place] = torch.tensor(table["x_adv"][mine[table["linf"][mine].argmin()]])
    images[right[0]] = clean[right[0]]
    images[right[1]] = clean[right[1]].clone().fill_(torch.nan)
    images[right[2]] = torch.zeros(1, 9, 9)
    images[right[3]] = 1 - clean[right[3]]  # far off
    images[right[4]] = clean[right[4]] + 2
    images[next(place for place in range(359) if place not in clean)] = torch.zeros(1, 8, 8)
    assert len(images) == 10
    forget(home, key, reached)
    before = accuracies(home, key)
    other = next(model for model in board.models if model != key)
    others = accuracies(home, other)
    save_file({str(place): image.contiguous() for place, image in images.items()}, tmp_path / "x.safetensors")
    result = call("lower", home.path, tmp_path / "x.safetensors", "--by", "Ada", "--source", "by hand", "--of", key)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("gauntlet: image ")]
    said = {int(line.split()[2].rstrip(":")): line for line in lines}
    assert said.keys() == images.keys() - set(reached)
    for place, word in zip(right, ("clean image", "NaN", "shape", "", "outside [0, 1]"), strict=False):
        assert word in said[place]
    assert "outside every budget" in said[right[3]] or "true label" in said[right[3]]
    after = accuracies(home, key)
    (board,) = boards_from_home(home)
    (pair,) = [pair for pair in board.by_model[key] if pair.result.submitted]
    assert pair.columns["index"][pair.columns["adversarial"]].tolist() == [p for p in index.tolist() if p in reached]
    for (norm, eps), accuracy in after.items():
        columns = pair.columns
        fell = int((columns["adversarial"] & (columns[norm] <= limit(eps))).sum())
        assert accuracy == pytest.approx(before[norm, eps] - fell / 30)
    assert after["linf", 0.1] == pytest.approx(before["linf", 0.1] - 4 / 30)
    assert accuracies(home, other) == others
    assert wrong or right  # both kinds are data, whichever the model is
    assert pair.result.attack.startswith("submitted:Ada ")
    assert pair.result.declaration["source"] == "by hand"
    # nothing raises: the suite's own plan, written anew, leaves what was handed in where it is
    newest = max(home.plans.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    first = next(path for path in home.plans.glob("*.json") if path != newest)
    first.touch()
    assert accuracies(home, key) == after
    again = call("lower", home.path, tmp_path / "x.safetensors", "--by", "Ada", "--source", "by hand", "--of", key)
    assert "no accuracy fell" in again.output
    assert call("publish", home.path, "--out", tmp_path / "b").exit_code == 0
    assert call("verify", tmp_path / "b").exit_code == 0, call("verify", tmp_path / "b").output


def test_what_breaks_nothing_changes_nothing(home: Home, digits: Dataset, tmp_path: Path) -> None:
    key = next(iter(boards_from_home(home)[0].by_model))
    before = {
        path: path.read_bytes() for kind in ("cells", "plans", "witnesses") for path in (home.path / kind).rglob("*.*")
    }
    np.save(tmp_path / "clean.npy", digits.test.x.numpy())
    result = call("lower", home.path, tmp_path / "clean.npy", "--by", "Ada", "--of", key)
    assert result.exit_code == 0, result.output
    assert "0 of 359 images break" in result.output
    np.save(tmp_path / "last.npy", digits.test.x.permute(0, 2, 3, 1).numpy())
    line = complaint(call("lower", home.path, tmp_path / "last.npy", "--by", "Ada", "--of", key))
    assert line.endswith("of shape (1, 8, 8), got (8, 8, 1), channels last: transpose to (N, 1, 8, 8)")
    assert before == {
        path: path.read_bytes() for kind in ("cells", "plans", "witnesses") for path in (home.path / kind).rglob("*.*")
    }


def _bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (2**22,)})
        archive.writestr("images.npy", head.getvalue() + bytes(2**24))


def _pickle(path: Path) -> None:
    torch.save({"x": Path("/etc/passwd")}, path)


def _header(path: Path) -> None:
    path.write_bytes((2**40).to_bytes(8, "little") + b"{}")


def _view(path: Path) -> None:
    torch.save(torch.zeros(1, 1, 8, 8).expand(10**7, 1, 8, 8), path)


@pytest.mark.parametrize(
    ("name", "make"), [("a.npz", _bomb), ("a.pt", _pickle), ("a.safetensors", _header), ("b.pt", _view)]
)
def test_hostile_files_are_refused(home: Home, tmp_path: Path, name: str, make: object) -> None:
    key = next(iter(boards_from_home(home)[0].by_model))
    assert callable(make)
    make(tmp_path / name)
    assert name in complaint(call("lower", home.path, tmp_path / name, "--by", "Eve", "--of", key))
    assert "of which model" in complaint(call("lower", home.path, tmp_path / name, "--by", "Eve"))
