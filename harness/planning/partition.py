"""Split a plan into n disjoint parts, for a Slurm array or a CI matrix. Pure: no I/O."""

from __future__ import annotations

import dataclasses
from itertools import accumulate, groupby
from typing import Any, Final

from ..errors import UserError
from .plan import Plan, with_parents
from .specs import Cell

SLACK: Final = 0.1
"""How far the end of a part may move to keep a model's pairs together, as a share of what a part holds on average."""


def parse_part(text: str) -> tuple[int, int]:
    """Read ``i/n``.

    Raises:
        UserError: Not two whole numbers with 1 <= i <= n.
    """
    number, slash, of = text.strip().partition("/")
    whole = all(part.isascii() and part.isdecimal() and len(part) < 10 for part in (number, of))
    if not (slash and whole and 1 <= int(number) <= int(of)):
        raise UserError(f"a part is written i/n with 1 <= i <= n, such as 2/8; got {text!r}")
    return int(number), int(of)


def take_part(plan: Plan, number: int, of: int) -> Plan:
    """The share of a plan that one of several independent runs takes: part 1 ... ``of``; some are empty.

    Decided by identities alone: every machine comes to the same shares, in whatever order models were asked for. Parts
    hold equally many pairs, give or take :data:`SLACK`; pairs of one model stay together as far as that allows, and so
    do models that share their transfers' source or what they are built upon. A cascade is a chain and is never cut. A
    part trains what its own pairs need: their models, what those are built upon, and the sources of their transfers. A
    model is looked at (:class:`~harness.planning.specs.Probe`, ``Planting``) and certified where its first pair is.

    Raises:
        ValueError: ``number`` is not in 1 ... ``of``.
    """
    if not 1 <= number <= of:
        raise ValueError(f"there is no part {number} of {of}")
    cells = sorted(plan.cells, key=_place)
    start, stop = (_cut(cells, k, of) for k in (number - 1, number))
    mine = {cell.key for cell in cells[start:stop]}
    firsts: dict[str, str] = {}
    for cell in cells:
        firsts.setdefault(cell.victim.key, cell.key)
    kept = [cell for cell in plan.cells if cell.key in mine]
    # whoever has no pair at all is looked at in the first part
    here = mine if number > 1 else {*mine, None}
    probes = tuple(look for look in plan.probes if firsts.get(look.model.key) in here)
    certifications, screens = (
        tuple(one for one in each if firsts.get(one.model.key) in here) for each in (plan.certifications, plan.screens)
    )
    idle = [spec for spec in plan.models if number == 1 and spec.key in plan.ranked and spec.key not in firsts]
    judged = {spec.key: spec for spec in [*idle, *(cell.victim for cell in kept), *(look.model for look in probes)]}
    crafters = {cell.crafter.key: cell.crafter for cell in kept}
    needed = with_parents({**judged, **crafters})
    ranked = frozenset(judged) & plan.ranked
    return dataclasses.replace(
        plan,
        models=tuple(spec for spec in plan.models if spec.key in needed),
        ranked=ranked,
        cells=tuple(kept),
        battery=tuple(cell for cell in plan.battery if cell.victim.key in ranked),
        probes=probes,
        certifications=certifications,
        screens=screens,
        plantings=tuple(look for look in plan.plantings if firsts.get(look.model.key) in here),
    )


def _place(cell: Cell) -> tuple[Any, ...]:
    """Where a pair stands in the order that is cut into parts: what shares work stands together."""
    victim = cell.victim
    source = cell.source.key if cell.source is not None else ""
    return victim.dataset, victim.architecture, victim.seed, victim.root.key, victim.key, source, cell.key


def _cut(cells: list[Cell], k: int, of: int) -> int:
    """Position at which part k ends: a k-th of all pairs, or the end of a model if that is near."""
    fair = (len(cells) * k + of // 2) // of
    groups = groupby(cells, key=lambda cell: cell.victim.key)
    ends = [0, *accumulate(sum(1 for _ in group) for _, group in groups)]
    nearest = min(ends, key=lambda end: (abs(end - fair), end))
    chained = any(cell.cascaded for cell in cells)
    return nearest if chained or abs(nearest - fair) <= SLACK * len(cells) / of else fair
