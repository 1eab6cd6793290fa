"""What others read: their own schemas, and numbers that are ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.datasets.registry import Dataset
from harness.leaderboard import leaderboard
from harness.metrics.pairs import worst_case
from harness.records.boards import boards_from_home
from harness.records.home import Home
from harness.schema.eps import limit
from tests.helpers.commands import call, complaint

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
pytestmark = pytest.mark.slow
SCHEMAS = Path(__file__).parents[1] / "data"


def validate(document: Any, name: str) -> None:
    schema = json.loads((SCHEMAS / name).read_text())
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    problems = [f"{error.json_path}: {error.message}" for error in kind(schema).iter_errors(document)]
    assert problems == []


def test_every_eval_ever(published: tuple[Path, Path], tmp_path: Path) -> None:
    home, bundle = published
    for source, out in ((home, "a"), (bundle, "b")):
        options = ["--format", "every-eval-ever", "--by", "The Tester", "--out", tmp_path / out]
        result = call("export", source, *options)
        assert result.exit_code == 0, result.output
    files = sorted((tmp_path / "a").rglob("*.json"))
    for file in files:  # a bundle says what its home says
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()
    (board,) = boards_from_home(Home(home))
    assert len(files) == len(board.by_model) == 2
    for file in files:
        found = json.loads(file.read_text())
        validate(found, "every_eval_ever/eval.schema.json")
        assert found["schema_version"] == "0.3.0"
        pairs = board.by_model[found["model_info"]["additional_details"]["gauntlet_key"]]
        told = {}
        for one in found["evaluation_results"]:
            config = one["metric_config"].get("metric_parameters", {})
            told[config.get("norm"), config.get("eps")] = one["score_details"]["score"]
        grid = [(norm, eps) for norm, each in board.budgets["digits"].items() for eps in each]
        clean = float(pairs[0].columns["clean_correct"].mean())
        assert told == {(None, None): clean, **{at: worst_case(pairs, *at).accuracy for at in grid}}


def test_robustbench(published: tuple[Path, Path], tmp_path: Path, digits: Dataset) -> None:
    home, _ = published
    options = ["--by", "Ada", "--title", "On Testing", "--link", "https://example.org", "--venue", "ICML 2026"]
    result = call("export", home, "--format", "robustbench", "--out", tmp_path, *options)
    assert result.exit_code == 0, result.output
    (board,) = boards_from_home(Home(home))
    files = sorted((tmp_path / "model_info").rglob("*.json"))
    assert len(files) == 2 * 2  # two models in Linf and L2
    ranked = leaderboard(board)
    for file in files:
        info = json.loads(file.read_text())
        validate(info, "robustbench/model_info.schema.json")
        norm, eps = {"Linf": "linf", "L2": "l2"}[file.parent.name], float(info["eps"])
        defense = "pgd" if file.name.startswith("pgd") else "standard"
        row = ranked[ranked["defense"].str.startswith(defense) & (ranked["norm"] == norm)]
        row = row[np.isclose(row["eps"], eps)].iloc[0]
        assert float(info["external"]) == pytest.approx(100 * row["worst_case_accuracy"], abs=0.005)
        assert float(info["clean_acc"]) == pytest.approx(100 * row["clean_accuracy"], abs=0.005)
        place = file.relative_to(tmp_path / "model_info").with_suffix("")
        x_adv = torch.load(tmp_path / "adversarial" / f"{place}.pt", weights_only=True)
        index, (x, _) = digits.test_sample(30)
        x = x[torch.argsort(index)]
        assert x_adv.shape == x.shape
        delta = (x_adv - x).flatten(1)
        size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
        assert float(size.max()) <= limit(eps) + 1e-6
        lost = round(30 * (row["clean_accuracy"] - row["worst_case_accuracy"]))
        assert int((size > 0).sum()) == lost
        form = (tmp_path / "claims" / f"{place}.md").read_text()
        for words in ("Ada", "On Testing", "https://example.org", f"{info['external']}%", file.parent.name):
            assert words in form


def test_nothing_to_export(tmp_path: Path) -> None:
    assert "no runs in" in complaint(call("export", tmp_path, "--format", "robustbench"))
