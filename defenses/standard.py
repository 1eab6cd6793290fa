"""No defense: the yardstick that every other row is read against."""

from __future__ import annotations

from dataclasses import dataclass

from harness.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Standard(Trainer):
    """Plain training on the cross-entropy."""

    name = "standard"
    summary = "plain training, no defense"
    by_batch = True
