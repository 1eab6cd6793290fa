"""Verdicts, intervals and claims, on evidence made by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pandas as pd
import pytest

from harness.attacks.lbfgs import LBFGS
from harness.errors import UserError
from harness.metrics.pairs import wilson
from harness.schema.base import Cost
from harness.schema.models import Card, EpochLine
from harness.studies.findings import (
    Estimate,
    Findings,
    MeasurementSource,
    Verdict,
    claim_verdict,
    clause_verdict,
    value_verdict,
)
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
        return None if missing else card(test_accuracy=1 - found[seed], train_accuracy=1.0, epochs=1)

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


PRINTED: Final = {"row": "a", "column": "error", "metric": "error", "quantity": error("a"), "unit": "%"}


@pytest.mark.parametrize(
    ("mean", "low", "high", "verdict"),
    [
        (2.0, 1.6, 2.4, "reproduced"),
        (2.5, 2.1, 2.9, "reproduced"),  # the tolerance's very end
        (2.5001, 2.1, 2.9, "close"),
        (2.0, 1.5, 2.5, "reproduced"),  # half the interval is the tolerance
        (2.0, 1.4999, 2.5001, "undecided"),
        (2.0, math.nan, math.nan, "undecided"),  # one seed, no image
        (3.4, 3.1, 3.7, "close"),  # nearer to print (2) than to the rival (5)
        (3.6, 3.3, 3.9, "not reproduced"),
        (1.0, 0.8, 1.2, "close"),  # on the far side of print
        (4.8, 4.5, 5.1, "not reproduced"),  # holds the rival
        (9.0, 8.0, 10.0, "undecided"),  # wider than the tolerance, wherever it is
        (math.nan, math.nan, math.nan, "not run"),
    ],
)
def test_the_verdict_of_a_value_at_every_boundary(mean: float, low: float, high: float, verdict: str) -> None:
    made = Value(**PRINTED, printed=2.0, tolerance=0.5, rival=5.0)  # type: ignore[arg-type]
    assert value_verdict(made, mean, low, high) == verdict


def test_an_interval_that_holds_print_and_rival_decides_nothing() -> None:
    made = Value(**PRINTED, printed=2.0, tolerance=0.19, rival=2.4)  # type: ignore[arg-type]
    assert value_verdict(made, 2.19, 2.0, 2.38) == "reproduced"
    assert value_verdict(made, 2.2, 2.02, 2.38) == "not reproduced"  # equally far from both
    held = replace(made, printed=2.05, rival=2.35, tolerance=0.149)
    assert value_verdict(held, 2.2, 2.0, 2.4) == "undecided"


def test_without_a_rival_nothing_is_close() -> None:
    made = Value(**PRINTED, printed=2.0, tolerance=0.5)  # type: ignore[arg-type]
    assert value_verdict(made, 2.51, 2.4, 2.6) == "not reproduced"
    assert value_verdict(replace(made, printed=None), 2.0, 1.9, 2.1) == ""


@pytest.mark.parametrize(("tolerance", "fits"), [(0.49, True), (0.5, False), (0.6, False)])
def test_a_tolerance_is_less_than_half_the_effect(tolerance: float, fits: bool) -> None:
    if fits:
        Value(**PRINTED, printed=2.0, rival=3.0, tolerance=tolerance)  # type: ignore[arg-type]
    else:
        with pytest.raises(ValueError, match="does not tell 2 from 3"):
            Value(**PRINTED, printed=2.0, rival=3.0, tolerance=tolerance)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("relation", "low", "high", "verdict"),
    [
        (">", 0.1, 0.3, "held"),
        (">", 0.0, 0.3, "undecided"),
        (">=", 0.0, 0.3, "held"),
        (">", -0.1, 0.3, "undecided"),
        (">", -0.3, 0.0, "refuted"),
        (">=", -0.3, 0.0, "undecided"),
        (">=", -0.3, -0.1, "refuted"),
        ("<", 0.0, 0.0, "refuted"),
        ("<=", 0.0, 0.0, "held"),
        (">", math.nan, math.nan, "undecided"),
    ],
)
def test_the_verdict_of_a_clause_at_every_boundary(relation: Relation, low: float, high: float, verdict: str) -> None:
    clause = Clause(text="", left=error("a"), relation=relation, right=0.5)
    assert clause_verdict(clause, Estimate((low + high) / 2 if low == low else 1.0, low, high, (0.0,), 0)) == verdict
    nothing = Estimate(math.nan, math.nan, math.nan, (), 0)
    assert clause_verdict(clause, nothing) == "not run"


@pytest.mark.parametrize(
    ("clauses", "verdict"),
    [
        (("held", "held"), "held"),
        (("held", "undecided"), "undecided"),
        (("held", "not run", "undecided"), "not run"),
        (("held", "not run", "refuted"), "refuted"),
    ],
)
def test_a_claim_is_refuted_by_one_clause_and_held_by_all(clauses: tuple[Verdict, ...], verdict: str) -> None:
    assert claim_verdict(clauses) == verdict


def holds(claim: Claim, source: MeasurementSource) -> Verdict:
    findings = Findings(study(claims=(claim,)), source, "cpu")
    return claim_verdict([findings.clause(claim, clause).verdict for clause in claim.clauses])


def test_claims_are_compared_seed_by_seed() -> None:
    # the seeds vary far more than the models differ, but always in the same way
    errors = {"a": [0.11, 0.21, 0.31], "b": [0.10, 0.20, 0.299]}
    claim = above("a", "b")
    margin = Findings(study(claims=(claim,)), evidence(errors), "cpu").margin(claim.clauses[0])
    assert margin.each == pytest.approx((0.01, 0.01, 0.011))
    assert holds(claim, evidence(errors)) == "held"
    assert holds(above("b", "a"), evidence(errors)) == "refuted"


def test_several_clauses_of_a_claim_are_corrected_for_their_number() -> None:
    errors = {"a": [0.30, 0.31, 0.35], "b": [0.28, 0.28, 0.29]}
    clause = above("a", "b").clauses[0]
    alone = Claim(name="one", text="", where="", clauses=(clause,))
    many = Claim(name="many", text="", where="", clauses=(clause,) * 5)
    findings = Findings(study(claims=(alone, many)), evidence(errors), "cpu")
    one, five = findings.clause(alone, clause), findings.clause(many, clause)
    margin = findings.margin(clause)
    assert one.margin_high is not None
    assert one.margin_high / 100 == pytest.approx(margin.high)
    deviation = float(np.std(margin.each, ddof=1)) / math.sqrt(3)
    assert five.margin_high is not None
    assert five.margin_high / 100 == pytest.approx(margin.mean + 9.92484320091807 * deviation)  # t of 0.995, 2 degrees


@pytest.mark.parametrize(
    ("relation", "right", "verdict"),
    [(">", 0.2, "held"), ("<", 0.2, "refuted"), ("<=", 0.4, "held"), ("<", 0.311, "undecided")],
)
def test_a_bound_can_lie_on_either_side(relation: Relation, right: float, verdict: str) -> None:
    claim = Claim(
        name="bound", text="", where="", clauses=(Clause(text="", left=error("a"), relation=relation, right=right),)
    )
    assert holds(claim, evidence({"a": [0.30, 0.31, 0.32]})) == verdict


def test_a_test_error_carries_its_images_share() -> None:
    cards = evidence({"a": [0.11, 0.12, 0.13]})
    found = Findings(study(), replace(cards, test_size=1000), "cpu").estimate(error("a"))
    alone = Findings(study(), cards, "cpu").estimate(error("a"))
    low, high = wilson(120, 1000)
    assert found.high - found.mean == pytest.approx(math.hypot(alone.high - alone.mean, high - 0.12))
    assert found.mean - found.low == pytest.approx(math.hypot(alone.mean - alone.low, 0.12 - low))
    # training images are all there are
    trained = Measure(quantity="train_error", model="a")
    sized = Findings(study(), replace(cards, test_size=1000), "cpu").estimate(trained)
    assert (sized.low, sized.high) == (0.0, 0.0)


def test_a_difference_of_test_errors_has_the_images_of_both() -> None:
    cards = replace(evidence({"a": [0.2, 0.2], "b": [0.1, 0.1]}, (0, 1)), test_size=400)
    found = Findings(study(), cards, "cpu").estimate(Derived(operation="difference", of=(error("a"), error("b"))))
    halves = [max(p - wilson(p * 400, 400)[0], wilson(p * 400, 400)[1] - p) for p in (0.2, 0.1)]
    assert found.high - found.mean == pytest.approx(math.hypot(*halves))
    most = Findings(study(), cards, "cpu").estimate(Derived(operation="most", of=(error("a"), error("b"))))
    assert most.high - most.mean == pytest.approx(halves[0], rel=0.2)  # that of the larger, where it stays the larger


def test_what_stands_in_two_cells_counts_once() -> None:
    made = study(value("a", 2.0, 0.5), replace(value("a", 2.0, 0.5), column="again"), value("b", 2.0, 0.5))
    rows = list(Findings(made, evidence({"a": [0.02] * 3, "b": [0.02] * 3}), "cpu").rows())
    assert [row.basis for row in rows] == ["measured", "repeat", "measured"]


def test_on_another_data_set_nothing_is_reproduced() -> None:
    made = study(value("a", 2.0), datasets=("cifar10",))
    found = Findings(made, evidence({"a": [0.02, 0.02, 0.02]}), "cpu").value("table-1", made.items[0].values[0])
    assert found.verdict == "not judged"
    assert "cifar10" in found.note


def test_what_was_not_measured_is_not_run_and_no_number() -> None:
    made = study(value("a", 2.0))
    (row,) = Findings(made, evidence({}), "cpu").rows()
    assert row.verdict == "not run"
    assert math.isnan(row.measured)


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


def test_seeds_and_images_add_in_squares() -> None:
    measure = Measure(quantity="error", model="a", **ATTACK)  # type: ignore[arg-type]
    other = SAMPLES.assign(adv_pred=SAMPLES["label"], clean_pred=SAMPLES["label"])
    source = MeasurementSource(
        lambda *_: None, lambda _, seed: (SAMPLES, other)[seed], lambda *_: None, lambda *_: "", (0, 1)
    )
    found = Findings(study(), source, "cpu").estimate(measure)
    assert found.each == (0.75, 0.0)
    assert found.high == 1.0
    assert found.low == 0.0
    margin = Findings(study(), source, "cpu").estimate(Derived(operation="mean", of=(measure,)))
    seeds = 12.706204736432095 * 0.75 / 2
    images = max(0.375 - wilson(1.5, 4)[0], wilson(1.5, 4)[1] - 0.375)
    assert margin.high - margin.mean == pytest.approx(math.hypot(seeds, images))


def test_a_share_stays_between_0_and_1() -> None:
    estimate = Findings(study(), evidence({"a": [0.0, 0.1]}), "cpu").estimate(error("a"))
    assert estimate.low == 0
    assert estimate.high == pytest.approx(0.05 + 12.706204736432095 * 0.05)


@pytest.mark.parametrize(("worse", "verdict"), [(30, "held"), (2, "undecided"), (0, "refuted")])
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
    assert holds(claim, found) == verdict


def test_with_one_seed_and_no_images_nothing_is_sure() -> None:
    claim = above("a", "b")
    assert holds(claim, evidence({"a": [0.3], "b": [0.1]}, (0,))) == "undecided"


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
