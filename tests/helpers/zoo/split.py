"""Which models thresholds may be chosen on, and which only tell whether they hold."""

from __future__ import annotations

import hashlib
from typing import Literal

Half = Literal["seen", "held out"]


def half(name: str) -> Half:
    """The half that a model belongs to, by its name alone: nobody chooses, and a new model moves no other."""
    return "held out" if hashlib.sha256(name.encode()).digest()[0] % 2 else "seen"
