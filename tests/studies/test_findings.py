"""Verdicts, intervals and claims, on evidence made by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.attacks.lbfgs import LBFGS
from harness.errors import UserError
from harness.metrics.pairs import wilson
from harness.schema.base import Cost
from harness.schema.models import Card, EpochLine
from harness.studies.findings import CLAIM_COLUMNS, Findings, MeasurementSource
from harness.studies.quantities import QUANTITIES, judged_wrong
from harness.studies.study import Claim, Clause, Derived, Item, Measure, Profile, Relation, Study, Value, leaves
from harness.threat import Threat
from tests.helpers.boards import card

ATTACK = {"attack": LBFGS(), "threat": Threat("l2", None)}


def error(model: str) -> Measure:
    return Measure(quantity="test_error", model=model)


def study(*values: Value, claims: tuple[Claim, ...] = (), datasets: tuple[str, ...] = ("mnist",)) -> Study:
    return Study(
        name="made-up",
        title="A paper",
        source="Somebody 2014",
        profiles={"cpu": Profile(summary="", dataset="mnist", seeds=(0, 1, 2), samples=4)},
        models=lambda profile, info, seed: {},
        items=(Item(name="table-1", title="", where="page 1", values=values),),
        claims=claims,
        datasets=datasets,
    )


def value(model: str, printed: float | None, tolerance: float = 0.0) -> Value:
    return Value(
        row=model,
        column="error",
        metric="error",
        quantity=error(model),
        printed=printed,
        unit="%",
        tolerance=tolerance,
    )


def evidence(errors: Mapping[str, list[float]], seeds: tuple[int, ...] = (0, 1, 2)) -> MeasurementSource:
    """Cards with these test errors by model and seed; nan: not trained."""

    def read(model: str, seed: int) -> Card | None:
        found = errors.get(model, [])
        missing = seed >= len(found) or math.isnan(found[seed])
        return None if missing else card(test_accuracy=1 - found[seed], train_accuracy=1.0)

    return MeasurementSource(
        read, lambda measure, seed: None, lambda measure, seed: None, lambda measure, seed: "", seeds
    )


def above(a: str, b: str | float) -> Claim:
    right = error(b) if isinstance(b, str) else b
    return Claim(
        name="above", text="", where="", clauses=(Clause(text="", left=error(a), relation=">", right=right, unit="%"),)
    )


def test_the_interval_over_seeds_is_students() -> None:
    findings = Findings(study(value("a", 12.0)), evidence({"a": [0.11, 0.12, 0.13]}), "cpu")
    found = findings.estimate(error("a"))
    assert found.mean == pytest.approx(0.12)
    half = 4.302652729911275 * 0.01 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((0.12 - half, 0.12 + half))
    assert found.each == pytest.approx((0.11, 0.12, 0.13))


@pytest.mark.parametrize(
    ("printed", "tolerance", "verdict"),
    [(2.05, 0.1, "reproduced"), (3.0, 1.0, "reproduced"), (4.0, 1.0, "reproduced"), (4.1, 1.0, "not reproduced")],
)
def test_an_interval_excuses_as_much_as_the_tolerance_and_no_more(
    printed: float, tolerance: float, verdict: str
) -> None:
    made = study(value("a", printed, tolerance))
    found = Findings(made, evidence({"a": [0.01, 0.02, 0.03]}), "cpu").value("table-1", made.items[0].values[0])
    assert found.verdict == verdict
    assert found.estimate.mean == pytest.approx(2.0)


def test_another_value_of_which_the_claims_hold_goes_in_the_same_direction() -> None:
    errors = {"a": [0.30, 0.31, 0.32], "b": [0.10, 0.11, 0.12]}
    for claim, verdict in ((above("a", "b"), "same direction"), (above("b", "a"), "not reproduced")):
        made = study(value("a", 90.0), claims=(claim,))
        assert Findings(made, evidence(errors), "cpu").value("table-1", made.items[0].values[0]).verdict == verdict


def test_a_claim_needs_more_than_its_interval_to_be_reproduced() -> None:
    cases = {
        "reproduced": ([0.30, 0.31, 0.32], [0.10, 0.11, 0.12]),
        "same direction": ([0.30, 0.10, 0.32], [0.10, 0.11, 0.12]),
        "not reproduced": ([0.10, 0.10, 0.10], [0.10, 0.11, 0.12]),
        "not run": ([math.nan] * 3, [0.10, 0.11, 0.12]),
    }
    for verdict, (a, b) in cases.items():
        claim = above("a", "b")
        assert Findings(study(claims=(claim,)), evidence({"a": a, "b": b}), "cpu").holds(claim) == verdict


def test_claims_are_compared_seed_by_seed() -> None:
    # the seeds vary far more than the models differ, but always in the same way
    errors = {"a": [0.11, 0.21, 0.31], "b": [0.10, 0.20, 0.295]}
    claim = above("a", "b")
    findings = Findings(study(claims=(claim,)), evidence(errors), "cpu")
    margin = findings.margin(claim.clauses[0])
    assert margin.each == pytest.approx((0.01, 0.01, 0.015))
    assert findings.holds(claim) == "reproduced"


@pytest.mark.parametrize(
    ("relation", "right", "verdict"),
    [(">", 0.2, "reproduced"), ("<", 0.2, "not reproduced"), ("<=", 0.4, "reproduced"), ("<", 0.311, "same direction")],
)
def test_a_bound_can_lie_on_either_side(relation: Relation, right: float, verdict: str) -> None:
    claim = Claim(
        name="bound", text="", where="", clauses=(Clause(text="", left=error("a"), relation=relation, right=right),)
    )
    assert Findings(study(claims=(claim,)), evidence({"a": [0.30, 0.31, 0.32]}), "cpu").holds(claim) == verdict


def test_a_tie_holds_where_equality_does() -> None:
    for relation, verdict in ((">=", "reproduced"), ("<=", "reproduced"), (">", "not reproduced")):
        clause = Clause(text="", left=error("a"), relation=relation, right=error("b"))  # type: ignore[arg-type]
        claim = Claim(name="tie", text="", where="", clauses=(clause,))
        same = evidence({"a": [0.1, 0.2, 0.3], "b": [0.1, 0.2, 0.3]})
        assert Findings(study(claims=(claim,)), same, "cpu").holds(claim) == verdict


def test_on_another_data_set_nothing_is_reproduced() -> None:
    made = study(value("a", 2.0), datasets=("cifar10",))
    found = Findings(made, evidence({"a": [0.02, 0.02, 0.02]}), "cpu").value("table-1", made.items[0].values[0])
    assert found.verdict == "not run"
    assert "cifar10" in found.note


def test_what_was_not_measured_is_not_run_and_no_number() -> None:
    made = study(value("a", 2.0))
    findings = Findings(made, evidence({}), "cpu")
    (row,) = findings.frame().to_dict("records")
    assert row["verdict"] == "not run"
    assert math.isnan(row["measured"])
    assert list(findings.frame().columns) == list(CLAIM_COLUMNS)


def test_a_missing_seed_is_said() -> None:
    findings = Findings(study(value("a", 2.0)), evidence({"a": [0.01, math.nan, 0.03]}), "cpu")
    assert findings.estimate(error("a")).note == "2 of 3 seeds"


def test_derived_quantities() -> None:
    findings = Findings(study(), evidence({"a": [0.1, 0.2, 0.4], "b": [0.2, 0.2, 0.2]}), "cpu")
    of = (error("a"), error("b"))
    expected = {
        "difference": (-0.1, 0.0, 0.2),
        "ratio": (0.5, 1.0, 2.0),
        "recovered": (0.5, 0.0, -1.0),
        "least": (0.1, 0.2, 0.2),
        "most": (0.2, 0.2, 0.4),
        "mean": (0.15, 0.2, 0.3),
    }
    for operation, each in expected.items():
        made = Derived(operation=operation, of=of)  # type: ignore[arg-type]
        assert findings.estimate(made).each == pytest.approx(each)
        assert list(leaves(made)) == list(of)


def frame(label: list[int], clean: list[int], after: list[int], attacked: list[bool]) -> pd.DataFrame:
    correct = np.asarray(label) == np.asarray(clean)
    adversarial = np.asarray(attacked) & (np.asarray(after) != np.asarray(label)) & correct
    return pd.DataFrame(
        {
            "label": label,
            "clean_pred": clean,
            "clean_correct": correct,
            "attacked": attacked,
            "adv_pred": after,
            "adversarial": adversarial,
            "rms": np.where(adversarial, [0.1, 0.2, 0.3, 0.4], np.nan),
            "l2": np.where(adversarial, [1.0, 2.0, 3.0, 4.0], np.nan),
        }
    )


SAMPLES = frame([0, 1, 2, 3], [0, 1, 2, 0], [1, 1, 0, -1], [True, True, True, False])


def test_an_error_is_the_label_after_the_attack() -> None:
    assert judged_wrong(SAMPLES).tolist() == [1, 0, 1, 1]
    # crafted elsewhere: wrong as it is, right once it was attacked
    moved = frame([0, 1, 2, 3], [1, 1, 2, 3], [0, 0, 2, 3], [True] * 4)
    assert judged_wrong(moved).tolist() == [0, 1, 0, 0]


def test_an_image_that_came_back_unjudged_is_an_error() -> None:
    lost = frame([0, 1, 2, 3], [0, 1, 2, 3], [-1, 1, 2, 3], [True] * 4)
    assert judged_wrong(lost).tolist() == [1, 0, 0, 0]


def test_quantities_of_judged_images() -> None:
    def read(name: str, **settings: Any) -> list[float]:
        return [float(v) for v in QUANTITIES[name].read(SAMPLES, settings)]

    assert read("distortion") == [0.1, 0.3]
    assert read("distortion", norm="l2") == [1.0, 3.0]
    assert read("median_distance", norm="l2") == [2.0]
    assert read("clean_error") == [0, 0, 0, 1]
    assert read("newly_wrong") == [1, 0, 1, 0]
    assert read("accuracy") == [0, 1, 0, 0]


def test_the_history_is_read_by_epoch() -> None:
    rest = {"accuracy": 0.5, "validation_loss": math.nan, "validation_accuracy": math.nan, "seconds": 1.0}
    trained = card(history=(EpochLine(epoch=1, loss=2.0, **rest), EpochLine(epoch=2, loss=1.0, **rest)))
    read = QUANTITIES["history"].read
    assert read(trained, {"field": "loss"}).tolist() == [1.0]
    assert read(trained, {"field": "loss", "epoch": 1}).tolist() == [2.0]
    assert math.isnan(read(trained, {"field": "loss", "epoch": 9})[0])


def judged(trouble: str) -> MeasurementSource:
    cost = Cost(seconds=2.0, forwards=20.0, backwards=10.0)
    return MeasurementSource(lambda *_: None, lambda *_: SAMPLES, lambda *_: cost, lambda *_: trouble, (0,))


def test_the_cost_of_an_attack_is_a_quantity() -> None:
    measure = Measure(quantity="backwards", model="a", **ATTACK)  # type: ignore[arg-type]
    assert Findings(study(), judged(""), "cpu").estimate(measure).mean == 10
    assert not Findings(study(), judged("crashed"), "cpu").estimate(measure).measured


def test_one_seed_has_an_interval_over_images() -> None:
    measure = Measure(quantity="error", model="a", **ATTACK)  # type: ignore[arg-type]
    found = judged("")
    estimate = Findings(study(), found, "cpu").estimate(measure)
    assert estimate.mean == 0.75
    assert (estimate.low, estimate.high) == pytest.approx(wilson(3, 4))
    assert estimate.n == 4


def test_seeds_that_agree_by_chance_are_no_surer_than_their_images() -> None:
    measure = Measure(quantity="error", model="a", **ATTACK)  # type: ignore[arg-type]
    twice = MeasurementSource(lambda *_: None, lambda *_: SAMPLES, lambda *_: None, lambda *_: "", (0, 1))
    estimate = Findings(study(), twice, "cpu").estimate(measure)
    assert estimate.each == (0.75, 0.75)
    assert (estimate.low, estimate.high) == pytest.approx(wilson(3, 4))


def test_a_share_stays_between_0_and_1() -> None:
    estimate = Findings(study(), evidence({"a": [0.0, 0.1]}), "cpu").estimate(error("a"))
    assert estimate.low == 0
    assert estimate.high == pytest.approx(0.05 + 12.706204736432095 * 0.05)


@pytest.mark.parametrize(("worse", "verdict"), [(30, "reproduced"), (2, "same direction"), (0, "not reproduced")])
def test_with_one_seed_two_models_are_compared_image_by_image(worse: int, verdict: str) -> None:
    n = 100
    wrong = {"a": np.arange(n) < 20 + worse, "b": np.arange(n) < 20}  # b errs on no image on which a does not

    def samples(measure: Measure, seed: int) -> pd.DataFrame:
        after = wrong[measure.model].astype(int)
        return pd.DataFrame(
            {"label": 0, "clean_pred": 0, "attacked": True, "adv_pred": after, "adversarial": after > 0}
        )

    a, b = (Measure(quantity="error", model=name, **ATTACK) for name in "ab")  # type: ignore[arg-type]
    clause = Clause(text="", left=a, relation=">", right=b, unit="%")
    claim = Claim(name="above", text="", where="", clauses=(clause,))
    found = MeasurementSource(lambda *_: None, samples, lambda *_: None, lambda *_: "", (0,))
    findings = Findings(study(claims=(claim,)), found, "cpu")
    margin = findings.margin(clause)
    assert margin.mean == pytest.approx(worse / n)
    half = 1.96 * np.std(wrong["a"].astype(float) - wrong["b"], ddof=1) / math.sqrt(n)
    assert (margin.low, margin.high) == pytest.approx((margin.mean - half, margin.mean + half), abs=1e-3)
    assert findings.holds(claim) == verdict


def test_with_one_seed_and_no_images_nothing_is_sure() -> None:
    claim = above("a", "b")
    findings = Findings(study(claims=(claim,)), evidence({"a": [0.3], "b": [0.1]}, (0,)), "cpu")
    assert findings.holds(claim) == "same direction"


def test_a_pair_in_trouble_gives_no_number() -> None:
    measure = Measure(quantity="error", model="a", **ATTACK)  # type: ignore[arg-type]
    found = judged("crashed")
    estimate = Findings(study(), found, "cpu").estimate(measure)
    assert not estimate.measured
    assert estimate.note == "crashed"


def test_parts_of_a_study() -> None:
    claim = above("a", "b")
    made = study(value("a", 2.0), claims=(claim,))
    assert made.chosen(()) is made
    assert made.chosen(["table-1"]).claims == ()
    assert made.chosen(["above"]).items == ()
    assert {m.model for m in made.measures()} == {"a", "b"}
    with pytest.raises(UserError, match="did you mean table-1"):
        made.chosen(["table-2"])
    with pytest.raises(UserError, match="profile"):
        made.profile("huge")


def test_a_declaration_is_checked() -> None:
    with pytest.raises(ValueError, match="go together"):
        Measure(quantity="error", model="a", attack=LBFGS())
    with pytest.raises(ValueError, match="two quantities"):
        Derived(operation="difference", of=(error("a"),))
    with pytest.raises(ValueError, match="tolerance"):
        replace(value("a", 1.0), tolerance=-1.0)


def test_the_spread_over_seeds_stands_beside_a_printed_one() -> None:
    printed = replace(value("a", 2.0), printed_std=0.5)
    several = Findings(study(printed), evidence({"a": [0.01, 0.02, 0.03]}), "cpu").value("table-1", printed)
    assert "standard deviation 1.00, printed 0.5" in several.note
    one = Findings(study(printed), evidence({"a": [0.01]}, (0,)), "cpu").value("table-1", printed)
    assert "standard deviation" not in one.note
    plain = Findings(study(value("a", 2.0)), evidence({"a": [0.01, 0.02]}), "cpu").value("table-1", value("a", 2.0))
    assert "standard deviation" not in plain.note
