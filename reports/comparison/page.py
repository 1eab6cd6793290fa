"""The HTML page that compares two models on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..boards.curves import curves, distinct
from ..boards.rows import Column, Entry, HeatCell
from ..boards.section import Section
from ..drawing.html import page
from .paired_tests import EntryPair, PairedTest, paired_test


@dataclass(frozen=True)
class ThreatRow:
    """Two entries at one norm and eps.

    Attributes:
        text: The threat in words.
        at_reference: Whether it is the norm's reference eps.
        test: The paired statistics.
        trust: Grades of both, "" where there is none.
    """

    text: str
    at_reference: bool
    test: PairedTest
    trust: tuple[str, str]


@dataclass(frozen=True)
class AttackTable:
    """Robust accuracy of both entries under each attack alone, at one norm and eps."""

    text: str
    worst: tuple[HeatCell, HeatCell]
    rows: Sequence[tuple[Column, HeatCell, HeatCell]]


def render(section: Section, two: EntryPair) -> str:
    """The page as text."""
    norms = [norm for norm in section.norms if two.a.attacked(norm) and two.b.attacked(norm)]
    return page(
        "compare.html.j2",
        title=f"{two.a.name} against {two.b.name} on {section.dataset}",
        up="../",
        section=section,
        two=two,
        threat_rows=[row for norm in norms for row in threat_rows(section, two, norm)],
        charts=curves(section, [two.a, two.b], norms),
        colours=distinct([two.a, two.b]),
        attack_tables=[_attack_table(section, two, norm) for norm in norms],
        doubts=[entry for entry in (two.a, two.b) if any(entry.notes[norm] for norm in norms)],
    )


def threat_rows(section: Section, two: EntryPair, norm: str) -> list[ThreatRow]:
    """The comparison at every eps of a norm."""
    return [
        ThreatRow(
            text=section.threat(norm, eps),
            at_reference=eps == section.reference(norm),
            test=paired_test(section, two.a, two.b, norm, eps),
            trust=(_grade(section, two.a, norm, eps), _grade(section, two.b, norm, eps)),
        )
        for eps in section.budgets[norm]
    ]


def _attack_table(section: Section, two: EntryPair, norm: str) -> AttackTable:
    panel = section.panel(norm, section.reference(norm))
    a, b = (next(row for row in panel.heat if row.entry is entry) for entry in (two.a, two.b))
    rows = [
        (attack, one, other)
        for attack, one, other in zip(panel.columns, a.cells, b.cells, strict=True)
        if (one.state, other.state) != ("absent", "absent")
    ]
    return AttackTable(panel.text, (a.worst, b.worst), rows)


def _grade(section: Section, entry: Entry, norm: str, eps: float) -> str:
    found = (row for _, rows in section.panel(norm, eps).rankings for row in rows if row["entry"] is entry)
    return next(str(row["trust"]) for row in found)
