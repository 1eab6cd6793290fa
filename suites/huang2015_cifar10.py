"""Huang et al. 2015 on CIFAR-10: the experiment that section 4.2 announces and leaves open."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from defenses.fast_gradient import FastGradient
from defenses.learning_with_adversary import LearningWithAdversary
from defenses.standard import Standard
from harness.attacks.unclipped import Unclipped
from harness.planning.specs import ModelSpec
from harness.studies.study import Choice, Claim, Clause, Item, Measure, Profile, Study, Value
from harness.threat import Threat
from suites.huang2015 import ATTACKS, LOSS

if TYPE_CHECKING:
    from harness.datasets.registry import DatasetInfo
    from harness.training.trainer import Trainer

MAGNITUDE: Final = 0.5
METHODS: Final = ("Normal", "Goodfellow", "LWA")
COLUMNS: Final = ("Validation", "Fixed", *ATTACKS)


def models(profile: Profile, info: DatasetInfo, seed: int) -> Mapping[str, ModelSpec]:
    """A small convolutional network, trained in three ways."""
    common = {"epochs": profile.settings["epochs"], "schedule": "cosine", "validation": 0.1}
    trainers: dict[str, Trainer] = {
        "Normal": Standard(**common),
        "Goodfellow": FastGradient(eps=MAGNITUDE / math.sqrt(math.prod(info.shape)), **common),
        "LWA": LearningWithAdversary(eps=MAGNITUDE, **common),
    }
    return {
        name: ModelSpec(dataset=info.name, architecture="lenet", defense=trainer.resolve(info), seed=seed)
        for name, trainer in trainers.items()
    }


def _measure(model: str, column: str) -> Measure:
    if column == "Validation":
        return Measure(quantity="test_accuracy", model=model)
    attack = Unclipped(attack=ATTACKS.get(column, LOSS))
    source = "Normal" if column == "Fixed" else ""
    return Measure(quantity="accuracy", model=model, attack=attack, threat=Threat("l2", MAGNITUDE), source=source)


TABLE: Final = Item(
    name="cifar10",
    title="A small convolutional network on CIFAR-10, at an L2 length of 0.5",
    where="section 4.2, where the paper says that results will follow",
    note="There is nothing printed to compare with.",
    values=tuple(
        Value(row=model, column=column, metric=f"accuracy, {column}", quantity=_measure(model, column), unit="%")
        for model in METHODS
        for column in COLUMNS
    ),
)

CLAIMS: Final = (
    Claim(
        name="cifar10-order",
        text="As on MNIST, LWA is above Goodfellow's method, and that above normal training, on every adversarial set.",
        where="section 4.2, table 1",
        clauses=tuple(
            Clause(
                text=f"{column}: {better} against {worse}",
                left=_measure(better, column),
                relation=">",
                right=_measure(worse, column),
                unit="%",
            )
            for column in COLUMNS[1:]
            for better, worse in (("LWA", "Goodfellow"), ("Goodfellow", "Normal"))
        ),
    ),
    Claim(
        name="cifar10-no-trade-off",
        text="As on MNIST, LWA is at least as accurate on clean images as normal training.",
        where="section 4.2",
        clauses=(
            Clause(
                text="LWA against Normal",
                left=_measure("LWA", "Validation"),
                relation=">=",
                right=_measure("Normal", "Validation"),
                unit="%",
            ),
        ),
    ),
)

STUDY: Final = Study(
    name="huang2015-cifar10",
    title="Learning with a strong adversary, on CIFAR-10",
    source="Huang, Xu, Schuurmans & Szepesvari 2015 (arXiv:1511.03034)",
    profiles={
        "smoke": Profile(
            summary="embedded 8x8 digits, one seed: whether everything runs, not what it shows",
            dataset="digits",
            seeds=(0,),
            samples=40,
            batteries=("quick",),
            battery_samples=20,
            skipped=("Goodfellow",),
            settings={"epochs": 4},
        ),
        "cpu": Profile(
            summary="CIFAR-10 re-encoded as JPEG (45,000 training images of 50,000, the rest held out), LeNet, "
            "1,000 test images, six epochs: what two cores allow",
            dataset="cifar10-jpeg",
            seeds=(0,),
            samples=1000,
            battery_samples=100,
            settings={"epochs": 6},
            surrogate={"epochs": 6, "schedule": "cosine", "validation": 0.1},
        ),
        "night": Profile(
            summary="CIFAR-10 re-encoded as JPEG (45,000 training images of 50,000, the rest held out), LeNet, "
            "five seeds, all test images, 20 epochs; two cores take some six hours",
            dataset="cifar10-jpeg",
            seeds=(0, 1, 2, 3, 4),
            samples=10_000,
            battery_samples=500,
            battery_seeds=3,
            settings={"epochs": 20},
            surrogate={"epochs": 6, "schedule": "cosine", "validation": 0.1},
        ),
        "full": Profile(
            summary="CIFAR-10 re-encoded as JPEG (45,000 training images of 50,000, the rest held out), LeNet, "
            "five seeds, all test images, 40 epochs; a GPU or patience",
            dataset="cifar10-jpeg",
            seeds=(0, 1, 2, 3, 4),
            samples=10_000,
            battery_samples=1000,
            settings={"epochs": 40},
        ),
    },
    models=models,
    items=(TABLE,),
    claims=CLAIMS,
    choices=(
        Choice(
            topic="everything",
            choice="LeNet, an L2 length of 0.5 for training and judging, Adam at 1e-3 falling to 0 by a cosine",
            reason="The paper announces the experiment and says nothing of it.",
        ),
    ),
    defended=tuple((name, name) for name in METHODS),
    datasets=("cifar10", "cifar10-jpeg"),
)
