"""The first HTML page: every suite and data set with its rankings, curves, costs, pictures and failures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ..boards.curves import curves
from ..boards.rows import Entry, column
from ..boards.section import Section
from ..comparison.paired_tests import matrices
from ..drawing.html import page
from ..drawing.text import days_text
from .gallery import PER_SECTION, PER_STRIP, AttackedImage, choose, pictures


@dataclass(frozen=True)
class GalleryRow:
    """A row of the gallery: one model under one attack."""

    entry: Entry
    attack: str
    threat: str
    seed: int
    anchor: str
    pictures: Sequence[AttackedImage]


def render(sections: Sequence[Section], title: str, command: str) -> str:
    """The page as text.

    Args:
        sections: What to show, see :func:`reports.boards.section.sections`.
        title: Heading and window title.
        command: What reproduces the whole report, "" to leave it out.
    """
    days = days_text(pair.result.made for section in sections for pair in section.pairs)
    return page(
        "report.html.j2",
        title=title,
        days=days,
        up="",
        command=command,
        sections=sections,
        charts={section.anchor: curves(section, section.attacked, section.norms) for section in sections},
        matrices={
            section.anchor: [matrix for norm in section.norms for matrix in matrices(section, norm)]
            for section in sections
        },
        strips={section.anchor: strips(section) for section in sections},
        environments=environments(sections),
    )


def strips(section: Section) -> list[tuple[str, list[GalleryRow]]]:
    """Per norm the gallery: for every model the attack that broke most at the reference eps, on its first images."""
    per_strip = max(1, min(PER_STRIP, PER_SECTION // max(1, len(section.attacked) * len(section.norms))))
    found = []
    for norm in section.norms:
        rows = []
        for entry in section.attacked:
            pair = choose(entry.pairs, norm, section.reference(norm))
            shown = pictures(pair, per_strip) if pair else []
            if pair and shown:
                anchor = next(r.anchor for r in section.records[entry.anchor] if r.pair is pair)
                threat = section.threat(norm, pair.result.eps)
                rows.append(GalleryRow(entry, column(pair).name, threat, pair.result.seed, anchor, shown))
        if rows:
            found.append((norm, rows))
    return found


def environments(sections: Sequence[Section]) -> list[tuple[dict[str, str], str, int]]:
    """Distinct (versions, commit) behind the pairs, each with its number of pairs, most first."""
    found: dict[str, int] = {}
    for section in sections:
        for pair in section.pairs:
            versions = {str(name): str(value) for name, value in pair.result.versions.items()}
            key = json.dumps([versions, pair.result.git_commit], sort_keys=True)
            found[key] = found.get(key, 0) + 1
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return [(*json.loads(key), count) for key, count in ordered]
