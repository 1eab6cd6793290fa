"""What the studies of Huang et al. 2015 declare."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from defenses.learning_with_adversary import LearningWithAdversary, LearningWithAdversaryRepresentation
from harness.datasets.registry import DATASETS
from harness.studies.experiment import Experiment, design
from harness.studies.study import Claim, Derived, Item, Value, leaves
from suites import studies, suites
from suites.huang2015 import BOUNDED, COLUMNS, METHODS, ROWS_1, ROWS_2, TOWARDS

MNIST = studies()["huang2015"]
CIFAR = studies()["huang2015-cifar10"]


def made(profile: str, name: str = "huang2015") -> Experiment:
    return design(studies()[name], profile, DATASETS[studies()[name].profile(profile).dataset], suites(), seeds=[0])


def item(name: str) -> Item:
    return next(item for item in MNIST.items if item.name == name)


def cell(name: str, row: str, column: str) -> Value:
    return next(value for value in item(name).values if (value.row, value.column) == (row, column))


def claim(name: str) -> Claim:
    return next(claim for claim in MNIST.claims if claim.name == name)


def printed(model: str, column: str) -> float:
    """Of tables 1 and 2 by the study's model, as a share."""
    numbers = next(numbers for rows in (ROWS_1, ROWS_2) for name, numbers in rows.values() if name == model)
    return numbers[COLUMNS.index(column)]


# ---------------------------------------------------------------- rivals, tolerances, bases


@pytest.mark.parametrize(
    ("name", "row", "column", "number", "rival"),
    [
        ("table-1", "Normal", "Adv_Loss", 9.1, None),
        ("table-1", "Dropout", "Adv_Loss", 13.5, 9.1),
        ("table-1", "Goodfellow's method", "Adv_Loss", 71.3, 13.5),
        ("table-1", "LWA", "Adv_Loss", 86.0, 71.3),
        ("table-1", "LWA", "Adv_Loss_Sign", 93.5, 92.3),
        ("table-1", "LWA", "Validation", 98.7, 98.0),
        ("table-1", "LWA_Rep", "Adv_Alpha", 76.7, 7.8),
        ("table-2", "Normal", "Fixed", 63.42, None),
        ("table-2", "LWA", "Adv_Alpha", 95.29, 37.92),
    ],
)
def test_rivals_are_the_papers_own_rows(name: str, row: str, column: str, number: float, rival: float | None) -> None:
    value = cell(name, row, column)
    assert (value.printed, value.rival) == (number, rival)


def test_no_value_can_be_both_its_row_and_the_one_it_is_compared_with() -> None:
    for name in ("table-1", "table-2"):
        for value in item(name).values:
            assert value.printed is not None
            rivals = [other for other in item(name).values if other.column == value.column]
            for other in rivals:
                if other.rival == value.printed and other is not value:
                    assert other.printed is not None
                    assert other.tolerance + value.tolerance < abs(other.printed - value.printed)
    assert not any(value.printed for name in ("table-1-clipped", "table-2-clipped") for value in item(name).values)


def test_what_is_no_evidence_says_so() -> None:
    costs = [value for value in item("cost").values if value.printed is not None]
    assert {(value.printed, value.rival, value.basis) for value in costs} == {(10.0, 1.0, "construction")}
    for value in (*item("table-1").values, *item("table-2").values):
        assert value.basis == ("fitted" if value.row == "LWA_Rep" else "measured")
    assert {choice.topic for choice in MNIST.choices if choice.fitted} == {"LWA_Rep"}


# ---------------------------------------------------------------- twins


def test_twins_differ_in_one_thing() -> None:
    for profile in ("cpu", "night", "full"):
        run = made(profile)
        own, twin = run.model("LWA", 0), run.model(TOWARDS, 0)
        assert isinstance(own.defense, LearningWithAdversary)
        assert own.defense.adversary == "likelihood"
        assert twin == replace(own, defense=replace(own.defense, adversary="misclassification"))
        rep, bounded = run.model("LWA_Rep", 0), run.model(BOUNDED, 0)
        assert isinstance(rep.defense, LearningWithAdversaryRepresentation)
        assert bounded == replace(rep, architecture="mlp-sigmoid-1000-1000")
    effects = {value.row: value for choice in MNIST.choices for _, value in choice.effects}
    assert set(effects) == {TOWARDS, BOUNDED}
    assert effects[TOWARDS].printed == 85.7


# ---------------------------------------------------------------- claims, as print has them


def test_print_keeps_and_breaks_its_own_claims() -> None:
    assert all(printed("Dropout", column) > printed("Normal", column) for column in COLUMNS)
    assert len(claim("dropout-helps").clauses) == len(COLUMNS)
    broken = [model for model in METHODS if printed(model, "Adv_Alpha") > printed(model, "Adv_Loss")]
    assert broken == ["Dropout"]
    assert "23.8 %" in item("table-1").note
    assert "13.5 %" in item("table-1").note


def test_comparable_is_what_print_is() -> None:
    sets, clean = claim("representation-is-comparable").clauses
    for clause, columns in ((sets, COLUMNS[1:]), (clean, COLUMNS[:1])):
        assert isinstance(clause.left, Derived)
        assert {part.model for part in leaves(clause.left)} == {"LWA_Rep", "Goodfellow"}
        assert len(set(leaves(clause.left))) == 2 * len(columns)
        means = [
            sum(printed(model, column) for column in columns) / len(columns) for model in ("LWA_Rep", "Goodfellow")
        ]
        assert isinstance(clause.right, float)
        assert means[0] - means[1] >= clause.right


def test_training_accuracy_is_of_the_images_trained_on_as_of_the_last_epoch() -> None:
    training, validation = claim("lenet-fits").clauses
    measure: Any = training.left
    assert (measure.quantity, measure.model, dict(measure.settings)) == (
        "history",
        "Normal LeNet",
        {"field": "accuracy"},
    )
    assert (training.right, validation.right) == (0.9995, 0.9905)


# ---------------------------------------------------------------- profiles


@pytest.mark.parametrize("name", ["huang2015", "huang2015-cifar10"])
@pytest.mark.parametrize("profile", ["cpu", "night", "full"])
def test_summaries_give_sizes_after_the_held_out_split(name: str, profile: str) -> None:
    run = made(profile, name)
    there = run.info.train_size
    assert there is not None
    trained = {there - spec.defense.held(there) for spec in run.plan.models}
    assert len(trained) == 1
    assert f"{trained.pop():,} training images of {there:,}" in run.profile.summary


def test_nights_have_five_seeds_and_all_test_images() -> None:
    for study in (MNIST, CIFAR):
        cpu, night, full = (study.profile(name) for name in ("cpu", "night", "full"))
        assert night.seeds == (0, 1, 2, 3, 4)
        assert night.samples == 10_000
        assert cpu.settings["epochs"] < night.settings["epochs"] < full.settings["epochs"]


def test_a_night_trains_at_a_constant_rate_and_the_representation_as_before() -> None:
    run, before = made("night"), made("cpu")
    for name in (*METHODS, TOWARDS, "Normal LeNet", "LWA LeNet"):
        defense: Any = run.model(name, 0).defense
        if name == "LWA_Rep":
            assert (defense.schedule, defense.lr, defense.epochs) == ("cosine", 0.1, 60)
        else:
            assert (defense.schedule, defense.optimizer) == ("constant", "sgd")
            earlier: Any = before.model(name, 0).defense
            assert (earlier.schedule, earlier.optimizer) == ("cosine", "adam")
