"""Batteries and studies, declarations only: a module or package with a ``SUITE`` or ``STUDY`` is found by its name."""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache
from typing import Any, TypeVar

from harness.errors import unknown
from harness.planning.suite import Suite
from harness.studies.study import Study
from harness.user_code.plugins import Known

Declared = TypeVar("Declared", Suite, Study)


@lru_cache
def suites() -> dict[str, Suite]:
    """Every suite by its public name, alphabetically."""
    return _declared("SUITE", Suite)


@lru_cache
def studies() -> dict[str, Study]:
    """Every study by its public name, alphabetically."""
    return _declared("STUDY", Study)


def known() -> Known[Suite]:
    """What can be named: those declared here, those that packages offer, and ``FILE.py:NAME``."""
    return Known(suites(), "suites", "suite", _is_suite)


def suite(name: str) -> Suite:
    """The suite of that name, declared here or offered by a package, or ``FILE.py:NAME``, whose code is run.

    Raises:
        UserError: There is none; the message lists the choices. The file raised, or holds something else.
    """
    return known()[name]


def _is_suite(value: Any) -> bool:
    return isinstance(value, Suite)


def study(name: str) -> Study:
    """The study of that name.

    Raises:
        UserError: There is none; the message lists the choices.
    """
    if name not in studies():
        raise unknown("study", name, studies())
    return studies()[name]


def _declared(attribute: str, kind: type[Declared]) -> dict[str, Declared]:
    found: dict[str, Declared] = {}
    for module in pkgutil.iter_modules(__path__):
        value = getattr(importlib.import_module(f"{__name__}.{module.name}"), attribute, None)
        if value is not None:
            assert isinstance(value, kind)
            found[value.name] = value
    return dict(sorted(found.items()))
