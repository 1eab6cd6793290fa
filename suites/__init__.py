"""Batteries of attacks, declarations only: every module here with a ``SUITE`` is found by its name."""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache

from harness.errors import unknown
from harness.plan import Suite


@lru_cache
def suites() -> dict[str, Suite]:
    """Every suite by its public name, alphabetically."""
    found: dict[str, Suite] = {}
    for module in pkgutil.iter_modules(__path__):
        suite = getattr(importlib.import_module(f"{__name__}.{module.name}"), "SUITE", None)
        if suite is not None:
            assert isinstance(suite, Suite)
            found[suite.name] = suite
    return dict(sorted(found.items()))


def suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
        UserError: There is none; the message lists the choices.
    """
    if name not in suites():
        raise unknown("suite", name, suites())
    return suites()[name]
