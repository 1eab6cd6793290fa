"""What the studies of Lyu et al. 2015 declare, and their smallest profile."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from defenses.fast_gradient import FastGradient
from defenses.gradient_regularization import GradientRegularization
from harness.cli.main import cli
from harness.datasets.registry import DATASETS
from harness.studies.experiment import Experiment, design
from harness.studies.study import Item, Study, Value, leaves
from harness.training.trainer import Trainer
from suites import studies, suites
from suites.lyu2015.claims import ORDERS, THREE_PERCENT
from suites.lyu2015.error_tables import tolerances
from suites.lyu2015.measures import noisy
from suites.lyu2015.measures import tested as error_of
from suites.lyu2015.networks import (
    ALONE,
    CONV,
    HALVES,
    LAMBDAS,
    MAXOUT,
    PENALTY,
    SCALE,
    SIGMOID,
    regularized,
    softmax,
)
from suites.lyu2015_cifar10 import BOTH, FIRST, UNIT, stage
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


# ---------------------------------------------------------------- rivals, tolerances, bases


def item(study: Study, name: str) -> Item:
    return next(item for item in study.items if item.name == name)


def cell(study: Study, name: str, row: str, column: str) -> Value:
    return next(value for value in item(study, name).values if (value.row, value.column) == (row, column))


@pytest.mark.parametrize(
    ("name", "row", "column", "printed", "rival"),
    [
        ("table-1", regularized(MAXOUT), "Test error", 0.78, 0.94),
        ("table-1", regularized(MAXOUT, "p = inf"), "Test error", 0.84, 0.94),
        ("table-1", MAXOUT, "Test error", 0.94, None),
        ("table-1", regularized(SIGMOID), "Test error", 0.93, None),
        ("table-2", regularized(CONV), "Test error", 0.39, 0.45),
        ("table-4", regularized(CONV), "0.3", 14.36, 20.17),
        ("table-4", regularized(MAXOUT), "0.1", 0.83, 1.14),
        ("table-6", softmax("1"), "mean", 1.2718, 0.4722),
        ("table-6", softmax("1e-4"), "mean", 0.2744, None),
        ("table-7", softmax("1"), "0.1", 9.16, 8.93),
        ("table-8", softmax("1e-2"), "0.3", 17.01, 6.29),
        ("table-9", softmax("1e-4"), "Actual", 0.07, 0.0),
    ],
)
def test_rivals_are_the_papers_own_rows(name: str, row: str, column: str, printed: float, rival: float | None) -> None:
    value = cell(MNIST, name, row, column)
    assert (value.printed, value.rival) == (printed, rival)


def test_rivals_on_cifar() -> None:
    for images, printed, rival in ((FIRST, 13.26, 14.05), (BOTH, 12.28, 12.93)):
        value = cell(CIFAR, "table-3", stage(regularized(CIFAR_NET), images), "Test error")
        assert (value.printed, value.rival) == (printed, rival)
        assert value.tolerance < 0.33
    last = cell(CIFAR, "table-5", stage(regularized(CIFAR_NET), BOTH), "0.3")
    assert last.rival == 16.88
    assert last.tolerance == pytest.approx(0.032)


def test_a_tolerance_tells_both_ends_of_an_effect_apart() -> None:
    found = tolerances(
        {"plain": 2.0, "ours": 1.0, "theirs": 1.9, "alone": 5.0}, {"ours": "plain", "theirs": "plain"}, 0.3
    )
    assert found == pytest.approx({"plain": 0.04, "ours": 0.3, "theirs": 0.04, "alone": 0.3})


def test_what_is_no_evidence_says_so() -> None:
    for name in ("table-6", "table-7", "table-8"):
        for value in item(MNIST, name).values:
            assert value.basis == ("repeat" if (name, value.column) == ("table-8", "0") else "fitted")
    for study, name in ((MNIST, "table-4"), (CIFAR, "table-5")):
        assert all(
            value.basis == ("repeat" if value.column == "0" else "measured") for value in item(study, name).values
        )
    fitted = {choice.topic for choice in MNIST.choices if choice.fitted}
    assert fitted == {"lambda of the softmax models", "training of the softmax models", "minimum perturbation"}


def test_quoted_rows_are_shown_and_not_measured() -> None:
    quoted = {one.row: one.printed for name in ("table-1", "table-2") for one in item(MNIST, name).quoted}
    assert quoted == {"ReLu + dropout + gaussian": 0.85, "DBM + dropout": 0.79, "Conv. Kernel Network": 0.39}
    assert not set(quoted) & {value.row for value in item(MNIST, "table-1").values}


# ---------------------------------------------------------------- models beside the paper's


def test_the_quoted_p_inf_row_is_trained_by_halves() -> None:
    made = full("lyu2015", "mnist")
    halves, alone, plain = (made.model(name, 0) for name in (HALVES, regularized(MAXOUT, "p = inf, 0.25"), MAXOUT))
    assert isinstance(halves.defense, FastGradient)
    assert (halves.defense.alpha, halves.defense.eps, halves.defense.norm) == (0.5, 0.25, "linf")
    assert halves.architecture == plain.architecture
    assert all(getattr(halves.defense, name.name) == getattr(plain.defense, name.name) for name in fields(Trainer))
    assert cell(MNIST, "table-1", regularized(MAXOUT, "p = inf"), "Test error").quantity == error_of(HALVES)
    ours = cell(MNIST, "table-1", ALONE, "Test error")
    assert (ours.quantity, ours.printed) == (error_of(regularized(MAXOUT, "p = inf, 0.25")), None)
    assert alone.key != halves.key


def test_the_penalty_differs_in_its_form_alone() -> None:
    made = full("lyu2015", "mnist")
    ours, penalty = made.model(regularized(SIGMOID), 0), made.model(PENALTY, 0)
    assert isinstance(penalty.defense, GradientRegularization)
    assert replace(penalty.defense, form="perturbed") == ours.defense
    assert penalty.architecture == ours.architecture
    assert any(value.quantity == error_of(PENALTY) for choice in MNIST.choices for _, value in choice.effects)


# ---------------------------------------------------------------- claims, as print has them


def test_print_itself_keeps_the_orders_of_foretold_fits() -> None:
    for name in ("table-7", "table-8"):
        for std, order in ORDERS.items():
            printed = [cell(MNIST, name, softmax(weight), std).printed for weight in order]
            assert printed == sorted(printed), (name, std)  # type: ignore[type-var]
    claim = next(claim for claim in MNIST.claims if claim.name == "foretold-fits")
    assert len(claim.clauses) == len({(clause.left, clause.right) for clause in claim.clauses}) == 2 * (3 + 4)


def test_print_itself_gives_three_percent_without_noise() -> None:
    for weight in LAMBDAS:
        mean, spread = (
            cell(MNIST, "table-6", softmax(weight), column).printed for column in ("mean", "standard deviation")
        )
        miss = cell(MNIST, "table-7", softmax(weight), "0").printed
        assert mean is not None
        assert spread is not None
        assert miss is not None
        below_zero = 0.5 * math.erfc(mean / spread / math.sqrt(2))
        (_, _, low), (_, _, high) = THREE_PERCENT
        assert low <= (1 - miss / 100) * below_zero <= high


def test_both_sigmas_of_p_inf_are_compared() -> None:
    claim = next(claim for claim in MNIST.claims if claim.name == "sigma-of-p-inf")
    (clause,) = claim.clauses
    sigmas = [full("lyu2015", "mnist").model(side.model, 0).defense.sigma for side in (clause.left, clause.right)]
    assert (sigmas, clause.relation) == ([0.1, 0.25], "<")


# ---------------------------------------------------------------- profiles


@pytest.mark.parametrize(("name", "profile"), [(s.name, p) for s in (MNIST, CIFAR) for p in ("cpu", "night", "full")])
def test_summaries_give_sizes_after_the_held_out_split(name: str, profile: str) -> None:
    dataset = studies()[name].profile(profile).dataset
    info = DATASETS[dataset]
    made = design(studies()[name], profile, info, suites(), seeds=[0])
    trained = set()
    for spec in made.plan.models:
        there = min(info.train_size or 0, spec.defense.subset or info.train_size or 0)
        if spec.defense.validation:
            trained.add(there - spec.defense.held(there))
    assert trained
    for images in trained:
        assert f"{images:,} images" in made.profile.summary


def test_nights_have_five_seeds_and_lie_between_the_others() -> None:
    for study in (MNIST, CIFAR):
        cpu, night, whole = (study.profile(name) for name in ("cpu", "night", "full"))
        assert night.seeds == (0, 1, 2, 3, 4)
        for setting in ("epochs", "conv_epochs"):
            if setting in night.settings:
                assert cpu.settings[setting] < night.settings[setting] < whole.settings[setting]
