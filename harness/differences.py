"""What moved between two homes: worst cases and pairs, number by number, and whether more than chance moved them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from .campaign import Record, Spoiled, attempt, read_plans
from .metrics.pairs import Bools, Pair, broken
from .moved import STATES, share, verdict, worst_cases
from .results import is_finished, read_result
from .store import Home, is_aside, no_runs, write_bytes

COLUMNS: Final = (
    "state", "dataset", "architecture", "defense", "seed", "suite", "attack", "source", "part", "norm", "eps",
    "matched", "cell_a", "cell_b", "status_a", "status_b", "n_a", "n_b", "accuracy_a", "accuracy_b", "difference",
    "low", "high", "only_a", "only_b", "test", "p_value",
)  # fmt: skip
"""Columns of :func:`differences`, a row a model's worst case or a pair, and eps.

``suite``: whose worst case it is, with ``attack`` "worst case" and the model's keys in ``cell_a`` and ``cell_b``; "" of
a pair, which several suites may share. ``part``: whose images, "test" or "train". ``matched``: ``"key"`` (the same
declaration) or ``"name"`` (another version of it). ``accuracy``: share of images that stand at that eps; NaN of a pair
in a cascade. ``difference``: b minus a, with its 95 % interval. ``only_a``: images that stand in a alone. ``test``:
``"paired"`` on the same images, else ``"intervals"``. ``eps`` is infinite where no plan says at which eps a minimal
attack is judged: whatever it found counts."""

NAME: Final = ("dataset", "architecture", "defense", "seed", "attack", "norm", "eps", "source", "cascade", "part")
"""What two versions of one pair have in common."""

_NUMBERS: Final = ("ok", "unclipped")
"""Status of pairs that have a number; the others failed."""

_SHOWN: Final = ("dataset", "architecture", "defense", "seed", "suite", "attack", "source", "part", "norm")


@dataclass(frozen=True)
class _Side:
    """One home's plans and results by key, and the eps that its plans judge at."""

    plans: Sequence[Record]
    pairs: Mapping[str, Pair]
    written: Mapping[str, int]
    budgets: Mapping[tuple[str, str], frozenset[float]]


def differences(a: Home, b: Home, spoiled: Spoiled | None = None) -> pd.DataFrame:
    """Compare every worst case and every result of two homes.

    A worst case is what all attacks of a suite together left of a model (:func:`harness.moved.worst_cases`).

    Pairs are matched by key; what is left by the names of model, attack and threat, where a version was bumped or a
    default changed: with the same number of images if there is such a one, then the newest. A pair that ran well in one
    home and failed in the other moved beyond noise: a failure is not chance. A pair of a cascade met only the images
    that the attacks before it had left: it has no accuracy and no verdict, and shows in the worst case alone.

    On the same images the test is McNemar's, exact (:func:`harness.metrics.comparison.contrast`), and a number moved
    beyond noise if p < 0.05. On other images it did if the 95 % Wilson intervals do not overlap, which asks for more.
    Nothing corrects for how many numbers there are: of a hundred that chance alone moved, up to five show as beyond it.

    Args:
        a: The home before.
        b: The home after.
        spoiled: Told of damaged files, which are then left out.

    Returns:
        :data:`COLUMNS`, in the order of :data:`STATES`, worst cases before pairs, the largest difference first.

    Raises:
        UserError: One of them is no home; a file is damaged and nobody is to be told.
    """
    this, that = _read(a, spoiled), _read(b, spoiled)
    rows = worst_cases(this.plans, that.plans, this.pairs.get, that.pairs.get)
    matched = {key: (key, "key") for key in this.pairs if key in that.pairs}
    matched |= {key: (other, "name") for key, other in _by_name(this, that).items()}
    for key, pair in this.pairs.items():
        other, how = matched.get(key, (None, ""))
        rows += _rows(pair, that.pairs[other] if other is not None else None, how, _grid(pair, this, that))
    taken = {other for other, _ in matched.values()}
    for key, pair in that.pairs.items():
        if key not in taken:
            rows += _rows(None, pair, "", _grid(pair, this, that))
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    frame["_state"] = frame["state"].map(STATES.index)
    frame["_size"] = (
        -frame["difference"].astype(float).abs().fillna(math.inf)
    )  # a failure has no number, and is told first
    frame["_pair"] = frame["suite"] == ""
    order = ["_state", "_pair", "_size", *_SHOWN, "eps", "cell_a", "cell_b"]
    return frame.sort_values(order, kind="stable", ignore_index=True)[list(COLUMNS)]


def counts(frame: pd.DataFrame) -> dict[str, int]:
    """How many numbers are in each of :data:`STATES`."""
    return {state: int((frame["state"] == state).sum()) for state in STATES}


def _read(home: Home, spoiled: Spoiled | None) -> _Side:
    if not (home.path / "cells").is_dir() and not home.plans.is_dir():
        raise no_runs(home.path)
    pairs, written = {}, {}
    for folder in sorted((home.path / "cells").glob("*")):
        if is_aside(folder) or not is_finished(folder):
            continue
        pair = attempt(lambda f=folder: read_result(f), folder, spoiled)  # type: ignore[misc]
        if pair is not None:
            pairs[folder.name] = pair
            written[folder.name] = (folder / "result.json").stat().st_mtime_ns
    budgets: dict[tuple[str, str], frozenset[float]] = {}
    plans = read_plans(home, spoiled)
    for plan in plans:
        for dataset, norms in plan["budgets"].items():
            for norm, grid in norms.items():
                budgets[dataset, norm] = budgets.get((dataset, norm), frozenset()) | frozenset(map(float, grid))
    return _Side(plans, pairs, written, budgets)


def _grid(pair: Pair, *sides: _Side) -> Sequence[float]:
    """Eps values that a pair is looked at: its own, or those of both homes' plans."""
    if pair.meta["eps"] is not None:
        return [float(pair.meta["eps"])]
    where = pair.meta["dataset"], pair.meta["norm"]
    return sorted(frozenset().union(*(side.budgets.get(where, frozenset()) for side in sides))) or [math.inf]


def _by_name(a: _Side, b: _Side) -> dict[str, str]:
    """Key in b, by key in a, of pairs that no key matches."""
    left: dict[tuple[Any, ...], list[str]] = {}
    for key in sorted(set(b.pairs) - set(a.pairs), key=lambda key: -b.written[key]):
        left.setdefault(_name(b.pairs[key]), []).append(key)
    found: dict[str, str] = {}
    waiting = sorted(set(a.pairs) - set(b.pairs), key=lambda key: -a.written[key])
    for alike in (True, False):  # first those on as many images
        for key in [key for key in waiting if key not in found]:
            free = left.get(_name(a.pairs[key]), [])
            n = a.pairs[key].meta["n"]
            other = next((one for one in free if not alike or b.pairs[one].meta["n"] == n), None)
            if other is not None:
                free.remove(other)
                found[key] = other
    return found


def _name(pair: Pair) -> tuple[Any, ...]:
    return tuple(_part(pair) if name == "part" else pair.meta.get(name) for name in NAME)


def _part(pair: Pair) -> str:
    """Whose images a pair was run on: results of earlier versions do not say."""
    return str(pair.meta.get("part", "test"))


def _rows(a: Pair | None, b: Pair | None, how: str, grid: Sequence[float]) -> list[dict[str, Any]]:
    one = a if a is not None else b
    assert one is not None
    said = {**one.meta, "suite": "", "part": _part(one)}
    row: dict[str, Any] = {name: said[name] for name in _SHOWN} | {"matched": how, "test": ""}
    for side, pair in (("a", a), ("b", b)):
        row[f"cell_{side}"] = pair.meta["cell"] if pair is not None else ""
        row[f"status_{side}"] = pair.meta["status"] if pair is not None else ""
        row[f"n_{side}"] = pair.n if pair is not None else 0
    return [row | {"eps": eps} | _moved(a, b, eps) for eps in grid]


def _moved(a: Pair | None, b: Pair | None, eps: float) -> dict[str, Any]:
    """State of one number, and what it rests on."""
    known: dict[str, Any] = {"accuracy_a": _accuracy(a, eps), "accuracy_b": _accuracy(b, eps)}
    if a is None or b is None:
        return known | {"state": "only in A" if b is None else "only in B"}
    if a.meta["status"] != b.meta["status"]:
        return known | {"state": "beyond noise"}
    if a.meta["status"] not in _NUMBERS:
        return known | {"state": "equal"}
    if a.meta.get("cascade") or b.meta.get("cascade"):
        return known | {"state": "no verdict"}
    before, after = _order(a), _order(b)
    paired = np.array_equal(before[["index", "label"]].to_numpy(), after[["index", "label"]].to_numpy())
    return known | verdict(_standing(a, before, eps), _standing(b, after, eps), paired=paired)


def _order(pair: Pair) -> pd.DataFrame:
    return pair.samples.sort_values("index")


def _standing(pair: Pair, samples: pd.DataFrame, eps: float) -> Bools:
    if pair.meta["status"] == "unclipped":  # nothing that it returned is an adversarial
        wrong = samples["adv_pred"].to_numpy() != samples["label"].to_numpy()
        lost: Bools = ~samples["clean_correct"].to_numpy(bool) | (samples["attacked"].to_numpy(bool) & wrong)
        return ~lost
    return ~broken(samples, pair.meta["norm"], eps)


def _accuracy(pair: Pair | None, eps: float) -> float:
    """Share of images that stand; NaN for a pair that failed, has no image or did not meet all of them."""
    if pair is None or pair.meta["status"] not in _NUMBERS or pair.meta.get("cascade"):
        return math.nan
    return share(_standing(pair, pair.samples, eps))


def write(frame: pd.DataFrame, path: Path) -> None:
    """Write the whole frame as CSV."""
    write_bytes(path, frame.to_csv(index=False, lineterminator="\n").encode())
