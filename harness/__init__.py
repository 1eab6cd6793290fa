"""Gauntlet: honest measurement of how robust image classifiers are.

From Python: ``harness.evaluate(model, x, y, suite="quick")`` returns the model-attack pairs as a DataFrame.
"""

from __future__ import annotations

import importlib.util
import os.path
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import evaluate

__all__ = ["evaluate"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # late: importing harness.metrics.pairs alone must not bring torch along
        if trouble := shadowed(("defenses", "suites")):
            from .errors import UserError

            raise UserError(trouble)
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def shadowed(names: Iterable[str]) -> str | None:
    """Which of our top-level packages is not what its name means here, in one line; None if each is.

    Names like ``defenses`` are in everybody's projects; one that is imported already, or comes first on the import
    path, would be taken for ours.
    """
    home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120
    for name in names:
        spec = getattr(sys.modules[name], "__spec__", None) if name in sys.modules else importlib.util.find_spec(name)
        place = (spec.origin or next(iter(spec.submodule_search_locations or ()), None)) if spec else None
        if not os.path.realpath(place or "").startswith(os.path.join(home, name) + os.sep):  # noqa: PTH118
            return (
                f"{place or 'a module made by code'} has the name of Gauntlet's package {name!r}, which is in {home}: "
                "give it another name, or take its folder off the import path (sys.path, PYTHONPATH)"
            )
    return None
