"""The Markdown file of a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from harness.studies.findings import Finding
from harness.studies.record import StudyRecord

from ..drawing.markdown import code, table
from ..drawing.markdown import escape as md
from ..drawing.text import MISSING, integer, is_number, plural
from . import today
from .values import CLAUSE_MEANINGS, DECIDING, INTERVALS, MARKS, VALUE_MEANINGS, ValueTable, amount, margin, span
from .view import (
    ItemView,
    Remaining,
    claim_views,
    deciding,
    item_views,
    on,
    provenance,
    remaining,
    tally,
)


def render(record: StudyRecord, figures: Mapping[str, str]) -> str:
    """The file as text.

    Args:
        record: What is shown.
        figures: File of each figure beside this one, by item.
    """
    study, facts = record.study, record.facts
    found = tally(record)
    values = ", ".join(f"{count} {name}" for name, count in found.values.items()) or "none"
    clauses = ", ".join(f"{count} {name}" for name, count in found.clauses.items()) or "none"
    lines = [
        f"# {md(study.title)}",
        "",
        f"{md(study.source)}, reproduced. Reproduce: {code(facts['command'])}",
        "",
        f"Profile **{md(facts['profile'])}** on {md(on(facts))}: {md(facts['summary'])}. Here: seeds "
        f"{', '.join(map(str, facts['seeds']))}; {integer(facts['samples'])} images per cell.",
        "",
        *((f"**{md(record.caveat[0].upper() + record.caveat[1:])}.**", "") if record.caveat else ()),
        f"- **Printed values**: {values}",
        *(f"- Counted apart, {md(words)}" for words in found.apart),
        f"- **Clauses of claims**: {clauses}",
        "",
        "A cell reads: measured [95 % interval] (printed) and its verdict: "
        + ", ".join(f"{MARKS[name]} {name}" for name in VALUE_MEANINGS if name != "not run")
        + ". An asterisk marks what is counted apart.",
        "",
    ]
    lines += [*_today(record), *_claims(record)]
    for one in item_views(record):
        lines += [*_item(record, one, figures.get(one.item.name, ""))]
    lines += [*_deciding(record), *_choices(record), *_run(record)]
    return "\n".join(lines).rstrip() + "\n"


def _claims(record: StudyRecord) -> Iterator[str]:
    claims = claim_views(record)
    if not claims:
        return
    yield from ("## Claims", "")
    yield from table(
        ("claim", "where", "verdict", "comparisons"),
        (
            [
                md(one.claim.text),
                md(one.claim.where),
                f"{MARKS[one.verdict]} {one.verdict}{' (smoke)' if record.caveat else ''}",
                "<br>".join(map(_clause, one.clauses)),
            ]
            for one in claims
        ),
    )
    yield from (f"- {MARKS[name]} **{name}**: {means}" for name, means in CLAUSE_MEANINGS.items())
    yield from ("", "The intervals of a claim's clauses are corrected for their number (Bonferroni).", "")
    yield from (f"- {MARKS[name]} **{name}** (of a value): {means}" for name, means in VALUE_MEANINGS.items())
    yield ""


def _clause(clause: Finding) -> str:
    words = " ".join(filter(None, (margin(clause), clause.note and f"({clause.note})")))
    return (
        f"{MARKS[clause.verdict]} {md(clause.row)}: {amount(clause.measured, clause.unit)}{clause.unit} "
        f"{md(clause.metric)} {md(words)}"
    ).rstrip()


def _item(record: StudyRecord, one: ItemView, figure: str) -> Iterator[str]:
    values, name = one.table, one.item.name.replace("-", " ").capitalize()
    yield from (f"## {md(name)}: {md(one.item.title)}", "", md(f"{one.item.where}. {one.item.note}".strip()), "")
    if figure:
        yield from (f"![{md(one.item.title)}]({figure})", "")
    if not values.rows:
        if not figure:
            yield from ("Not run in this profile.", "")
        return
    left = {row: remaining(record, one.item, row) if one.chart is None else [] for row in values.rows}
    heads, align = ["", *map(md, values.columns)], "l" + "r" * len(values.columns)
    rows = [[md(row), *(_cell(values, row, column) for column in values.columns)] for row in values.rows]
    if any(left.values()):
        heads, align = [*heads, "today's attacks leave"], align + "l"
        rows = [[*cells, _left(left[row])] for cells, row in zip(rows, values.rows, strict=True)]
    yield from table(heads, rows, align)


def _left(found: Sequence[Remaining]) -> str:
    """What batteries leave of the models of a row."""
    lines = (
        f"{md(one.model)}: "
        + ", ".join(f"{where} {value}{f' ({grade})' if grade else ''}" for where, value, grade in one.parts)
        for one in found
    )
    return "<br>".join(lines) or MISSING


def _cell(values: ValueTable, row: str, column: str) -> str:
    if (quote := values.quoted.get((row, column))) is not None:
        return f"({amount(quote.printed, quote.unit)}, quoted from {md(quote.source)})"
    finding = values.cells.get((row, column))
    if finding is None:
        return MISSING
    parts = [f"**{amount(finding.measured, finding.unit)}**{finding.unit}"]
    if is_number(finding.measured) and span(finding):
        parts.append(md(span(finding)))
    if finding.printed is not None:
        parts.append(f"({amount(finding.printed, finding.unit)})")
    return " ".join([*parts, MARKS[finding.verdict] + ("\\*" if finding.basis != "measured" else "")]).rstrip()


def _today(record: StudyRecord) -> Iterator[str]:
    found = today.judgement_table(record)
    if not found.rows:
        return
    yield from ("## What today's attacks leave", "")
    yield "Accuracy in percent that all attacks of the batteries together leave, image by image, with its 95 % interval"
    yield f"over images: {plural(found.images, 'image')}, {plural(found.seeds, 'seed')}."
    yield ""
    yield from today.markdown(found)
    if record.facts["skipped"]:
        yield f"Not judged in this profile, being too slow for it: {md(', '.join(record.facts['skipped']))}"
    if lacking := today.unjudged(record):
        yield f"Not judged yet by all attacks: {md(', '.join(lacking))}"
    yield ""


def _deciding(record: StudyRecord) -> Iterator[str]:
    found = deciding(record)
    if not found:
        return
    yield from ("## What would decide the rest", "", DECIDING, "")
    heads = ("item or claim", "open", "decided, if nothing moves", "size", "core-hours more", "run")
    rows = [
        [md(one.item), one.open, one.decided, one.size, one.hours, code(one.command) if one.command else ""]
        for one in found
    ]
    yield from table(heads, ([cell or MISSING for cell in row] for row in rows), "lllrrl")


def _choices(record: StudyRecord) -> Iterator[str]:
    if not record.study.choices:
        return
    yield from ("## What the paper leaves open", "")
    rows = []
    for choice in record.study.choices:
        effects = []
        for name, value in choice.effects:
            found = record.effect(choice, name, value)
            printed = "" if found.printed is None else f" (printed {amount(found.printed, found.unit)})"
            effects.append(f"{md(name)}: {amount(found.measured, found.unit)}{found.unit} {md(span(found))}{printed}")
        here = md(choice.choice) + (" **Fitted to print.**" if choice.fitted else "")
        rows.append([md(choice.topic), here, md(choice.reason), "<br>".join(effects) or MISSING])
    yield from table(("open", "here", "why", "what another choice gives"), rows)


def _run(record: StudyRecord) -> Iterator[str]:
    facts = record.facts
    yield from ("## How it was run", "")
    yield f"- {integer(facts['models'])} models, {integer(facts['pairs'])} model-attack pairs; training "
    yield f"  {integer(facts['training_seconds'])} s, attacks {integer(facts['attack_seconds'])} s of one core"
    for name, values in provenance(facts).items():
        yield f"- {name}: {', '.join(map(code, values))}"
    yield "- " + ", ".join(f"{md(name)} {md(version)}" for name, version in facts["versions"].items())
    yield f"- intervals: {INTERVALS}"
    yield from ("", "<details><summary>Every model's declaration</summary>", "")
    declared = facts.get("declared", {})
    yield from table(("model", "declaration"), ([md(name), code(words)] for name, words in declared.items()))
    yield "</details>"
