"""Gauntlet: honest measurement of how robust image classifiers are.

The one stable import path: what is named here keeps its name and meaning, whatever moves behind it. Everything is
imported when it is first used, so ``import gauntlet`` takes milliseconds.

    import gauntlet

    data = gauntlet.load_dataset("digits")
    model = gauntlet.defense("standard")(epochs=20).fit("mlp-100-100", data).model  # or a torch.nn.Module of yours
    _, (x, y) = data.test_sample(100)
    pairs = gauntlet.evaluate(model, x, y, suite="quick", dataset=data)

To judge: :func:`evaluate` with a suite's name or a :class:`Suite` of :class:`Attack`, :class:`Art`, :class:`Foolbox`
and :class:`Transfer` (from an :class:`Ensemble` of :class:`Source`), each within a :class:`Threat`, towards a
:class:`Goal` if they are targeted; a :class:`Remedy` says how attacks see a model. :func:`read_pairs` reads from a file
what it returns, an :class:`Evaluation`; :func:`attack` returns the worst images. To train: a
:func:`defense` by its name, or a :class:`Trainer` of your own with a :class:`Loss`. To measure a paper: :class:`Study`.
To ask one more thing of every evaluation: a :class:`Question`, answered from :class:`Evidence` by a :class:`Check`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os.path
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from defenses import defense as defense
    from defenses import defenses as defenses
    from harness.api import Evaluation as Evaluation
    from harness.api import attack as attack
    from harness.api import evaluate as evaluate
    from harness.api import read_pairs as read_pairs
    from harness.attacks.base import Attack as Attack
    from harness.attacks.toolkits.art import Art as Art
    from harness.attacks.toolkits.foolbox import Foolbox as Foolbox
    from harness.attacks.transfer import Ensemble as Ensemble
    from harness.attacks.transfer import Source as Source
    from harness.attacks.transfer import Transfer as Transfer
    from harness.datasets.registry import Dataset as Dataset
    from harness.datasets.registry import DatasetInfo as DatasetInfo
    from harness.datasets.registry import load_dataset as load_dataset
    from harness.errors import UserError as UserError
    from harness.goal import Goal as Goal
    from harness.planning.suite import Suite as Suite
    from harness.studies.study import Study as Study
    from harness.threat import Threat as Threat
    from harness.training.defense import Defense as Defense
    from harness.training.defense import Loss as Loss
    from harness.training.on_trained import Wrapper as Wrapper
    from harness.training.trainer import Trainer as Trainer
    from harness.trust.checks import Check as Check
    from harness.trust.checks import Evidence as Evidence
    from harness.trust.checks import Question as Question
    from harness.victims.adaptation import Remedy as Remedy
    from harness.victims.victim import Victim as Victim
    from harness.victims.victim import VictimError as VictimError
    from harness.victims.victim import input_gradient as input_gradient
    from suites import studies as studies
    from suites import study as study
    from suites import suite as suite
    from suites import suites as suites

OURS = ("harness", "defenses", "suites", "reports")
"""Packages that are installed beside this one."""

HOME = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120  # pathlib takes longer than all of this

_MODULES = {
    "evaluate": "harness.api",
    "attack": "harness.api",
    "Evaluation": "harness.api",
    "read_pairs": "harness.api",
    "load_dataset": "harness.datasets.registry",
    "Dataset": "harness.datasets.registry",
    "DatasetInfo": "harness.datasets.registry",
    "Attack": "harness.attacks.base",
    "Art": "harness.attacks.toolkits.art",
    "Foolbox": "harness.attacks.toolkits.foolbox",
    "Transfer": "harness.attacks.transfer",
    "Ensemble": "harness.attacks.transfer",
    "Source": "harness.attacks.transfer",
    "Threat": "harness.threat",
    "Victim": "harness.victims.victim",
    "input_gradient": "harness.victims.victim",
    "Remedy": "harness.victims.adaptation",
    "Suite": "harness.planning.suite",
    "Goal": "harness.goal",
    "suite": "suites",
    "suites": "suites",
    "Defense": "harness.training.defense",
    "Trainer": "harness.training.trainer",
    "Wrapper": "harness.training.on_trained",
    "Loss": "harness.training.defense",
    "defense": "defenses",
    "defenses": "defenses",
    "Study": "harness.studies.study",
    "study": "suites",
    "studies": "suites",
    "Question": "harness.trust.checks",
    "Check": "harness.trust.checks",
    "Evidence": "harness.trust.checks",
    "UserError": "harness.errors",
    "VictimError": "harness.victims.victim",
}

__all__ = list(_MODULES)


if not TYPE_CHECKING:  # else a type checker would take every name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if trouble := shadowed():
            raise ImportError(trouble)
        return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def shadowed() -> str | None:
    """Which of :data:`OURS` is not what its name means here, in one line; None if each is.

    Names like ``defenses`` are in everybody's projects; one that is imported already, or comes first on the import
    path, would be taken for ours.
    """
    for name in OURS:
        spec = getattr(sys.modules[name], "__spec__", None) if name in sys.modules else importlib.util.find_spec(name)
        place = (spec.origin or next(iter(spec.submodule_search_locations or ()), None)) if spec else None
        if not os.path.realpath(place or "").startswith(os.path.join(HOME, name) + os.sep):  # noqa: PTH118
            return (
                f"{place or 'a module made by code'} has the name of Gauntlet's package {name!r}, which is in {HOME}: "
                "give it another name, or take its folder off the import path (sys.path, PYTHONPATH)"
            )
    return None
