"""What :func:`gauntlet.evaluate` returns: a frame of pairs that can be looked at, kept in a file and read again."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import UserError, first_line
from ..leaderboard import bands_of
from ..metrics.pairs import PAIR_COLUMNS, Board, pair_rows, worst_case
from ..trust.grade import trust

DIGITS = 15
"""Decimals in JSON, for pandas' ten lose some of an eps such as 8/255."""


class Evaluation(pd.DataFrame):
    """A row per attack and eps (:data:`harness.metrics.pairs.PAIR_COLUMNS`); what else was found is in ``attrs``.

    Whatever is made of it, a selection or a copy, is a plain frame with the same ``attrs``. These are what JSON can
    hold, so that a file can hold them too: ``to_parquet`` and ``to_json(orient="table")`` write them, and
    :func:`read_pairs` reads both.

    In a notebook it is shown as a ranking, curves and adversarial images.
    """

    _page: str = ""

    @property
    def _constructor(self) -> Callable[..., pd.DataFrame]:
        return pd.DataFrame

    @classmethod
    def of(cls, board: Board, key: str, *, page: str = "", **attrs: Any) -> Evaluation:
        """What a board says of one model, with more for the ``attrs``, and how it is shown in a notebook."""
        pairs = board.by_model[key]
        found = cls(pair_rows(dataclasses.replace(board, pairs=pairs)))
        budgets = board.budgets[pairs[0].result.dataset]
        grid = [(norm, eps) for norm in budgets for eps in budgets[norm]]
        grades = {norm: trust(board, key, norm) for norm in budgets}
        cases = {(norm, eps): worst_case(pairs, norm, eps) for norm, eps in grid}
        bands = [one for norm, eps in grid for one in bands_of(board, {key: pairs}, norm, eps)]
        planted = {norm: facts.planted for norm, facts in board.health.get(key, {}).items()}
        found.attrs = plain(
            {
                "goal": board.goal,
                "trust": {norm: [one.grade, list(one.reasons)] for norm, one in grades.items() if one is not None},
                "worst_case": [
                    {
                        "norm": norm,
                        "eps": eps,
                        "accuracy": case.accuracy,
                        "low": case.low,
                        "high": case.high,
                        "success_on_correct": case.success,
                        "strongest": case.strongest,
                        "n": case.n,
                        "unseen": case.unseen,
                    }
                    for (norm, eps), case in cases.items()
                ],
                "certified": [dataclasses.asdict(one) for one in bands],
                "planted": {norm: one.model_dump(mode="json") for norm, one in planted.items() if one is not None},
                "left_out": list(board.left_out.get(key, ())),
                **attrs,
            }
        )
        object.__setattr__(found, "_page", page)  # past pandas, for which it would be a column
        return found

    def worst_case(self, norm: str, eps: float) -> float:
        """Share of images that all attacks together leave at a norm and eps that the suite is judged at.

        Raises:
            UserError: It is not judged there.
        """
        cases = self.attrs["worst_case"]
        found = [case["accuracy"] for case in cases if case["norm"] == norm and abs(case["eps"] - eps) < 1e-9]
        if not found:
            choices = ", ".join(f"{case['norm']} {case['eps']:.6g}" for case in cases)
            raise UserError(f"not judged at {norm} {eps:g}; choose from {choices}")
        left: float = found[0]
        return left

    def to_json(self, path_or_buf: Any = None, **options: Any) -> Any:
        """As pandas does, with all digits; with ``orient="table"`` the ``attrs`` too, under a key of that name."""
        options.setdefault("double_precision", DIGITS)
        if options.get("orient") != "table":
            return super().to_json(path_or_buf, **options)
        held: dict[str, Any] = json.loads(super().to_json(None, **options))
        text = json.dumps(held | {"attrs": self.attrs})
        if path_or_buf is None:
            return text
        if hasattr(path_or_buf, "write"):
            path_or_buf.write(text)
        else:
            Path(path_or_buf).write_text(text, encoding="utf-8")
        return None

    def _repr_html_(self) -> str | None:
        table: str | None = pd.DataFrame(self)._repr_html_()  # type: ignore[operator]
        return f"{self._page}<details><summary>Every attack</summary>{table}</details>" if self._page else table


def read_pairs(path: str | Path) -> Evaluation:
    """Read a frame of pairs with its ``attrs``, as ``to_parquet`` or ``to_json(orient="table")`` wrote it.

    Raises:
        UserError: It is neither, or holds something else.
    """
    file = Path(path)
    try:
        if file.suffix == ".json":
            held = json.loads(file.read_text(encoding="utf-8"))
            found, attrs = pd.DataFrame(held["data"]), held["attrs"]
        else:
            found = pd.read_parquet(file)
            attrs = found.attrs
        found = found[list(PAIR_COLUMNS)]
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror or first_line(error)})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} holds no pairs ({first_line(error)}): write them with to_parquet or to_json(orient='table')"
        ) from None
    made = Evaluation(found)
    made.attrs = dict(attrs)
    return made


def plain(value: Any) -> Any:
    """What JSON can hold of a value: lists for tuples, None for what is no finite number."""
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
