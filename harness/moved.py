"""Whether a number moved between two homes beyond noise, and the worst cases of models as such numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

import numpy as np

from .campaign import Record, boards, misplaced
from .metrics.comparison import contrast, images, standing
from .metrics.pairs import Bools, Pair, wilson

STATES: Final = ("beyond noise", "within noise", "equal", "no verdict", "only in A", "only in B")
"""What became of a number, the most telling first. ``no verdict``: there are no two numbers to compare."""

INCOMPLETE: Final = "incomplete"
"""Status of a model that lacks pairs of its battery, asked for or not: what the rest left is not what all would."""

_NAME: Final = ("dataset", "architecture", "defense", "seed")


@dataclass(frozen=True)
class _Judged:
    """A model as a suite judged it, at the eps values that it was judged at."""

    model: str
    pairs: Sequence[Pair]
    status: str
    left_out: frozenset[str]
    budgets: frozenset[tuple[str, float]]


def verdict(before: Bools, after: Bools, *, paired: bool) -> dict[str, Any]:
    """State of a number, and what it rests on.

    Args:
        before: Which images stand in a.
        after: Which images stand in b.
        paired: Whether they are the same images in the same order. Then the test is McNemar's, exact; otherwise the
            95 % Wilson intervals must not overlap, which asks for more.
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


def share(stands: Bools) -> float:
    """Share of images that stand; NaN if there are none."""
    return float(stands.mean()) if len(stands) else math.nan


def worst_cases(
    a: Sequence[Record], b: Sequence[Record], pair_a: Callable[[str], Pair | None], pair_b: Callable[[str], Pair | None]
) -> list[dict[str, Any]]:
    """What all attacks of a suite together left of each model, in two homes: the number that models are ranked by.

    A row a model, suite, norm and eps. Models are matched by their names, those on as many images first. A model that
    lacks pairs of its battery has no number and moves nowhere; one whose attack failed has none either, and if it had
    one in the other home, that is beyond noise. Nor is there a verdict where one home left out attacks that the other
    did not: its number may be higher for that alone.

    Args:
        a: Plans of the home before, oldest first.
        b: Plans of the home after.
        pair_a: Finds a result of the first by its key; None if there is none.
        pair_b: The same of the second.
    """
    this, that = _judged(a, pair_a), _judged(b, pair_b)
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys((*this, *that)):
        for one, other in _matched(this.get(name, {}), that.get(name, {})):
            found = [side.budgets if side is not None else frozenset() for side in (one, other)]
            for norm, eps in sorted(found[0] | found[1]):
                sides = [side if side and (norm, eps) in side.budgets else None for side in (one, other)]
                rows.append(_row(name, sides[0], sides[1], norm, eps))
    return rows


def _judged(plans: Sequence[Record], pair: Callable[[str], Pair | None]) -> dict[tuple[Any, ...], dict[int, _Judged]]:
    """Models by suite and name, then by their number of images."""
    declared = {cell["cell"]: cell for plan in plans for cell in plan["battery"]}

    def fitting(key: str) -> Pair | None:
        found = pair(key)
        return None if found is None or misplaced(found, declared[key]) else found

    judged: dict[tuple[Any, ...], dict[int, _Judged]] = {}
    for board in boards(plans, fitting, lambda _: {}, lambda *_: None):
        for key, pairs in board.by_model.items():
            model, norms = board.models[key], {pair.meta["norm"] for pair in pairs}
            failed = [pair.meta["status"] for pair in pairs if pair.meta["status"] != "ok"]
            incomplete = key in board.missing or key in board.unasked
            status = INCOMPLETE if incomplete else next(iter(failed), "ok")
            left_out = frozenset(board.left_out.get(key, ()))
            grids: Mapping[str, Sequence[float]] = board.budgets[model["dataset"]]
            budgets = frozenset((norm, float(eps)) for norm in norms for eps in grids[norm])
            name = (board.suite, *(model[part] for part in _NAME))
            judged.setdefault(name, {})[pairs[0].n] = _Judged(key, pairs, status, left_out, budgets)
    return judged


def _matched(a: Mapping[int, _Judged], b: Mapping[int, _Judged]) -> Iterator[tuple[_Judged | None, _Judged | None]]:
    """The same model on as many images in both; what is left in the order of images."""
    for n in sorted(a.keys() & b.keys()):
        yield a[n], b[n]
    left = (sorted(one.keys() - other.keys(), reverse=True) for one, other in ((a, b), (b, a)))
    for n, m in zip_longest(*left):
        yield a.get(n), b.get(m)


def _row(name: tuple[Any, ...], a: _Judged | None, b: _Judged | None, norm: str, eps: float) -> dict[str, Any]:
    row: dict[str, Any] = dict(zip(("suite", *_NAME), name, strict=True))
    row |= {"attack": "worst case", "source": "", "part": "test", "norm": norm, "eps": eps, "test": "", "matched": ""}
    stands: dict[str, Bools] = {}
    for end, side in (("a", a), ("b", b)):
        row |= {f"cell_{end}": side.model if side else "", f"status_{end}": side.status if side else ""}
        row[f"n_{end}"] = side.pairs[0].n if side else 0
        if side and side.status == "ok":
            stands[end] = standing([side.pairs], norm, eps)[0]
        row[f"accuracy_{end}"] = share(stands[end]) if end in stands else math.nan
    if a is None or b is None:
        return row | {"state": "only in B" if a is None else "only in A"}
    row["matched"] = "key" if a.model == b.model else "name"
    if len(stands) == 2 and a.left_out == b.left_out:
        return row | verdict(stands["a"], stands["b"], paired=np.array_equal(images(a.pairs), images(b.pairs)))
    if INCOMPLETE in (a.status, b.status) or len(stands) == 2:
        return row | {"state": "no verdict"}
    return row | {"state": "equal" if a.status == b.status else "beyond noise"}
