"""The page of two models against each other, on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .boards.curves import curves
from .boards.rows import Column, Entry, HeatCell
from .boards.section import Section
from .contrasts import Contrast, Duel, contrasted
from .drawing.html import page
from .drawing.text import threat_text


@dataclass(frozen=True)
class Bout:
    """Two entries at one norm and eps.

    Attributes:
        text: The threat in words.
        at_reference: Whether it is the norm's reference eps.
        contrast: The paired statistics.
        trust: Grades of both, "" where there is none.
    """

    text: str
    at_reference: bool
    contrast: Contrast
    trust: tuple[str, str]


@dataclass(frozen=True)
class Weapons:
    """Robust accuracy of both entries under each attack alone, at one norm and eps."""

    text: str
    worst: tuple[HeatCell, HeatCell]
    rows: Sequence[tuple[Column, HeatCell, HeatCell]]


def render(section: Section, duel: Duel) -> str:
    """The page as text."""
    norms = [norm for norm in section.norms if duel.a.attacked(norm) and duel.b.attacked(norm)]
    return page(
        "compare.html.j2",
        title=f"{duel.a.name} against {duel.b.name} on {section.dataset}",
        up="../",
        section=section,
        duel=duel,
        bouts=[bout for norm in norms for bout in bouts(section, duel, norm)],
        charts=curves(section, [duel.a, duel.b], norms),
        weapons=[_weapons(section, duel, norm) for norm in norms],
        doubts=[entry for entry in (duel.a, duel.b) if any(entry.notes[norm] for norm in norms)],
        norms=norms,
    )


def bouts(section: Section, duel: Duel, norm: str) -> list[Bout]:
    """The comparison at every eps of a norm."""
    return [
        Bout(
            text=threat_text(norm, eps, section.levels),
            at_reference=eps == section.reference(norm),
            contrast=contrasted(section, duel.a, duel.b, norm, eps),
            trust=(_grade(section, duel.a, norm, eps), _grade(section, duel.b, norm, eps)),
        )
        for eps in section.budgets[norm]
    ]


def _weapons(section: Section, duel: Duel, norm: str) -> Weapons:
    panel = section.panel(norm, section.reference(norm))
    a, b = (next(row for row in panel.heat if row.entry is entry) for entry in (duel.a, duel.b))
    rows = [
        (attack, one, other)
        for attack, one, other in zip(panel.columns, a.cells, b.cells, strict=True)
        if (one.state, other.state) != ("absent", "absent")
    ]
    return Weapons(panel.text, (a.worst, b.worst), rows)


def _grade(section: Section, entry: Entry, norm: str, eps: float) -> str:
    found = (row for _, rows in section.panel(norm, eps).rankings for row in rows if row["entry"] is entry)
    return next(str(row["trust"]) for row in found)
