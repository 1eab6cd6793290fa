"""Differences between two homes, number by number, with significance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..metrics.comparison import contrast, images, standing
from ..metrics.pairs import Bools, Pair, broken, wilson
from ..schema.models import ModelName, ModelState
from ..schema.plans import PlanRecord
from .boards import boards
from .files import csv_text, is_aside, write_bytes
from .home import Home, no_runs
from .plans import Spoiled, attempt, read_plans
from .results import is_finished, read_pair

STATES: Final = ("beyond noise", "within noise", "equal", "no verdict", "only in A", "only in B")
"""What became of a number, the most telling first. ``no verdict``: there are no two numbers to compare."""

INCOMPLETE: Final = "incomplete"
"""Status of a model that lacks pairs of its battery, asked for or not: what the rest left is not what all would."""

COLUMNS: Final = (
    "state", "dataset", "architecture", "defense", "seed", "suite", "attack", "source", "goal", "part", "norm",
    "eps", "matched", "cell_a", "cell_b", "status_a", "status_b", "n_a", "n_b", "accuracy_a", "accuracy_b",
    "difference", "low", "high", "only_a", "only_b", "test", "p_value",
)  # fmt: skip
"""Columns of :func:`differences`, a row per model's worst case or a pair, and eps.

``suite``: whose worst case it is, with ``attack`` "worst case" and the model's keys in ``cell_a`` and ``cell_b``; "" of
a pair, which several suites may share. ``goal``: "untargeted", or which targets images had. ``part``: whose images,
"test" or "train". ``matched``: ``"key"`` (the same declaration) or ``"name"`` (another version of it). ``accuracy``:
share of images that stand at that eps; NaN of a pair in a cascade. ``difference``: b minus a, with its 95 % interval.
``only_a``: images that stand in a alone. ``test``: ``"paired"`` on the same images, else ``"intervals"``. ``eps`` is
infinite where no plan says at which eps a minimal attack is judged: whatever it found counts."""

NAME: Final = (*ModelName.model_fields, "attack", "norm", "eps", "source", "goal", "cascade", "part")
"""What two versions of one pair have in common."""

_NUMBERS: Final = ("ok", "unclipped")
"""Status of pairs that have a number; the others failed."""

_SHOWN: Final = (*ModelName.model_fields, "suite", "attack", "source", "goal", "part", "norm")


@dataclass(frozen=True)
class _Judged:
    """A model as a suite judged it, at the eps values that it was judged at."""

    model: str
    pairs: Sequence[Pair]
    status: str
    left_out: frozenset[str]
    budgets: frozenset[tuple[str, float]]
    goal: str

    def number(self, norm: str, eps: float) -> _Number | None:
        """Its worst case, None where it was not judged."""
        if (norm, eps) not in self.budgets:
            return None
        stands = standing([self.pairs], norm, eps)[0] if self.status == "ok" else None
        return _Number(self.model, self.status, self.pairs[0].n, stands, images(self.pairs), self.left_out)


@dataclass(frozen=True)
class _Side:
    """One home's plans and results by key, and the eps that its plans judge at."""

    plans: Sequence[PlanRecord]
    pairs: Mapping[str, Pair]
    written: Mapping[str, int]
    budgets: Mapping[tuple[str, str], frozenset[float]]

    def number(self, key: str | None, eps: float) -> _Number | None:
        """What a pair left, None where there is none."""
        if key is None:
            return None
        pair = self.pairs[key]
        samples = pair.samples.sort_values("index")
        whole = pair.result.status in _NUMBERS and not pair.result.cascade
        stands = _standing(pair, samples, eps) if whole else None
        return _Number(key, pair.result.status, pair.n, stands, samples[["index", "label"]].to_numpy())


@dataclass(frozen=True)
class _Number:
    """One number of one home: which images stand, None where it has none."""

    key: str
    status: str
    n: int
    stands: Bools | None
    images: npt.NDArray[Any]
    left_out: frozenset[str] = frozenset()


def _row(names: Mapping[str, Any], eps: float, a: _Number | None, b: _Number | None, matched: str) -> dict[str, Any]:
    """A number of both homes and what became of it."""
    row = {**names, "eps": eps, "test": "", "matched": matched if a and b else ""}
    for end, side in (("a", a), ("b", b)):
        row |= {f"cell_{end}": side.key if side else "", f"status_{end}": side.status if side else ""}
        row |= {f"n_{end}": side.n if side else 0, f"accuracy_{end}": share(side.stands if side else None)}
    if a is None or b is None:
        return row | {"state": "only in B" if a is None else "only in A"}
    if INCOMPLETE in (a.status, b.status):
        return row | {"state": "no verdict"}
    if a.status != b.status:
        return row | {"state": "beyond noise"}
    if a.stands is None or b.stands is None or a.left_out != b.left_out:
        return row | {"state": "no verdict" if a.status in _NUMBERS else "equal"}
    return row | verdict(a.stands, b.stands, paired=np.array_equal(a.images, b.images))


def verdict(before: Bools, after: Bools, *, paired: bool) -> dict[str, Any]:
    """State of a number, and what it rests on, from which images stand in a and in b.

    On the same images in the same order (``paired``) the test is McNemar's, exact; otherwise the 95 % Wilson intervals
    must not overlap, which asks for more.
    """
    known: dict[str, Any] = {"difference": share(after) - share(before)}
    if paired:
        found = contrast(after[None], before[None])
        known |= {"test": "paired", "low": found.low, "high": found.high, "p_value": found.p_value}
        known |= {"only_a": found.only_b, "only_b": found.only_a}
        same, far = not (found.only_a or found.only_b), found.significant
    else:
        (low_a, high_a), (low_b, high_b) = (wilson(int(side.sum()), len(side)) for side in (before, after))
        known |= {"test": "intervals", "low": low_b - high_a, "high": high_b - low_a}
        same, far = known["difference"] == 0, low_b > high_a or high_b < low_a
    return known | {"state": "equal" if same else "beyond noise" if far else "within noise"}


def share(stands: Bools | None) -> float:
    """Share of images that stand; NaN if there are none."""
    return math.nan if stands is None or not len(stands) else float(stands.mean())


def worst_cases(
    a: Sequence[PlanRecord],
    b: Sequence[PlanRecord],
    pair_a: Callable[[str], Pair | None],
    pair_b: Callable[[str], Pair | None],
) -> list[dict[str, Any]]:
    """What all attacks of a suite together left of each model, in two homes: the number that models are ranked by.

    A row per model, suite, norm and eps. Models are matched by their names, those on as many images first. A model that
    lacks pairs of its battery has no number and moves nowhere; one whose attack failed has none either, and if it had
    one in the other home, that is beyond noise. Nor is there a verdict where one home left out attacks that the other
    did not: its number may be higher for that alone.
    """
    this, that = _judged(a, pair_a), _judged(b, pair_b)
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys((*this, *that)):
        named = dict(zip(("suite", *ModelName.model_fields), name, strict=True))
        for one, other in _matched(this.get(name, {}), that.get(name, {})):
            matched = "key" if one and other and one.model == other.model else "name"
            found = [side.budgets if side is not None else frozenset() for side in (one, other)]
            for norm, eps in sorted(found[0] | found[1]):
                names = named | {"attack": "worst case", "source": "", "part": "test", "norm": norm}
                names["goal"] = next(side.goal for side in (one, other) if side is not None)
                sides = [side.number(norm, eps) if side else None for side in (one, other)]
                rows.append(_row(names, eps, sides[0], sides[1], matched))
    return rows


def _judged(
    plans: Sequence[PlanRecord], pair: Callable[[str], Pair | None]
) -> dict[tuple[Any, ...], dict[int, _Judged]]:
    """Models by suite and name, then by their number of images."""
    declared = {cell.cell: cell for plan in plans for cell in plan.battery}

    def fitting(key: str) -> Pair | None:
        found = pair(key)
        return None if found is None or found.result.misplaced(declared[key]) else found

    judged: dict[tuple[Any, ...], dict[int, _Judged]] = {}
    for board in boards(plans, fitting, lambda _: ModelState(), lambda *_: None):
        for key, pairs in board.by_model.items():
            model, norms = board.models[key], {pair.result.norm for pair in pairs}
            failed = [pair.result.status for pair in pairs if pair.result.failed]
            incomplete = key in board.missing or key in board.unasked
            status = INCOMPLETE if incomplete else next(iter(failed), "ok")
            left_out = frozenset(board.left_out.get(key, ()))
            grids: Mapping[str, Sequence[float]] = board.budgets[model.dataset]
            budgets = frozenset((norm, float(eps)) for norm in norms for eps in grids[norm])
            name = (board.suite, *model.names)
            judged.setdefault(name, {})[pairs[0].n] = _Judged(key, pairs, status, left_out, budgets, board.goal)
    return judged


def _matched(a: Mapping[int, _Judged], b: Mapping[int, _Judged]) -> Iterator[tuple[_Judged | None, _Judged | None]]:
    """The same model on as many images in both; what is left in the order of images."""
    for n in sorted(a.keys() & b.keys()):
        yield a[n], b[n]
    left = (sorted(one.keys() - other.keys(), reverse=True) for one, other in ((a, b), (b, a)))
    for n, m in zip_longest(*left):
        yield a.get(n), b.get(m)


def differences(a: Home, b: Home, spoiled: Spoiled | None = None) -> pd.DataFrame:
    """Compare every worst case and every result of two homes.

    A worst case is what all attacks of a suite together left of a model (:func:`harness.records.diff.worst_cases`).

    Pairs are matched by key; what is left by the names of model, attack and threat, where a version was bumped or a
    default changed: with the same number of images if there is such a one, then the newest. A pair that ran well in one
    home and failed in the other moved beyond noise: a failure is not chance. A pair of a cascade met only the images
    that the attacks before it had left: it has no accuracy and no verdict, and shows in the worst case alone.

    On the same images the test is McNemar's, exact (:func:`harness.metrics.comparison.contrast`), and a number moved
    beyond noise if p < 0.05. On other images it did if the 95 % Wilson intervals do not overlap, which asks for more.
    Nothing corrects for how many numbers there are: of a hundred that chance alone moved, up to five show as beyond it.

    Returns:
        :data:`COLUMNS`, in the order of :data:`STATES`, worst cases before pairs, the largest difference first.

    Raises:
        UserError: One of them is no home; a file is damaged and nobody is to be told.
    """
    this, that = _read(a, spoiled), _read(b, spoiled)
    rows = worst_cases(this.plans, that.plans, this.pairs.get, that.pairs.get)
    matched = {key: key for key in this.pairs if key in that.pairs} | _by_name(this, that)
    couples: list[tuple[str | None, str | None]] = [(key, matched.get(key)) for key in this.pairs]
    couples += [(None, key) for key in that.pairs if key not in matched.values()]
    for one, other in couples:
        pair = this.pairs[one] if one is not None else that.pairs[str(other)]
        names = {name: getattr(pair.result, name, "") for name in _SHOWN}
        for eps in _grid(pair, this, that):
            numbers = this.number(one, eps), that.number(other, eps)
            rows.append(_row(names, eps, *numbers, "key" if one == other else "name"))
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
        pair = attempt(lambda f=folder: read_pair(f), folder, spoiled)  # type: ignore[misc]
        if pair is not None:
            pairs[folder.name] = pair
            written[folder.name] = (folder / "result.json").stat().st_mtime_ns
    budgets: dict[tuple[str, str], frozenset[float]] = {}
    plans = read_plans(home, spoiled)
    for plan in plans:
        for dataset, norms in plan.budgets.items():
            for norm, grid in norms.items():
                budgets[dataset, norm] = budgets.get((dataset, norm), frozenset()) | frozenset(map(float, grid))
    return _Side(plans, pairs, written, budgets)


def _grid(pair: Pair, *sides: _Side) -> Sequence[float]:
    """Eps values that a pair is looked at: its own, or those of both homes' plans."""
    if pair.result.eps is not None:
        return [pair.result.eps]
    where = pair.result.dataset, pair.result.norm
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
            n = a.pairs[key].result.n
            other = next((one for one in free if not alike or b.pairs[one].result.n == n), None)
            if other is not None:
                free.remove(other)
                found[key] = other
    return found


def _name(pair: Pair) -> tuple[Any, ...]:
    return tuple(getattr(pair.result, name) for name in NAME)


def _standing(pair: Pair, samples: pd.DataFrame, eps: float) -> Bools:
    if pair.result.status == "unclipped":  # nothing that it returned is an adversarial
        wrong = samples["adv_pred"].to_numpy() != samples["label"].to_numpy()
        lost: Bools = ~samples["clean_correct"].to_numpy(bool) | (samples["attacked"].to_numpy(bool) & wrong)
        return ~lost
    return ~broken(samples, pair.result.norm, eps)


def write(frame: pd.DataFrame, path: Path) -> None:
    """Write the whole frame as CSV."""
    write_bytes(path, csv_text(frame).encode())
