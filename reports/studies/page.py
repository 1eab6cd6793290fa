"""The HTML page of a study."""

from __future__ import annotations

from collections.abc import Mapping

from harness.studies.record import StudyRecord

from ..drawing.html import page
from .today import judgement_table, unjudged
from .values import BASES, CLAUSE_MEANINGS, DECIDING, INTERVALS, MARKS, MEANINGS, VALUE_MEANINGS, amount, margin, span
from .view import claim_views, claims_on, deciding, item_views, on, provenance, remaining, tally


def render(record: StudyRecord, grids: Mapping[str, str]) -> str:
    """The page as text.

    Args:
        record: What is shown.
        grids: Image grids as SVG, by item.
    """
    claims = claim_views(record)
    return page(
        "study.html.j2",
        title=f"{record.study.title}: reproduced",
        study=record.study,
        facts=record.facts,
        caveat=record.caveat,
        tally=tally(record),
        claims=claims,
        claims_on=lambda one: claims_on(one.item, claims),
        items=item_views(record),
        grids=grids,
        judged=judgement_table(record),
        skipped=record.facts["skipped"],
        unjudged=unjudged(record),
        choices=[
            (choice, [(name, record.effect(choice, name, value)) for name, value in choice.effects])
            for choice in record.study.choices
        ],
        declared=record.facts.get("declared", {}),
        deciding=deciding(record),
        how_decided=DECIDING,
        on=on(record.facts),
        provenance=provenance(record.facts),
        remaining=lambda one, row: remaining(record, one.item, row),
        marks=MARKS,
        meanings=MEANINGS,
        clause_meanings=CLAUSE_MEANINGS,
        value_meanings=VALUE_MEANINGS,
        intervals=INTERVALS,
        amount=amount,
        margin=margin,
        bases=BASES,
        span=span,
    )
