"""What is asked of a model whose gradients are missing or wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from defenses.standard import Standard
from harness.attacks.apgd import APGD
from harness.attacks.base import Attack
from harness.attacks.distilled import Distilled
from harness.attacks.fast_gradient import Gradient
from harness.attacks.noise import Noise
from harness.attacks.rays import RayS
from harness.attacks.square import Square
from harness.attacks.toolkits.foolbox import Foolbox
from harness.attacks.transfer import Transfer
from harness.datasets.registry import DATASETS
from harness.external.external import External, words
from harness.external.reference import ModelReference
from harness.planning.gradient_free import BESIDES, answerable
from harness.planning.plan import Plan, plan
from harness.planning.specs import ModelSpec
from harness.planning.suite import Suite
from harness.records.plans import plan_record
from harness.victims.adaptation import Remedy

TRANSFER = Transfer(attack=APGD(steps=10), defense=Standard(), seed_offset=1)
SUITE = Suite(
    name="small",
    summary="for tests",
    attacks={
        "linf": (
            Noise(),
            Gradient(),
            TRANSFER,
            APGD(),
            Foolbox("LinfPGD"),
            Square(queries=9),
            Foolbox("HopSkipJumpAttack"),
        )
    },
    budgets={"linf": (0.1,)},
    samples=20,
)
FIRST, SQUARE, RAYS = BESIDES
ANSWERS = Remedy(gradients="wrong")


def user(**remedy: Any) -> ModelSpec:
    defense = External(weights="abc", remedy=Remedy(**remedy))
    return ModelSpec(dataset="digits", architecture="net.py:make", defense=defense)


def make(spec: ModelSpec, suite: Suite = SUITE, **more: Any) -> Plan:
    return plan(suite, [spec], {"digits": DATASETS["digits"]}, **more)


def labels(made: Plan) -> list[str]:
    return [cell.attack.label for cell in made.cells]


def test_what_needs_no_gradients_joins_what_a_suite_declares() -> None:
    usual, made = make(user()), make(user(gradients="wrong"))
    stronger = "square(queries=1000, restarts=3, near=0.5)"
    assert labels(made) == [
        *("noise", "gradient", TRANSFER.label, "apgd", "pgd-linf", stronger, Foolbox("HopSkipJumpAttack").label),
        *(f"{TRANSFER.label}:mlp-200-200", "distilled", "rays"),
    ]
    assert [source.architecture for cell in made.cells if (source := cell.source)] == ["lenet-32", "mlp-200-200"]
    assert made.cells[2].source == usual.cells[2].source  # another model's gradients mislead nobody
    assert usual.notes == ()
    assert made.notes == (
        f"net.py:make: its gradients are wrong; asked besides: {stronger}, {TRANSFER.label}:mlp-200-200, "
        "distilled, rays",
    )
    assert plan_record(made, "").notes == made.notes
    assert made.plantings[0].attacks == usual.plantings[0].attacks  # what gradients find there is asked all the same


def test_where_gradients_are_missing_what_follows_them_is_left_out() -> None:
    made = make(user(gradients="missing"))
    square = "square(queries=1000, restarts=3, near=0.5)"
    besides = [f"{TRANSFER.label}:mlp-200-200", "distilled", "rays"]
    assert labels(made) == ["noise", TRANSFER.label, square, Foolbox("HopSkipJumpAttack").label, *besides]
    assert made.notes == (
        f"net.py:make: its gradients are missing; asked besides: {', '.join([square, *besides])}; "
        "not asked: gradient, apgd, pgd-linf",
    )
    assert made.plantings == make(user(gradients="missing")).plantings


def test_models_keep_their_keys_and_their_pairs() -> None:
    assert user().key == ModelSpec(dataset="digits", architecture="net.py:make", defense=External(weights="abc")).key
    assert user(gradients="wrong").key != user().key
    both = plan(SUITE, [user(), user(gradients="wrong")], {"digits": DATASETS["digits"]})
    assert {cell.key for cell in make(user()).cells} <= {cell.key for cell in both.cells}
    assert len(both.notes) == 1


@pytest.mark.parametrize("pattern", ["square(queries=9)", "square(queries=1000, restarts=3, near=0.5)", "square"])
def test_an_attack_is_chosen_by_either_name(pattern: str) -> None:
    made = make(user(gradients="wrong"), only=[pattern])
    assert labels(made) == ["square(queries=1000, restarts=3, near=0.5)"]
    assert len(made.battery) == 10


@pytest.mark.parametrize(
    ("attacks", "norm", "asked"),
    [
        ((Noise(), Square(queries=9), RayS(queries=9)), "linf", (Noise(), Square(queries=9), RayS(queries=9))),
        ((Gradient(), Square(queries=5000), RayS(queries=9)), "l2", (Gradient(), Square(queries=5000), RAYS, FIRST)),
        (
            (Gradient(), APGD(), Distilled(queries=200)),
            "l1",
            (Gradient(), APGD(), Distilled(queries=200), SQUARE, RAYS),
        ),
        ((Noise(), Foolbox("DDNAttack"), Gradient()), "l0", (Noise(), Foolbox("DDNAttack"), Gradient())),
    ],
)
def test_no_more_is_asked_than_needed(attacks: tuple[Attack, ...], norm: Any, asked: tuple[Attack, ...]) -> None:
    assert tuple(attack for _, attack in answerable(attacks, norm, (1, 8, 8), "wrong")) == asked


def test_a_dense_network_is_for_small_images() -> None:
    asked = [len(answerable((APGD(), TRANSFER), "linf", (3, side, 32), "wrong")) for side in (32, 33)]
    assert asked == [6, 5]


def test_files_are_asked_both_ways() -> None:
    made = make(user(gradients="wrong", grid=255), replace(SUITE, attacks={"linf": (APGD(),)}))
    names = [attack.label for attack in (APGD(), *BESIDES)]
    assert labels(made) == [name for each in names for name in (each, f"floats:{each}")]


def test_it_is_typed_as_it_is_read() -> None:
    reference = ModelReference(kind="python", place="net.py", factory="make")
    assert words(External(remedy=ANSWERS, reference=reference)) == ["net.py:make", "--remedy", "gradients=wrong"]
    assert str(ANSWERS) == "more questions about its answers, for gradients are wrong"
