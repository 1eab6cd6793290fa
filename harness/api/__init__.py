"""``gauntlet.evaluate``: attack a model that is handed over in Python, and return the pairs as a frame."""

from __future__ import annotations

from ..external.external import External, digest
from .evaluation import attack, evaluate
from .result import Evaluation, read_pairs

__all__ = ["Evaluation", "External", "attack", "digest", "evaluate", "read_pairs"]
