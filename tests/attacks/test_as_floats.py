"""Attacks on floats of models whose remedy shows attacks files."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gauntlet
from harness import identity
from harness.attacks.apgd import APGD
from harness.attacks.as_floats import AsFloats
from harness.attacks.noise import Noise
from harness.attacks.square import Square
from harness.datasets.registry import DATASETS, Dataset
from harness.external.external import External
from harness.planning.plan import plan
from harness.planning.specs import ModelSpec
from harness.planning.suite import Suite
from harness.victims.adaptation import Remedy
from harness.victims.victim import Victim, rounded
from suites import suite
from tests.helpers.zoo.masked import masked


def test_the_victim_rounds_but_in_the_block(trained: nn.Module) -> None:
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    victim, bare = Victim(trained, remedy=Remedy(grid=255)), Victim(trained)
    assert torch.equal(victim(x), bare(rounded(x)))
    with victim.as_floats():
        assert torch.equal(victim(x), bare(x))
    assert torch.equal(victim(x), bare(rounded(x)))


def test_all_but_the_form_is_the_other_attacks() -> None:
    for attack in (APGD(steps=7), Square(queries=9), *suite("linf").attacks["linf"]):
        form = AsFloats(attack=attack)
        assert form.label == f"floats:{attack.label}"
        for name in ("kind", "access", "family", "boxed", "everywhere", "needs_a_boundary", "prepares"):
            assert getattr(form, name) == getattr(attack, name)
        assert (form.seeks_the_nearest, form.preparation_samples) == (
            attack.seeks_the_nearest,
            attack.preparation_samples,
        )
        assert identity.key(form) != identity.key(attack)


def test_a_plan_asks_for_both_forms_where_the_remedy_says_so() -> None:
    info = DATASETS["digits"]
    found = {}
    for remedy in (Remedy(), Remedy(grid=255)):
        spec = ModelSpec(dataset="digits", architecture="m", defense=External(weights="w", remedy=remedy), seed=0)
        battery = plan(suite("linf"), [spec], {"digits": info}, transfers=False).battery
        found[remedy.grid] = list(dict.fromkeys(cell.attack for cell in battery))
    forms = [attack for attack in found[255] if isinstance(attack, AsFloats)]
    assert [attack for attack in found[255] if not isinstance(attack, AsFloats)] == found[None]
    assert [form.attack for form in forms] == [attack for attack in found[None] if attack.access != "none"]


@pytest.mark.parametrize("name", ["grid-routing", "grid-routing-reversed"])
def test_whichever_of_files_and_floats_is_weaker_counts(name: str, digits: Dataset) -> None:
    """One of the two is a robust network, in either direction."""
    few = Suite(name="s", summary="", attacks={"linf": (Noise(), APGD(steps=30))}, budgets={"linf": (0.1,)})
    model, sample = masked(name), digits.test_sample(50)[1]
    frame = gauntlet.evaluate(model, *sample, few, dataset=digits.info, health=False)
    assert "rounded to steps of 1/255" in frame.attrs["remedy"]
    bare = gauntlet.evaluate(model.base, *sample, few, dataset=digits.info, health=False)
    assert frame.worst_case("linf", 0.1) <= bare.worst_case("linf", 0.1) + 0.05
