"""``gauntlet search``: compare hyperparameters of a study on held-out training images.

What a profile holds was chosen so; the search says whether another value would have been. Its networks have a seed
that no study trains, and no test image counts.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Final

import pandas as pd
import torch
from torch import Tensor

from ..datasets.registry import Dataset, DatasetInfo
from ..errors import UserError, unknown
from ..metrics.pairs import wilson
from ..planning.plan import Plan, with_parents
from ..planning.specs import ModelSpec
from ..planning.suite import Suite
from ..records.checkpoints import card, has_model, load_model
from ..records.home import Home
from ..training.gradient_descent import GradientDescent, score
from ..training.trainer import Trainer
from .study import Search, Study

SEED: Final = 2000
"""Of the networks that are compared. Studies count theirs from 0."""

IMAGES: Final = 5000
"""Held-out images they are compared on: the paper's 45,000 / 5,000 split. Fewer where there are no more."""

COLUMNS: Final = ("setting", "model", "value", "n", "accuracy", "low", "high", "used", "best")
"""Of :func:`scores`: a row a value tried. ``used``: the profile has it. ``best``: the highest accuracy of its setting,
the one in use if several share it."""


@dataclass(frozen=True)
class Candidate:
    """A value to try, and the network that has it."""

    search: Search
    value: Any
    used: bool
    spec: ModelSpec


def candidates(study: Study, profile: str, info: DatasetInfo, only: Collection[str] = ()) -> list[Candidate]:
    """A network for every value of every search.

    Args:
        study: Whose.
        profile: Name of its profile.
        info: The profile's data set.
        only: Settings; all of them if none is given.

    Raises:
        UserError: No such setting; the study chooses none.
    """
    if not study.searches:
        raise UserError(f"study {study.name} has no hyperparameter that is chosen on validation data")
    names = [search.setting for search in study.searches]
    for name in only:
        if name not in names:
            raise unknown(f"setting of {study.name}", name, names)
    mine = study.profile(profile)
    found = []
    for search in study.searches:
        if only and search.setting not in only:
            continue
        current = mine.settings[search.setting]
        for value in dict.fromkeys((*search.values[profile], current)):
            settings = {**mine.settings, search.setting: value}
            spec = study.models(replace(mine, settings=settings), info, SEED)[search.model]
            found.append(Candidate(search, value, value == current, spec))
    return sorted(found, key=lambda one: (names.index(one.search.setting), one.value))


def plan(study: Study, profile: str, info: DatasetInfo, tried: Collection[Candidate]) -> Plan:
    """What trains the networks."""
    specs = with_parents({one.spec.key: one.spec for one in tried})
    suite = Suite(name=f"{study.name}-search", summary="", attacks={}, budgets={})
    return Plan(
        suite=suite,
        infos={info.name: info},
        models=tuple(specs.values()),
        ranked=frozenset(),
        cells=(),
        battery=(),
        again=f"gauntlet search {study.name} --profile {profile}",
    )


def held_out(spec: ModelSpec, data: Dataset) -> Tensor | None:
    """Positions (N,) of training images beyond those that a network was trained on; None if it was given all of them.

    Args:
        spec: The network.
        data: Its data set.
    """
    if not isinstance(spec.defense, GradientDescent) or (taken := spec.defense.subset) is None:
        return None
    beyond = min(len(data.x_train) - taken, IMAGES)
    return data.train_sample(taken + beyond, slice(taken, None))[0] if beyond > 0 else None


def scores(tried: Collection[Candidate], home: Home, data: Dataset, device: torch.device | str = "cpu") -> pd.DataFrame:
    """How the trained networks do on held-out images: :data:`COLUMNS`.

    These are training images beyond the trainers' ``subset``. Where that is all of them, it is the part that the
    trainers hold out themselves, as of the last epoch.

    Raises:
        UserError: There is no held-out image.
    """
    rows: list[dict[str, Any]] = []
    for one in tried:
        if not has_model(home, one.spec):
            continue
        right, n = _measure(one.spec, home, data, device)
        low, high = wilson(right * n, n)
        named = {"setting": one.search.setting, "model": one.search.model, "value": one.value, "used": one.used}
        rows.append({**named, "n": n, "accuracy": right, "low": low, "high": high})
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    ranked = frame.sort_values(["accuracy", "used"], ascending=False, kind="stable")
    frame["best"] = frame.index.isin(ranked.drop_duplicates("setting").index)
    return frame


def _measure(spec: ModelSpec, home: Home, data: Dataset, device: torch.device | str) -> tuple[float, int]:
    """Accuracy on held-out images, and how many there are."""
    beyond = held_out(spec, data)
    if beyond is not None:
        model = load_model(home, spec, data.info).to(device)
        images, labels = data.x_train[beyond].to(device), data.y_train[beyond].to(device)
        return score(model, data, images, labels)[1], len(labels)
    last = card(home, spec.key).history[-1].validation_accuracy
    if not isinstance(spec.defense, Trainer) or math.isnan(last):
        raise UserError(f"{spec.defense.name} holds no training image out: give it validation=0.1 or a subset")
    return last, spec.defense.held(len(data.x_train))
