"""Which models thresholds may be chosen on, and which only tell whether they hold."""

from __future__ import annotations

import hashlib
from typing import Literal

Half = Literal["seen", "held out"]

USED = {
    "random-input": "it was missed, and battery-strength gave its D from 3 points on since",
    "dark-pixels": "the probe's steps on part of the values were written for models like it",
}
"""Models of the held-out half that a threshold was moved for after all, and why: they count as seen from then on."""


def half(name: str) -> Half:
    """The half that a model belongs to, by its name alone: nobody chooses, and a new model moves no other."""
    if name in USED:
        return "seen"
    return "held out" if hashlib.sha256(name.encode()).digest()[0] % 2 else "seen"
