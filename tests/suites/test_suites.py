"""What is true of every suite there is: found by name, so a new one is held to it at once."""

from __future__ import annotations

import importlib
import importlib.util
import json
import pickle
import pkgutil

import pytest

import suites as package
from harness.attacks.base import Attack
from harness.attacks.corruptions import NoiseCorruption, Transformation
from harness.attacks.spatial import Spatial
from harness.attacks.toolkits.base import Foreign
from harness.attacks.transfer import Transfer
from harness.datasets.registry import DATASETS
from harness.identity import canonical
from harness.planning.suite import Suite
from harness.threat import Norm, Threat
from suites import suites

EVERY = pytest.mark.parametrize("suite", suites().values(), ids=lambda suite: suite.name)
EVERY_NORM = pytest.mark.parametrize(
    ("suite", "norm"),
    [pytest.param(suite, norm, id=f"{suite.name}-{norm}") for suite in suites().values() for norm in suite.attacks],
)


def inner(attack: Attack) -> Attack:
    return attack.attack if isinstance(attack, Transfer) else attack


def attacks(suite: Suite) -> list[Attack]:
    return [attack for members in suite.attacks.values() for attack in members]


def test_every_module_with_a_suite_is_found_under_a_name_of_its_own() -> None:
    modules = [importlib.import_module(f"suites.{found.name}") for found in pkgutil.iter_modules(package.__path__)]
    declared = [module.SUITE for module in modules if hasattr(module, "SUITE")]
    assert sorted(suite.name for suite in declared) == list(suites())


@EVERY
def test_a_suite_says_what_it_is(suite: Suite) -> None:
    assert suite.name
    assert suite.summary
    assert "\n" not in suite.summary
    assert suite.samples >= 1
    assert suite.batch >= 1


@EVERY_NORM
def test_labels_are_unique(suite: Suite, norm: Norm) -> None:
    labels = [attack.label for attack in suite.attacks[norm]]
    assert len(set(labels)) == len(labels) > 0


@EVERY_NORM
def test_every_attack_can_be_asked_for_every_budget(suite: Suite, norm: Norm) -> None:
    for info in DATASETS.values():
        if suite.budgets is None and norm not in info.budgets:
            continue  # the plan refuses that with a message of its own
        for eps in suite.grid(info)[norm]:
            for attack in suite.attacks[norm]:
                asked = inner(attack)
                if isinstance(asked, Foreign) and not all(map(importlib.util.find_spec, asked.capability.needs)):
                    continue  # an optional package
                attack.check(Threat(norm, eps if attack.kind == "budget" else None))
                asked.check(Threat(norm, eps if attack.kind == "budget" else None))


@EVERY_NORM
def test_budgets_ascend(suite: Suite, norm: Norm) -> None:
    if suite.budgets is not None:
        assert list(suite.budgets[norm]) == sorted(set(suite.budgets[norm]))
        assert suite.budgets[norm][0] >= 0


@EVERY_NORM
def test_every_norm_holds_a_control(suite: Suite, norm: Norm) -> None:
    """Random noise: what breaks under it needs no adversary, and what beats it has to be told from luck."""
    noise = [
        attack for attack in suite.attacks[norm] if attack.family == "noise" or isinstance(attack, NoiseCorruption)
    ]
    assert noise


@EVERY
def test_a_suite_mixes_toolkits(suite: Suite) -> None:
    """So that a bug which one toolkit's attacks share cannot pass for robustness."""
    assert {inner(attack).toolkit for attack in attacks(suite)} >= {"gauntlet", "art", "foolbox"}


@EVERY
def test_every_declaration_has_a_canonical_form_and_travels(suite: Suite) -> None:
    forms = [json.dumps(canonical(attack), sort_keys=True) for attack in attacks(suite)]
    assert all(forms)
    for members in suite.attacks.values():
        assert len({json.dumps(canonical(attack), sort_keys=True) for attack in members}) == len(members)
    assert pickle.loads(pickle.dumps(suite)) == suite


def test_unseen_allows_any_image_and_holds_the_worst_place_of_each() -> None:
    suite = suites()["unseen"]
    assert suite.budgets == {"linf": (1.0,)}
    kinds = {type(attack) for attack in attacks(suite) if isinstance(attack, Transformation)}
    assert Spatial in kinds
    assert len(kinds) >= 8
