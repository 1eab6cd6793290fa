"""Hand-made records for tests: frames, pairs, and a board that nothing speaks against."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.metrics.pairs import DISTANCES, FLAGS, SAMPLE_COLUMNS, Board, Pair

NAN = math.nan
SCALES = {"l0": 40.0, "l1": 12.0, "l2": 1.0, "linf": 0.03, "rms": 1 / 28}
GRID = (0.05, 0.1)
BUDGETS = {"mnist": {"linf": GRID}}


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


def record(samples: pd.DataFrame, run_id: str = "", **meta: Any) -> Pair:
    """A pair with every key of a record, the given ones overridden."""
    base: dict[str, Any] = {
        "cell": "c0", "model": "m0", "dataset": "mnist", "architecture": "mlp-200-200", "defense": "standard",
        "seed": 0, "suite": "quick", "attack": "pgd", "toolkit": "gauntlet", "access": "gradients",
        "kind": "budget", "family": "iterated", "cascade": False, "norm": "linf", "eps": 0.1, "source": "",
        "n": len(samples), "levels": 255, "forwards": 2.0, "backwards": 1.0, "seconds": 0.5, "status": "ok",
        "errors": [], "invalid": {}, "unchanged": 0, "unsteady": 0,
        "answers": {"referee": {"images": len(samples), "differ": 0, "labels": 0, "change": 0.0}},
    }  # fmt: skip
    return Pair(base | meta, samples, {}, run_id)


def pair(distance: Any, clean: Any = None, norm: str = "linf", **meta: Any) -> Pair:
    """A minimal attack that found these distances."""
    base = {"norm": norm, "eps": None, "kind": "minimal", "family": "minimum-norm", "attack": "gradient"}
    return record(frame(distance, clean, norm), **base | meta)


def budget(needed: Any, eps: float, clean: Any = None, norm: str = "linf", **meta: Any) -> Pair:
    """A budget attack that breaks the images which need no more than eps."""
    needed = np.asarray(needed, float)
    return record(frame(np.where(needed <= eps, eps, NAN), clean, norm), **{"norm": norm, "eps": eps} | meta)


def model(defense: str, seed: int, status: str = "ok", error: str = "") -> dict[str, Any]:
    """What a board knows of a model."""
    return {
        "dataset": "mnist", "architecture": "mlp-200-200", "defense": defense, "seed": seed, "status": status,
        "error": error, "card": {},
    }  # fmt: skip


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


def facts(n: int = 100, eps: float = 0.1, left: float = 0.4) -> dict[str, Any]:
    """What a probe finds on a sound model."""
    seen = {
        "probabilities": False,
        "detached": False,
        "inner_optimisation": False,
        "zero_gradient": 0.0,
        "non_finite_gradient": 0.0,
        "small_gradient": 0.0,
        "uphill": 1.0,
        "scale": {"0.05": left, "1": left, "20": left},
        "unbounded": 0.0,
        "one_step": min(left + 0.2, 1.0),
        "steps": {"25": left, "50": left, "100": left, "200": left},
        "rising": 0.01,
        "restarts": {"1": left, "2": left, "5": left},
        "losses": {"ce": left, "dlr": left},
        "errors": [],
    }
    return {
        "norm": "linf", "eps": eps, "n": n, "remedy": "", "seconds": 1.0, "forwards": 1, "backwards": 1,
        "stochastic": {"draws": 8, "labels": 0.0, "logits": 0.0},
        "seen": {"raw": seen, "attacked": copy.deepcopy(seen)},
    }  # fmt: skip
