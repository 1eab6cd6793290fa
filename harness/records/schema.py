"""Whether a record read from disk has what its readers look up: JSON may be whole and still be something else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

Shape = type | tuple[Any, ...] | Mapping[str, Any] | list[Any]

NUMBER: Final = (int, float, None)
"""A number; null stands for one that is not finite."""

TEXTS: Final = ("model", "dataset", "architecture", "defense")

_AGREEMENT: Final[Shape] = dict.fromkeys(("images", "differ", "labels", "change"), (int, float))

RESULT: Final[Shape] = {
    **dict.fromkeys(("cell", "attack", "toolkit", "kind", "norm", "source", "status", *TEXTS), str),
    **dict.fromkeys(("seconds", "forwards", "backwards", "eps"), NUMBER),
    "n": int,
    "seed": int,
    "unsteady?": int,
    "answers?": {"referee?": _AGREEMENT, "attacked?": _AGREEMENT},
}
"""What ``result.json`` must hold for a report. Names that end in ``?`` came later, or are not always there."""

CARD: Final[Shape] = {"inspection?": {"answers?": {"*": _AGREEMENT}}}
"""What a model's card holds of its admission, if it was admitted."""

_MODEL: Final[Shape] = {**dict.fromkeys(TEXTS, str), "seed": int}
_CELL: Final[Shape] = {
    **dict.fromkeys(("cell", "model", "dataset", "attack", "norm", "source"), str),
    "n": int,
    "eps": NUMBER,
    "cascade": bool,
}

PLAN: Final[Shape] = {
    **dict.fromkeys(("plan", "suite", "command"), str),
    "budgets": dict,
    "reference": dict,
    "models": [_MODEL],
    "cells": [_CELL],
    "battery": [_CELL],
    "probes": [dict.fromkeys(("probe", "model", "norm"), str)],
}
"""What a plan's record must hold."""


def misfit(value: Any, shape: Shape, name: str = "it") -> str:
    """What is wrong with a value, in a few words; "" if nothing.

    Args:
        value: As read.
        shape: A type; a tuple of types that all do, None among them for null; a mapping of names to shapes, all of
            which must be there unless the name ends in ``?``, ``*`` standing for every name; a list of one shape, that
            of every item.
        name: What to call the value.
    """
    match shape:
        case Mapping():
            if not isinstance(value, dict):
                return f"{name} is no JSON object"
            absent = next((key for key in shape if key not in value and not key.endswith(("?", "*"))), None)
            if absent is not None:
                return f"{name} has no {absent!r}"
            if every := shape.get("*"):
                return next((found for key, part in value.items() if (found := misfit(part, every, key))), "")
            parts = [(key.removesuffix("?"), part) for key, part in shape.items()]
            return next((found for key, part in parts if key in value and (found := misfit(value[key], part, key))), "")
        case list():
            if not isinstance(value, list):
                return f"{name} is no list"
            return next((found for item in value if (found := misfit(item, shape[0], f"an entry of {name}"))), "")
        case tuple():
            return "" if any(_is(value, kind) for kind in shape) else f"{name} is {type(value).__name__}"
        case _:
            return "" if _is(value, shape) else f"{name} is {type(value).__name__}"


def _is(value: Any, kind: Any) -> bool:
    if kind is None:
        return value is None
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))  # True is an int to Python
