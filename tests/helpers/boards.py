"""Hand-made records for tests: frames, pairs, and a board that nothing speaks against."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.judging.shard import ShardOutcome
from harness.metrics.pairs import DISTANCES, FLAGS, NO_TARGET, SAMPLE_COLUMNS, Board, Pair
from harness.records.home import Home
from harness.records.results import write_result
from harness.schema.models import Card, KnownModel, ModelEntry, ModelName
from harness.schema.pairs import BatteryPair, Declared, PlannedPair, Result, ShardFacts
from harness.schema.plans import PlanRecord
from harness.schema.probes import ProbeFacts

from .planted import planted

NAN = math.nan
SCALES = {"l0": 40.0, "l1": 12.0, "l2": 1.0, "linf": 0.03, "rms": 1 / 28}
GRID = (0.05, 0.1)
BUDGETS: dict[str, dict[str, tuple[float, ...]]] = {"mnist": {"linf": GRID}}


def frame(
    distance: Any,
    clean: Any = None,
    norm: str = "linf",
    *,
    attacked: Any = None,
    survives: Any = None,
    flags: Mapping[str, Any] | None = None,
    index: Any = None,
) -> pd.DataFrame:
    """Samples: ``distance`` is finite where the attack found a valid adversarial."""
    distance = np.asarray(distance, float)
    n = len(distance)
    clean = np.ones(n, bool) if clean is None else np.asarray(clean, bool)
    called = clean if attacked is None else clean & np.asarray(attacked, bool)
    found = np.isfinite(distance) & called
    kept = found if survives is None else found & np.asarray(survives, bool)
    label = np.arange(n) % 10
    values: dict[str, Any] = {
        "index": np.arange(n) if index is None else np.asarray(index, int),
        "label": label,
        "target": np.full(n, NO_TARGET),
        "clean_pred": np.where(clean, label, (label + 1) % 10),
        "clean_correct": clean,
        "attacked": called,
        "adv_pred": np.where(called, (label + found) % 10, -1),
        "adversarial": found,
        "wrong_share": np.where(called, found.astype(float), NAN),
        "survives_rounding": kept,
        "shard": np.zeros(n, int),
    }
    values |= {name: np.where(found, distance / SCALES[norm] * SCALES[name], NAN) for name in DISTANCES}
    values |= {flag: np.asarray((flags or {}).get(flag, np.zeros(n)), bool) for flag in FLAGS}
    return pd.DataFrame(values)[list(SAMPLE_COLUMNS)]


def result(n: int, **fields: Any) -> Result:
    """The result of one attack on n images, the given fields overridden."""
    base: dict[str, Any] = {
        "cell": "c0", "model": "m0", "dataset": "mnist", "architecture": "mlp-200-200", "defense": "standard",
        "seed": 0, "attack": "pgd", "access": "gradients", "kind": "budget", "family": "iterated", "norm": "linf",
        "eps": 0.1, "source": "", "n": n, "forwards": 2.0, "backwards": 1.0, "seconds": 0.5, "status": "ok",
        "answers": {"referee": {"images": n, "differ": 0, "labels": 0, "change": 0.0}},
        "harvest": {"lost": 0, "nearer": 0, "unattributed": 0},
    }  # fmt: skip
    return Result(**base | fields)


def record(samples: pd.DataFrame, run_id: str = "", **fields: Any) -> Pair:
    """A pair with such a result."""
    return Pair(result(**{"n": len(samples)} | fields), samples, {}, run_id)


def card(**fields: Any) -> Card:
    """A model's card, the given fields overridden."""
    return Card(**{"dataset": "digits", "architecture": "mlp-6", "defense": "plain", "seed": 0, "sha256": ""} | fields)


def outcome(samples: pd.DataFrame, gallery: Mapping[str, Any] | None = None, **facts: Any) -> ShardOutcome:
    """A judged shard."""
    cost = {"seconds": 1.5, "forwards": 100, "backwards": 50}
    return ShardOutcome(samples, ShardFacts(**cost | facts), dict(gallery or {}))


def declared(n: int, **fields: Any) -> Declared:
    """What is known of a result before its shards are merged."""
    base = result(n)
    return Declared(**{name: getattr(base, name) for name in Declared.model_fields} | fields)


def battery(planned: BatteryPair) -> BatteryPair:
    """A pair as a battery lists it."""
    return BatteryPair(**{name: getattr(planned, name) for name in BatteryPair.model_fields})


def plan(*pairs: PlannedPair, asked: Sequence[PlannedPair] | None = None, **fields: Any) -> PlanRecord:
    """The plan that pairs are the battery of; ``asked``: those that a command asked for, by default all."""
    models = {one.model: ModelEntry(**dict(ModelName.of(one)), model=one.model) for one in pairs}
    base: dict[str, Any] = {
        "plan": "p", "suite": "quick", "command": "gauntlet run quick", "budgets": BUDGETS, "reference": {},
        "models": tuple(models.values()), "cells": pairs if asked is None else tuple(asked),
        "battery": tuple(map(battery, pairs)), "probes": (),
    }  # fmt: skip
    return PlanRecord(**base | fields)


def write_pair(home: Home, pair: Pair, **fields: Any) -> Result:
    """Write a pair as a finished one of a home, some fields overridden."""
    found = Result(**dict(pair.result) | fields)
    return write_result(home.cell(found.cell), found, pair.samples, {})


def pair(distance: Any, clean: Any = None, norm: str = "linf", **meta: Any) -> Pair:
    """A minimal attack that found these distances."""
    base = {"norm": norm, "eps": None, "kind": "minimal", "family": "minimum-norm", "attack": "gradient"}
    return record(frame(distance, clean, norm), **base | meta)


def budget(needed: Any, eps: float, clean: Any = None, norm: str = "linf", **meta: Any) -> Pair:
    """A budget attack that breaks the images which need no more than eps."""
    needed = np.asarray(needed, float)
    return record(frame(np.where(needed <= eps, eps, NAN), clean, norm), **{"norm": norm, "eps": eps} | meta)


def model(defense: str, seed: int, status: str = "ok", error: str = "", **fields: Any) -> KnownModel:
    """What a board knows of a model, the given fields overridden."""
    base: dict[str, Any] = {"dataset": "mnist", "architecture": "mlp-200-200"}
    return KnownModel(**base | {"defense": defense, "seed": seed, "status": status, "error": error} | fields)


SORTS: Mapping[str, Mapping[str, Any]] = {
    "noise": {"family": "noise", "access": "none"},
    "fgsm": {"family": "one-step"},
    "apgd": {"family": "iterated", "toolkit": "art"},
    "pgd": {"family": "iterated", "toolkit": "foolbox"},
    "square": {"family": "score", "access": "scores", "toolkit": "art"},
    "transfer:pgd": {"family": "transfer", "access": "none", "source": "mlp standard seed 1"},
    "fmn": {"family": "minimum-norm", "kind": "minimal", "toolkit": "foolbox"},
}
STRENGTH = {"noise": 0.1, "fgsm": 0.6, "apgd": 1.0, "pgd": 0.97, "square": 0.7, "transfer:pgd": 0.4, "fmn": 0.99}


def sound(n: int = 100, *, extra: Sequence[Pair] = (), without: Sequence[str] = (), **parts: Any) -> Board:
    """A board of one model, ``m0``, that deserves an A: stronger attacks break what weaker ones do."""
    needed = np.random.default_rng(0).permutation(np.linspace(0.01, 0.2, n))
    pairs = []
    for attack, meta in SORTS.items():
        if attack in without:
            continue
        reach = needed / STRENGTH[attack]
        if meta.get("kind") == "minimal":
            pairs.append(pair(reach, **{**meta, "attack": attack}))
        else:
            pairs += [budget(reach, eps, attack=attack, **meta) for eps in GRID]
    health = {"m0": {"linf": facts(n=n, eps=0.1, left=np.count_nonzero(needed > 0.1) / n)}}
    return Board("quick", BUDGETS, [*pairs, *extra], **{"health": health} | parts)


def amend(board: Board, change: Callable[[dict[str, Any]], object], model: str = "m0", norm: str = "linf") -> None:
    """Change what the probe of a board's model found."""
    found = board.health[model][norm].model_dump()
    change(found)
    dict.__setitem__(board.health[model], norm, ProbeFacts(**found))  # type: ignore[arg-type]


def facts(n: int = 100, eps: float = 0.1, left: float = 0.4) -> ProbeFacts:
    """What a probe finds on a sound model."""
    seen = {
        "probabilities": False,
        "detached": False,
        "inner_optimisation": False,
        "zero_gradient": 0.0,
        "non_finite_gradient": 0.0,
        "small_gradient": 0.0,
        "uphill": 1.0,
        "jumps": 0.0,
        "scale": {"0.05": left, "1": left, "20": left},
        "unbounded": 0.0,
        "one_step": min(left + 0.2, 1.0),
        "steps": {"25": left, "50": left, "100": left, "200": left},
        "rising": 0.01,
        "restarts": {"1": left, "2": left, "5": left},
        "losses": {"ce": left, "dlr": left},
        "slopes": {
            "n": min(n, 64),
            "float64": True,
            "error": {"clean": 1e-7, "boundary": 1e-7},
            "wrong": {"clean": 0.0, "boundary": 0.0},
            "coarse": {"clean": 0.0, "boundary": 0.0},
        },
    }
    found = {
        "norm": "linf", "eps": eps, "n": n, "remedy": "", "seconds": 1.0, "forwards": 1, "backwards": 1,
        "stochastic": {"draws": 8, "labels": 0.0, "logits": 0.0}, "seen": {"raw": seen, "attacked": seen},
        "planted": planted(eps).model_dump(),
    }  # fmt: skip
    return ProbeFacts(**found)
