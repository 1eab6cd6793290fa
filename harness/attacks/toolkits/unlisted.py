"""Attacks of ART and Foolbox that our tables have no row for, called as their classes describe themselves.

Nobody has looked at them. Adversarial images that they find count, for the referee judges them; but no health check
takes such an attack for a white-box attack, a black-box attack or a second toolkit that took part.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Final, get_args

from ...errors import UserError, unknown
from ...schema.pairs import UNLISTED
from ...threat import NORMS, Norm
from .art import PACKAGE, Art
from .art_catalogue import ART_TABLE
from .base import load
from .capability import ArtCapability, Capability, Fill, FoolboxCapability, Value
from .foolbox import Foolbox
from .foolbox_catalogue import FOOLBOX_TABLE

_FILLS: Final[tuple[Fill, ...]] = get_args(Fill)
_REMARK: Final = "not in our tables: called as its class describes itself, and nobody has looked at it"
_NORM_OF: Final[dict[float, Norm]] = {0.0: "l0", 1.0: "l1", 2.0: "l2", float("inf"): "linf"}


class _Described(Mapping[str, Capability]):
    """Capabilities by class name, read off the classes when they are asked for, in any process."""

    def __init__(self, toolkit: str) -> None:
        self._toolkit = toolkit

    def __getitem__(self, name: str) -> Capability:
        if name not in _classes(self._toolkit):
            raise KeyError(name)
        return _of_art(name) if self._toolkit == "art" else _of_foolbox(name)

    def __iter__(self) -> Iterator[str]:
        yield from _classes(self._toolkit)

    def __len__(self) -> int:
        return len(_classes(self._toolkit))


@dataclass(frozen=True, kw_only=True, init=False)
class UnlistedArt(Art):
    """An attack of ART without a row in :data:`ART_TABLE`."""

    name: ClassVar[str] = "unlisted-art"
    toolkit: ClassVar[str] = UNLISTED + "art"
    table: ClassVar[Mapping[str, Capability]] = _Described("art")


@dataclass(frozen=True, kw_only=True, init=False)
class UnlistedFoolbox(Foolbox):
    """An attack of Foolbox without a row in :data:`FOOLBOX_TABLE`."""

    name: ClassVar[str] = "unlisted-foolbox"
    toolkit: ClassVar[str] = UNLISTED + "foolbox"
    table: ClassVar[Mapping[str, Capability]] = _Described("foolbox")


def toolkit_attack(toolkit: str, name: str, options: Mapping[str, Any]) -> Art | Foolbox:
    """An attack of a toolkit by class name: of our table where it has a row, else unlisted.

    Raises:
        UserError: No such attack, an option that it does not have; one that cannot be called without a row.
    """
    listed, other = (Art, UnlistedArt) if toolkit == "art" else (Foolbox, UnlistedFoolbox)
    table = ART_TABLE if toolkit == "art" else FOOLBOX_TABLE
    named = {word for entry in table.values() for word in (entry.attack, entry.short, *entry.aliases)}
    if name in named:
        return listed(name, options)
    if name not in _classes(toolkit):
        raise unknown(f"{toolkit} attack", name, sorted({*table, *_classes(toolkit)}))
    return other(name, options)


@cache
def _classes(toolkit: str) -> tuple[str, ...]:
    """Names of the attacks on images that the installed toolkit has."""
    if toolkit == "art":
        module, base = load("art.attacks.evasion", PACKAGE), load("art.attacks.attack", PACKAGE).EvasionAttack
    else:
        module, base = load("foolbox", "foolbox").attacks, load("foolbox", "foolbox").attacks.Attack
    kinds = {name: value for name, value in vars(module).items() if inspect.isclass(value) and value is not base}
    return tuple(sorted(name for name, value in kinds.items() if issubclass(value, base)))


@cache
def _of_art(name: str) -> Capability:
    kind = getattr(load("art.attacks.evasion", PACKAGE), name)
    fills, options = _parameters(name, kind)
    budget = "eps" in fills
    if "eps_step" in fills:
        options["step_ratio"] = None  # 2.5 / max_iter, as for those that have a row
    norms: tuple[Norm, ...] = NORMS
    if budget:
        norms = ("linf", "l2") if "norm" in fills else ("linf",)
    return ArtCapability(
        attack=name,
        short=name,
        norms=norms,
        kind="budget" if budget else "minimal",
        fills=fills,
        options=options,
        defect=_REMARK,
    )


@cache
def _of_foolbox(name: str) -> Capability:
    foolbox = load("foolbox", "foolbox")
    kind = getattr(foolbox.attacks, name)
    fixed, minimal = foolbox.attacks.base.FixedEpsilonAttack, foolbox.attacks.base.MinimizationAttack
    if not issubclass(kind, fixed | minimal):
        raise UserError(f"foolbox {name} is unlisted, and neither keeps a budget nor minimises: it cannot be called")
    _, options = _parameters(name, kind)
    flexible = issubclass(kind, foolbox.attacks.base.FlexibleDistanceMinimizationAttack)
    norms = NORMS
    if not flexible:
        norms = (_NORM_OF[float(kind().distance.p)],)
    return FoolboxCapability(
        attack=name,
        short=name,
        norms=norms,
        kind="budget" if issubclass(kind, fixed) else "minimal",
        distance=flexible,
        options={key: value for key, value in options.items() if key != "distance"},
        defect=_REMARK,
    )


def _parameters(name: str, kind: type) -> tuple[tuple[Fill, ...], dict[str, Value]]:
    """Arguments that the threat and the batch give, and the others with their defaults.

    Raises:
        UserError: It needs an argument that has no default.
    """
    found = list(inspect.signature(kind).parameters.values())
    named = [each for each in found if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    fills = tuple(each for each in _FILLS if each in {parameter.name for parameter in named})
    options: dict[str, Value] = {}
    for parameter in named:
        if parameter.name in (*fills, "estimator", "classifier", "summary_writer"):
            continue
        if parameter.default is inspect.Parameter.empty:
            raise UserError(f"{name} is unlisted, and cannot be called: its argument {parameter.name} has no default")
        if parameter.default is None or isinstance(parameter.default, bool | int | float | str):
            options[parameter.name] = parameter.default
    return fills, options
