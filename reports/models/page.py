"""The HTML page of one model: worst case, trust, attacks, images, classes, comparisons, commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.metrics.pairs import reference

from ..boards.curves import curves
from ..boards.rows import Entry, Panel
from ..boards.section import Section
from ..boards.trust import TrustSummary, trust_summary
from ..comparison.paired_tests import EntryPair, PairedTest, paired_test
from ..drawing.html import page
from ..drawing.text import unbounded
from .attacks import AttackResult, attack_results
from .classes import class_rows, share
from .images import AttackStrip, ImageResults


@dataclass(frozen=True)
class NormView:
    """Everything about an entry in one norm.

    Attributes:
        norm: Of the threat.
        eps: The reference eps.
        text: Both in words.
        trust: Trust, None where nothing is graded.
        images: What happened to the images of the first seed.
        strips: Who broke what, of the first seed, at the reference eps.
        attacks: What each attack did, most images first.
    """

    norm: str
    eps: float
    text: str
    trust: TrustSummary | None
    images: ImageResults
    strips: Sequence[AttackStrip]
    attacks: Sequence[AttackResult]

    @property
    def unbounded(self) -> bool:
        """Whether the threat allows any change, so that distances say nothing."""
        return unbounded(self.norm, self.eps)


def render(
    section: Section, entry: Entry, compared: Sequence[EntryPair], elsewhere: Sequence[tuple[Section, Entry]]
) -> str:
    """The page as text.

    Args:
        section: The suite and data set.
        entry: The model, over its seeds.
        compared: Comparisons that have a page.
        elsewhere: The same model in other sections.
    """
    norms = [norm for norm in section.norms if entry.attacked(norm)]
    seeds = [pairs[0].result.seed for pairs in entry.models.values()]
    return page(
        "model.html.j2",
        title=f"{entry.name} on {section.dataset}",
        up="../",
        section=section,
        entry=entry,
        seeds=seeds,
        clean=_clean(entry),
        worst=[(panel, *row) for panel in section.panels if (row := _row(panel, entry)) is not None],
        views=[_view(section, entry, norm) for norm in norms],
        charts=curves(section, [entry], norms, seeds=True),
        classes=class_rows(section, entry, norms),
        against=[_against(section, entry, two, norms) for two in compared if entry.page in (two.a.page, two.b.page)],
        elsewhere=elsewhere,
    )


def _view(section: Section, entry: Entry, norm: str) -> NormView:
    eps = section.reference(norm)
    images = ImageResults(next(iter(entry.models.values())), norm, section.classes)
    return NormView(
        norm=norm,
        eps=eps,
        text=section.threat(norm, eps),
        trust=trust_summary(section, entry, norm),
        images=images,
        strips=images.strips(eps),
        attacks=attack_results(section, entry, norm, eps),
    )


def _clean(entry: Entry) -> tuple[float, ...] | None:
    """Clean accuracy with the ends of its interval, and the standard deviation over seeds."""
    judged = [reference(pairs).columns["clean_correct"] for pairs in entry.models.values()]
    if not entry.n:
        return None
    std = float(np.std([one.mean() for one in judged], ddof=1)) if len(judged) > 1 else float("nan")
    return (*share(np.stack(judged)), std)


def _row(panel: Panel, entry: Entry) -> tuple[Mapping[str, Any], int] | None:
    """The entry's row of a ranking that it was measured for, and the models that have a rank there."""
    for _, rows in panel.rankings:
        for row in rows:
            if row["entry"] is entry and "n" in row:
                return row, sum(not other["note"] for other in rows)
    return None


def _against(
    section: Section, entry: Entry, two: EntryPair, norms: Sequence[str]
) -> tuple[Entry, str, list[tuple[str, PairedTest]]]:
    """The other entry, the page, and at every norm's reference eps the comparison from this entry's side."""
    other = two.b if entry.page == two.a.page else two.a
    threats = [(norm, section.reference(norm)) for norm in norms if other.attacked(norm)]
    tests = [paired_test(section, entry, other, norm, eps) for norm, eps in threats]
    return other, two.page, [(section.threat(one.norm, one.eps), one) for one in tests]
