"""Defenses: one paper or classic baseline a file, each a :class:`harness.training.defense.Defense`.

A new file in this folder is all that a new defense takes: every defense defined here that has a ``name`` is found.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache

from harness.errors import unknown
from harness.training.defense import Defense


@lru_cache
def defenses() -> dict[str, type[Defense]]:
    """Every defense by its public name, alphabetically."""
    found: dict[str, type[Defense]] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Defense) and "name" in vars(value):
                assert found.setdefault(value.name, value) is value, f"two defenses are named {value.name}"
    return dict(sorted(found.items()))


def defense(name: str) -> type[Defense]:
    """The defense of that name.

    Raises:
        UserError: There is none; the message lists the choices.
    """
    if name not in defenses():
        raise unknown("defense", name, defenses())
    return defenses()[name]
