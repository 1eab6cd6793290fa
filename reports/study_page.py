"""A study's page, self-contained."""

from __future__ import annotations

from harness.studies.findings import Outcome

from .drawing.html import page
from .study_view import MARKS, MEANINGS, amount, judged, remains, shown, span, tally, todays


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
        claims=judged(findings),
        items=shown(outcome),
        remains=remains(outcome),
        judged_images=int(frame["n"].max()) if len(frame) else 0,
        judged_seeds=int(frame["seeds"].max()) if len(frame) else 0,
        skipped=outcome.facts["skipped"],
        choices=[
            (choice, [(name, findings.value(choice.topic, value)) for name, value in choice.effects])
            for choice in study.choices
        ],
        declared=outcome.declared,
        lefts=lambda one, row: todays(outcome, one, row),
        marks=MARKS,
        meanings=MEANINGS,
        amount=amount,
        span=span,
    )
