"""Batteries and studies, declarations only: a module here with a ``SUITE`` or a ``STUDY`` is found by its name."""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache

from harness.errors import unknown
from harness.plan import Suite
from harness.study import Study


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


@lru_cache
def studies() -> dict[str, Study]:
    """Every study by its public name, alphabetically."""
    found: dict[str, Study] = {}
    for module in pkgutil.iter_modules(__path__):
        study = getattr(importlib.import_module(f"{__name__}.{module.name}"), "STUDY", None)
        if study is not None:
            assert isinstance(study, Study)
            found[study.name] = study
    return dict(sorted(found.items()))


def study(name: str) -> Study:
    """The study of that name.

    Raises:
        UserError: There is none; the message lists the choices.
    """
    if name not in studies():
        raise unknown("study", name, studies())
    return studies()[name]
