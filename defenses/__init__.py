"""Defenses: one paper or classic baseline a file, each a :class:`harness.training.defense.Defense`.

A new file in this folder is all that a new defense takes: every defense defined here that has a ``name`` is found. So
are those that installed packages offer (entry points ``gauntlet.defenses``), and any named as ``FILE.py:NAME``.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache
from typing import Any

from harness.training.defense import Defense
from harness.user_code.plugins import Known


@lru_cache
def defenses() -> dict[str, type[Defense]]:
    """Every defense by its public name, alphabetically."""
    found: dict[str, type[Defense]] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Defense) and "name" in vars(value):
                assert found.setdefault(value.name, value) is value, f"two defenses are named {value.name}"
    return dict(sorted(found.items()))


def known() -> Known[type[Defense]]:
    """What can be named: those defined here, those that packages offer, and ``FILE.py:NAME``."""
    return Known(defenses(), "defenses", "defense", _is_defense)


def defense(name: str) -> type[Defense]:
    """The defense of that name, defined here or offered by a package, or ``FILE.py:NAME``, whose code is run.

    Raises:
        UserError: There is none; the message lists the choices. The file raised, or defines something else.
    """
    return known()[name]


def _is_defense(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Defense)
