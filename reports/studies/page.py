"""The HTML page of a study."""

from __future__ import annotations

from harness.studies.findings import Outcome

from ..drawing.html import page
from .values import MARKS, MEANINGS, amount, span
from .view import claim_views, item_views, judgement_table, remaining, tally


def render(outcome: Outcome) -> str:
    """The page as text."""
    findings = outcome.findings
    study = findings.study
    frame = outcome.judgement
    return page(
        "study.html.j2",
        title=f"{study.title}: reproduced",
        study=study,
        facts=outcome.facts,
        tally=tally(outcome),
        claims=claim_views(findings),
        items=item_views(outcome),
        judgement_table=judgement_table(outcome),
        judged_images=int(frame["n"].max()) if len(frame) else 0,
        judged_seeds=int(frame["seeds"].max()) if len(frame) else 0,
        skipped=outcome.facts["skipped"],
        choices=[
            (choice, [(name, findings.value(choice.topic, value)) for name, value in choice.effects])
            for choice in study.choices
        ],
        declared=outcome.declared,
        remaining=lambda one, row: remaining(outcome, one.item, row),
        marks=MARKS,
        meanings=MEANINGS,
        amount=amount,
        span=span,
    )
