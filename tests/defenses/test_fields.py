"""Every hyperparameter of every defense does something: it changes the model, or is refused."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import nn

from defenses import defenses
from harness.datasets.registry import Dataset, load_dataset
from harness.determinism import seed_everything
from harness.errors import UserError
from harness.training.defense import Defense

OTHERWISE: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.5, "optimizer": "sgd", "lr": 0.1},
    "decayed": {"decayed": "dense", "weight_decay": 0.5},
    "patience": {"patience": 1, "validation": 0.4, "epochs": 20, "lr": 0.3},
    "batch_size": {"batch_size": 7},
    "refit": {"refit": 2, "validation": 0.4},
    "max_norm": {"max_norm": 0.1},
    "pretraining": {"pretraining": 1},
    "subset": {"subset": 20},
    "precision": {"precision": "bfloat16"},
    "kernel": {"kernel": 7},
    "images": {"images": 5},
    "euclidean": {"euclidean": True, "norm": "linf"},
    "adversary": {"adversary": "misclassification"},
    "stage": {"stage": "hidden2"},
    "where": {"where": "all", "sigma": 0.2},
    "generator_lr": {"generator_lr": 0.1, "k": 2},
    "ramp": {"ramp": 0.9},
}
"""A value that differs, and what it needs beside it."""

UNSEEN = {"compiled"}
"""What changes how a model is computed and not which it is."""


@cache
def data() -> Dataset:
    return load_dataset("digits").first(60)


def made(defense: Defense, architecture: str = "mlp-8-6") -> tuple[torch.Tensor, int]:
    """What a defense makes of images, and how long it trained."""
    seed_everything(0)
    model, history = defense.fit(architecture, data(), base=base())
    seed_everything(1)
    with torch.no_grad():
        return model(data().test.x[:20]), len(history)


@cache
def base() -> nn.Module:
    seed_everything(0)
    return defenses()["standard"](epochs=2).fit("mlp-8-6", data()).model  # type: ignore[call-arg]


def other(kind: type[Defense], name: str, value: Any) -> dict[str, Any]:
    if name in OTHERWISE:
        return OTHERWISE[name]
    hint = get_type_hints(kind)[name]
    literal = next((part for part in (hint, *get_args(hint)) if get_origin(part) is Literal), None)
    if literal is not None:
        return {name: next(choice for choice in get_args(literal) if choice != value)}
    if isinstance(value, bool):
        return {name: not value}
    if isinstance(value, int):
        return {name: value + 3}
    if isinstance(value, tuple):
        return {name: tuple(3 * part for part in value)}
    return {name: 0.3 if value is None else 0.07 + 0.6 * value}


CASES = [
    (name, field.name)
    for name, kind in defenses().items()
    for field in dataclasses.fields(kind)
    if field.name not in UNSEEN and name != "stacked"
]


@pytest.mark.parametrize(("name", "field"), CASES)
def test_a_hyperparameter_changes_the_model_or_is_refused(name: str, field: str) -> None:
    kind = defenses()[name]
    short: dict[str, Any] = {"epochs": 4} if "epochs" in kind.__dataclass_fields__ else {}
    resolved = kind(**short).resolve(data().info)
    changed = other(kind, field, getattr(resolved, field))
    plain = {key: value for key, value in changed.items() if key != field}
    architecture = {"decayed": "lenet", "draws": "maxout"}.get(field, "mlp-8-6")
    try:
        found = made(kind(**{**short, **changed}), architecture)
    except UserError as error:
        said = str(error)
        assert field in said
        return
    without = made(kind(**{**short, **plain}), architecture)
    assert found[1] != without[1] or not torch.equal(found[0], without[0])
