"""What the studies of Lyu et al. 2015 declare, and their smallest profile."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from defenses.gradient_regularization import GradientRegularization
from harness.cli.main import cli
from harness.datasets.registry import DATASETS
from harness.studies.experiment import Experiment, design
from harness.studies.study import leaves
from suites import studies, suites
from suites.lyu2015 import CONV, LAMBDAS, MAXOUT, SCALE, SIGMOID, noisy, regularized, softmax
from suites.lyu2015_cifar10 import BOTH, UNIT, stage
from suites.lyu2015_cifar10 import NET as CIFAR_NET

MNIST = studies()["lyu2015"]
CIFAR = studies()["lyu2015-cifar10"]


def full(name: str, dataset: str) -> Experiment:
    return design(studies()[name], "full", DATASETS[dataset], suites(), seeds=[0])


def test_lambda_is_a_penalty_on_the_mean_loss() -> None:
    made = full("lyu2015", "mnist")
    for name, printed in LAMBDAS.items():
        spec = made.model(softmax(name), 0)
        # Adam and SGD descend weight_decay / 2 ||W||^2
        assert spec.defense.weight_decay / 2 == pytest.approx(printed / SCALE, rel=1e-12)
        assert spec.architecture == "softmax"


def test_networks_are_the_papers() -> None:
    made = full("lyu2015", "mnist")
    for net, architecture, limit in (
        (SIGMOID, "mlp-sigmoid-600-600", math.sqrt(15)),
        (MAXOUT, "maxout", 1.9365),
        (CONV, "conv-maxout", 1.9365),
    ):
        plain, ours = made.model(net, 0), made.model(regularized(net), 0)
        assert plain.architecture == ours.architecture == architecture
        assert plain.defense.max_norm == ours.defense.max_norm == limit
        assert isinstance(ours.defense, GradientRegularization)
        assert (ours.defense.p, ours.defense.sigma, ours.defense.form) == (2.0, 1.0, "perturbed")
        assert round(60_000 * plain.defense.validation) == 10_000
        assert plain.defense.refit
    used = {measure.model for measure in MNIST.measures()}
    assert regularized(CONV, "p = inf, 0.1") in used
    assert regularized(MAXOUT, "p = inf, 0.25") in used
    keys = [spec.key for spec in made.plan.models]
    assert len(set(keys)) == len(keys)


def test_cifar_has_a_model_for_either_stage() -> None:
    made = full("lyu2015-cifar10", "cifar10")
    assert {spec.architecture for spec in made.plan.models} == {"conv-maxout-small"}
    kinds = {(type(spec.defense).__name__, spec.defense.refit is None) for spec in made.plan.models}
    assert len(kinds) == len(made.plan.models) == 4
    sigma = {getattr(spec.defense, "sigma", None) for spec in made.plan.models}
    assert sigma == {None, 2.0 * UNIT}
    assert made.cells[noisy(stage(CIFAR_NET, BOTH), 0.3 * UNIT), 0].attack.std == pytest.approx(0.066)


def test_noise_is_judged_on_all_images_unclipped() -> None:
    made = full("lyu2015", "mnist")
    cell = made.cells[noisy(MAXOUT, 0.3), 0]
    assert cell.attack.everywhere
    assert not cell.attack.boxed
    assert cell.threat.eps is None
    assert cell.part == "test"


def test_softmax_tables_are_of_the_whole_training_set() -> None:
    made = full("lyu2015", "mnist")
    tables = [item for item in MNIST.items if item.name in ("table-6", "table-7", "table-8", "table-9", "figure-5")]
    asked = {part for item in tables for value in item.values for part in leaves(value.quantity)}
    cells = [made.cells[measure, 0] for measure in asked if measure.attack is not None]
    assert len(cells) > 10
    assert {(cell.part, cell.n) for cell in cells} == {("train", 60_000)}


def test_training_images_are_attacked_and_all_of_them_noisy(part: Path) -> None:
    folders = [file.parent for file in (part.parent / "cells").glob("*/result.json")]
    results = [(json.loads((folder / "result.json").read_text()), folder) for folder in folders]
    mine = [(meta, folder) for meta, folder in results if meta["part"] == "train"]
    assert {meta["n"] for meta, _ in mine} == {1438}
    noise = [pd.read_parquet(folder / "samples.parquet") for meta, folder in mine if "gaussian" in meta["attack"]]
    assert noise
    for frame in noise:
        assert sorted(frame["index"]) == list(range(1438))
        assert (frame["adv_pred"] >= 0).all()
        assert not frame["clean_correct"].all()


def test_batteries_transfer_from_models_of_the_profiles_size() -> None:
    made = design(studies()["lyu2015-cifar10"], "cpu", DATASETS["cifar10-jpeg"], suites())
    sources = {cell.source.key: cell.source for plan in made.judgements for cell in plan.cells if cell.source}
    assert sources
    assert all(source.defense.subset == 10_000 and source.defense.epochs == 4 for source in sources.values())
    usual = [cell.source for plan in full("lyu2015", "mnist").judgements for cell in plan.cells if cell.source]
    assert usual
    assert all(source.defense.subset is None for source in usual)


def test_every_table_and_figure_is_there() -> None:
    names = {item.name for study in (MNIST, CIFAR) for item in study.items}
    assert names == {*(f"table-{n}" for n in range(1, 10)), "figures-1-to-4", "figure-5", "figure-6", "figure-7"}
    printed = [value.printed for item in MNIST.items for value in item.values if value.printed is not None]
    assert len(printed) == 4 + 3 + 12 + 6 + 9 + 9 + 6
    assert sum(value.printed is not None for item in CIFAR.items for value in item.values) == 4 + 6


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("lyu") / "home"
    only = [word for name in ("table-6", "table-7", "table-8", "table-9", "figure-5") for word in ("--only", name)]
    arguments = ["reproduce", "lyu2015", "--profile", "smoke", "--home", str(home), "--jobs", "1", *only]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return home / "study-lyu2015"


def test_the_softmax_tables_are_filled(part: Path) -> None:
    frame = pd.read_csv(part / "claims.csv")
    assert frame["measured"].notna().all()
    bins = frame[frame["item"] == "figure-5"]
    assert bins["measured"].sum() <= 100 + 1e-6
    assert bins["measured"].sum() > 40  # most digits lie within 1 of the boundary
    actual = frame.query("item == 'table-7' and column == '0.3'")["measured"]
    assert (actual > frame.query("item == 'table-7' and column == '0'")["measured"].to_numpy()).all()


def test_a_histogram_is_drawn_as_bins(part: Path) -> None:
    picture = (part / "figures" / "figure-5.svg").read_text()
    path = next(line for line in picture.splitlines() if 'fill="none"' in line)
    assert path.count("M") == 20
    assert path.count("H") == 20
    assert "<circle" not in picture
    ends = [float(piece.split("H")[1].split("V")[0]) for piece in path.split('d="')[1].split('"')[0].split("M")[1:]]
    assert ends == sorted(ends)
    assert max(ends) == pytest.approx(546, abs=0.2)  # the last bin ends where the axis does
    page = (part / "study-lyu2015.html").read_text()
    assert path.split('d="')[1].split('"')[0] in page
