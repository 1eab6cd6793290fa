"""Gauntlet: honest measurement of how robust image classifiers are.

From Python: ``harness.evaluate(model, x, y, suite="quick")`` returns the model-attack pairs as a DataFrame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluation import evaluate

__all__ = ["evaluate"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # late: importing harness.metrics alone must not bring torch along
        from . import evaluation

        return getattr(evaluation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
