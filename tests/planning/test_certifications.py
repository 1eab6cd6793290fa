"""Which certificates a plan asks for."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from defenses.randomized_smoothing import EOT, ESTIMATION, SELECTION, RandomizedSmoothing
from defenses.standard import Standard
from harness.attacks.noise import Noise
from harness.datasets.registry import DATASETS
from harness.execution.estimate import passes
from harness.planning.partition import take_part
from harness.planning.plan import Plan, plan, specs
from harness.planning.specs import CERTIFIED_FEW, CERTIFIED_PASSES, Certification, ModelSpec
from harness.planning.suite import Suite
from harness.records.plans import plan_record
from suites import suites

DIGITS = DATASETS["digits"]
ONE = ModelSpec(dataset="digits", architecture="mlp-8", defense=Standard().resolve(DIGITS))


def made(suite: str | Suite = "quick", model: ModelSpec = ONE, **options: Any) -> Plan:
    battery = suites()[suite] if isinstance(suite, str) else suite
    return plan(battery, [model], {"digits": DIGITS}, **options)


def test_one_for_each_norm_with_bounds_at_every_eps() -> None:
    found = made().certifications
    assert [(one.norm, one.grid) for one in found] == [
        ("linf", DIGITS.budgets["linf"]),
        ("l2", DIGITS.budgets["l2"]),
    ]
    assert {one.n for one in found} == {-(-DIGITS.test_size // 8)}
    assert made("l1").certifications == made("unseen").certifications == ()


def test_how_many_images() -> None:
    assert {one.n for one in made(samples=100).certifications} == {CERTIFIED_FEW}
    assert {one.n for one in made(samples=5).certifications} == {5}
    assert {(one.n, one.passes) for one in made(certify=200).certifications} == {(200, None)}
    assert {one.n for one in made(certify=200, samples=50).certifications} == {50}
    assert made(certify=0).certifications == ()


def test_what_it_may_cost_grows_with_the_images_and_the_draws() -> None:
    assert {one.passes for one in made(samples=100).certifications} == {100 * CERTIFIED_PASSES}
    noisy = dataclasses.replace(ONE, defense=RandomizedSmoothing())
    assert {one.passes for one in made(samples=100, model=noisy).certifications} == {100 * CERTIFIED_PASSES * EOT}


def test_a_screen_has_room_for_the_draws_of_randomised_smoothing_of_every_image() -> None:
    """What it proves is not attacked, and these draws are cheaper than the gradients of as many images."""
    noisy = dataclasses.replace(ONE, defense=RandomizedSmoothing())
    screens = made("l2", samples=100, model=noisy, cascade=True).screens
    assert [(one.norm, one.affordable(SELECTION + ESTIMATION)) for one in screens] == [("l2", 100)]


@pytest.mark.parametrize("name", ["quick", "linf", "l2", "black-box", "sanity"])
def test_the_limit_is_less_than_the_attacks_beside_it_declare(name: str) -> None:
    for attacks in suites()[name].attacks.values():
        assert sum(passes(attack) for attack in attacks) > CERTIFIED_PASSES


def test_suites_share_it_and_another_grid_is_another() -> None:
    quick, alone = (made(suite, samples=100).certifications[0] for suite in ("quick", "linf"))
    assert quick.key == alone.key
    assert dataclasses.replace(quick, grid=(0.1,)).key != quick.key
    assert dataclasses.replace(quick, n=5).key != quick.key


def test_images_that_may_be_certified() -> None:
    asked = Certification(model=ONE, norm="l2", grid=(0.5,), n=100, passes=1000)
    assert [asked.affordable(cost) for cost in (1, 10, 11, 999, 1001)] == [100, 100, 90, 1, 0]
    assert dataclasses.replace(asked, passes=None).affordable(10**9) == 100
    assert (asked.shards, asked.shard_slice(1)) == (2, slice(64, 100))


def test_no_worst_case_no_certificate() -> None:
    control = Suite(name="control", summary="", attacks={"linf": (Noise(),)})
    assert made(control).certifications == ()


def test_the_plan_keeps_its_key_and_records_them() -> None:
    assert made().key == made(certify=0).key == made(certify=7).key
    record = plan_record(made(), "gauntlet run quick")
    assert [(one.norm, one.model, one.shards) for one in record.certificates] == [
        ("linf", ONE.key, 1),
        ("l2", ONE.key, 1),
    ]


def test_parts_hold_each_once() -> None:
    models = specs([DIGITS], ["mlp-8"], [Standard()], range(3))
    whole = plan(suites()["quick"], models, {"digits": DIGITS})
    parts = [take_part(whole, number, 4) for number in range(1, 5)]
    keys = [one.key for part in parts for one in part.certifications]
    assert sorted(keys) == sorted(one.key for one in whole.certifications)
    for part in parts:
        assert {one.model.key for one in part.certifications} <= {spec.key for spec in part.models}
