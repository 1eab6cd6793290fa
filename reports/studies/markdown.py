"""The Markdown file of a study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.studies.findings import Finding, Outcome

from ..drawing.markdown import code, table
from ..drawing.markdown import escape as md
from ..drawing.text import MISSING, eps_text, integer, interval, norm_name, percent
from .values import MARKS, MEANINGS, amount, span
from .view import ItemView, Remaining, claim_views, item_views, judgement_table, remaining


def render(outcome: Outcome, figures: dict[str, str]) -> str:
    """The file as text.

    Args:
        outcome: What is shown.
        figures: File of each figure beside this one, by item.
    """
    study, facts = outcome.findings.study, outcome.facts
    lines = [f"# {md(study.title)}", "", f"{md(study.source)}, reproduced. Reproduce: {code(facts['command'])}", ""]
    lines += [
        f"Profile **{md(facts['profile'])}** on {md(facts['dataset'])}: {md(facts['summary'])}. Seeds "
        f"{', '.join(map(str, facts['seeds']))}; {integer(facts['samples'])} images per cell.",
        "",
        f"A cell reads: measured [95 % interval] (printed), and {MARKS['reproduced']} reproduced, "
        f"{MARKS['same direction']} same direction, {MARKS['not reproduced']} not reproduced.",
        "",
    ]
    lines += [*_claims(outcome)]
    for one in item_views(outcome):
        lines += [*_item(outcome, one, figures.get(one.item.name, ""))]
    lines += [*_today(outcome), *_choices(outcome), *_run(outcome)]
    return "\n".join(lines).rstrip() + "\n"


def _claims(outcome: Outcome) -> Iterator[str]:
    claims = claim_views(outcome.findings)
    if not claims:
        return
    yield from ("## Claims", "")
    yield from table(
        ("claim", "where", "verdict", "comparisons"),
        (
            [
                md(one.claim.text),
                md(one.claim.where),
                f"{MARKS[one.verdict]} {one.verdict}",
                "<br>".join(
                    f"{MARKS[c.verdict]} {md(c.row)}: {amount(c.estimate.mean, c.unit)}{c.unit} {md(c.metric)}"
                    + (f" ({md(c.note)})" if c.note else "")
                    for c in one.clauses
                ),
            ]
            for one in claims
        ),
    )
    yield from (f"- {MARKS[name]} **{name}**: {means}" for name, means in MEANINGS.items())  # type: ignore[index]
    yield ""


def _item(outcome: Outcome, one: ItemView, figure: str) -> Iterator[str]:
    values, name = one.table, one.item.name.replace("-", " ").capitalize()
    yield from (f"## {md(name)}: {md(one.item.title)}", "", md(f"{one.item.where}. {one.item.note}".strip()), "")
    if figure:
        yield from (f"![{md(one.item.title)}]({figure})", "")
    if not values.rows:
        if not figure:
            yield from ("Not run in this profile.", "")
        return
    left = {row: remaining(outcome, one.item, row) if one.chart is None else [] for row in values.rows}
    heads, align = ["", *map(md, values.columns)], "l" + "r" * len(values.columns)
    rows = [[md(row), *(_cell(values.cells.get((row, column))) for column in values.columns)] for row in values.rows]
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


def _cell(finding: Finding | None) -> str:
    if finding is None:
        return MISSING
    parts = [f"**{amount(finding.estimate.mean, finding.unit)}**{finding.unit}"]
    if finding.estimate.measured and span(finding):
        parts.append(md(span(finding)))
    if finding.printed is not None:
        parts.append(f"({amount(finding.printed, finding.unit)})")
    return " ".join([*parts, MARKS[finding.verdict]]).rstrip()


def _today(outcome: Outcome) -> Iterator[str]:
    found = judgement_table(outcome)
    if not found.rows:
        return
    yield from ("## What today's attacks leave", "")
    yield "Accuracy in percent that all attacks of the batteries together leave, image by image, with its 95 % interval"
    yield from ("over images.", "")
    heads = ["model", "clean", *(f"{norm_name(norm)} {eps_text(eps)}" for norm, eps in found.columns), "trust"]
    rows = []
    for name, clean, cells, trust in found.rows:
        texts = []
        for where in found.columns:
            one = cells.get(where)
            bound = "\u2264 " if one is not None and one["note"] else ""
            texts.append(
                MISSING
                if one is None
                else f"{bound}{percent(one['worst_case_accuracy'])} "
                + md(interval(one["worst_case_low"], one["worst_case_high"]))
            )
        grades = " ".join(f"{norm_name(norm)} {one['trust'] or MISSING}" for norm, one in trust.items())
        rows.append([md(name), percent(clean), *texts, grades])
    yield from table(heads, rows, "l" + "r" * (len(heads) - 2) + "l")
    yield from ("<details><summary>Why the trust is not higher</summary>", "")
    for name, _, _, trust in found.rows:
        for norm, one in trust.items():
            if one["note"] or one["trust_reasons"]:
                yield f"- {md(name)}, {norm_name(norm)}: {md(one['note'] or one['trust_reasons'])}"
    yield from ("", "</details>", "")
    if outcome.facts["skipped"]:
        yield f"Not judged in this profile, being too slow for it: {md(', '.join(outcome.facts['skipped']))}"
    yield ""


def _choices(outcome: Outcome) -> Iterator[str]:
    findings = outcome.findings
    if not findings.study.choices:
        return
    yield from ("## What the paper leaves open", "")
    rows = []
    for choice in findings.study.choices:
        effects = []
        for name, value in choice.effects:
            found = findings.value(choice.topic, value)
            printed = "" if found.printed is None else f" (printed {amount(found.printed, found.unit)})"
            effects.append(f"{md(name)}: {amount(found.estimate.mean, found.unit)}{printed}")
        rows.append([md(choice.topic), md(choice.choice), md(choice.reason), "<br>".join(effects) or MISSING])
    yield from table(("open", "here", "why", "what another choice gives"), rows)


def _run(outcome: Outcome) -> Iterator[str]:
    facts = outcome.facts
    yield from ("## How it was run", "")
    yield f"- {integer(facts['models'])} models, {integer(facts['pairs'])} model-attack pairs; training "
    yield f"  {integer(facts['training_seconds'])} s, attacks {integer(facts['attack_seconds'])} s of one core"
    if facts["commits"]:
        yield f"- measured at {', '.join(map(code, facts['commits']))}"
    yield "- " + ", ".join(f"{md(name)} {md(version)}" for name, version in facts["versions"].items())
    over = "Student's t over training seeds, never narrower than over images; with one seed over images"
    yield f"- intervals: {over} (Wilson's for shares)"
    yield from ("", "<details><summary>Every model's declaration</summary>", "")
    yield from table(("model", "declaration"), ([md(name), code(words)] for name, words in outcome.declared.items()))
    yield "</details>"
