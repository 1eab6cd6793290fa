"""Paired tests of models on the same images: which is significantly better, and when that is open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Final, Literal

import numpy as np

from harness.metrics.comparison import Comparison, contrast, images

from ..boards.rows import Entry
from ..boards.section import Section
from ..drawing import names
from ..drawing.text import both, plural

FEW: Final = 8
"""Models up to which every pair gets a page; beyond, neighbours in rank do."""

Winner = Literal["a", "b", "open", ""]


@dataclass(frozen=True)
class PairedTest:
    """Two entries at one norm and eps.

    Attributes:
        norm: What distances are measured in.
        eps: Budget.
        numbers: The paired statistics.
        winner: Who is significantly better; ``"open"`` if the numbers of a model without a rank would decide; ``""``
            for no significant difference.
        words: The same as a clause.
    """

    norm: str
    eps: float
    numbers: Comparison
    winner: Winner
    words: str


@dataclass(frozen=True)
class EntryPair:
    """Two entries that have a page, ordered by the names of their pages."""

    a: Entry
    b: Entry

    @property
    def page(self) -> str:
        """Name of the page, without the ending."""
        return names.versus(self.a.page, self.b.page)


@dataclass(frozen=True)
class MatrixRow:
    """An entry's line of the matrix: per column the test and the page about it; None on the diagonal."""

    entry: Entry
    cells: Sequence[tuple[PairedTest, str] | None]


@dataclass(frozen=True)
class Matrix:
    """Ranked entries against each other at one norm and eps, in the order of the ranking.

    Attributes:
        text: The threat in words, with the number of images where there are several.
        n: Images.
        rows: A row an entry.
        left_out: Entries without a rank.
    """

    text: str
    n: int
    rows: Sequence[MatrixRow]
    left_out: Sequence[Entry]


def comparable(a: Entry, b: Entry) -> bool:
    """Whether two entries were judged on the same images."""
    judged = [images(pairs) for entry in (a, b) for pairs in entry.models.values()]
    return bool(a.models and b.models) and all(np.array_equal(judged[0], other) for other in judged[1:])


def entry_pairs(section: Section) -> list[EntryPair]:
    """Pairs of entries that get a page: all of them, or the neighbours in rank at each norm's reference eps."""
    entries = [entry for entry in section.attacked if entry.n]
    found: dict[tuple[str, str], EntryPair] = {}
    if len(entries) <= FEW:
        candidates = list(combinations(entries, 2))
    else:
        candidates = [
            duo
            for norm in section.norms
            for _, rows in section.panel(norm, section.reference(norm)).rankings
            for duo in pairwise([row["entry"] for row in rows if row["entry"].n])
        ]
    for duo in candidates:
        a, b = sorted(duo, key=lambda entry: entry.page)
        if (a.page, b.page) not in found and a.n == b.n and comparable(a, b):
            found[a.page, b.page] = EntryPair(a, b)
    return list(found.values())


def paired_test(section: Section, a: Entry, b: Entry, norm: str, eps: float) -> PairedTest:
    """Compare two comparable entries, as :func:`harness.metrics.comparison.compare` does."""
    numbers = contrast(section.stands(a, norm, eps), section.stands(b, norm, eps))
    winner: Winner = ""
    if numbers.significant:
        winner = "a" if numbers.difference > 0 else "b"
    doubtful = [entry for entry in (a, b) if entry.notes[norm]]
    if doubtful and (not winner or (a if winner == "a" else b) in doubtful):
        who = both([entry.name for entry in doubtful])
        return PairedTest(norm, eps, numbers, "open", f"open: what is known of {who} is an upper bound only")
    words = f"{(a if winner == 'a' else b).name} is significantly better" if winner else "no significant difference"
    return PairedTest(norm, eps, numbers, winner, words)


def matrices(section: Section, norm: str) -> list[Matrix]:
    """Who is significantly better at the reference eps, a matrix a number of images."""
    eps = section.reference(norm)
    pages = {frozenset((two.a.page, two.b.page)): two.page for two in entry_pairs(section)}
    found = []
    for n, rows in section.panel(norm, eps).rankings:
        entries = [row["entry"] for row in rows if not row["note"]]
        left_out = [row["entry"] for row in rows if row["note"]]
        if len(entries) > 1 and all(comparable(entries[0], entry) for entry in entries):
            lines = [_row(section, entry, entries, norm, eps, pages) for entry in entries]
            found.append((n, lines, left_out))
    text = section.threat(norm, eps)
    return [Matrix(f"{text}, {plural(one[0], 'image')}" if len(found) > 1 else text, *one) for one in found]


def _row(
    section: Section, entry: Entry, entries: Sequence[Entry], norm: str, eps: float, pages: dict[frozenset[str], str]
) -> MatrixRow:
    cells = []
    for other in entries:
        page = pages.get(frozenset((entry.page, other.page)), "")
        cells.append(None if other is entry else (paired_test(section, entry, other, norm, eps), page))
    return MatrixRow(entry, cells)
