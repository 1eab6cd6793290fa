"""Every leaderboard as GitHub-flavoured Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..boards.rows import HeatCell, Panel, column
from ..boards.section import Section
from ..comparison.paired_tests import entry_pairs, paired_test
from ..drawing.html import heading
from ..drawing.markdown import code, table
from ..drawing.markdown import escape as md
from ..drawing.text import (
    GRADE_MEANS,
    MISSING,
    band_on,
    integer,
    interval,
    is_number,
    p_text,
    percent,
    planted_text,
    plural,
    points,
    points_interval,
    rank_text,
    spread,
)


def render(sections: Sequence[Section], title: str, command: str) -> str:
    """The file as text: per suite, data set and threat the ranking and the model x attack table."""
    lines = [f"# {md(title)}", ""]
    lines += [
        "Robust accuracy in percent: the share of all images, clean errors included, that no attack broke.",
        "Intervals are Wilson's at 95 % over the images; \u00b1 is the standard deviation over training seeds.",
        f"{MISSING} means that there is no number. A model with a missing, crashed or invalid pair, with trust D or",
        "under some of the suite's attacks only has no rank, and its worst case is an upper bound (\u2264). Models",
        "whose worst cases cannot be told apart from the best of a group share its rank (1=). A band `certified ...",
        "attacked` says what is proved to stand and what no attack broke, of the same images. Success on correct is",
        "the share of the correctly classified images that some attack broke.",
        "",
        "Trust says how far the evaluation can be believed: "
        + "; ".join(f"**{grade}** {means}" for grade, means in GRADE_MEANS.items())
        + ".",
        "",
    ]
    if command:
        lines += [f"Reproduce: {code(command)}", ""]
    if not sections:
        lines += ["No results yet.", ""]
    for section in sections:
        lines += _section(section)
    return "\n".join(lines).rstrip() + "\n"


def _section(section: Section) -> Iterator[str]:
    yield from (f"## {md(section.title)}", "")
    if section.board.targeted:
        left = f", {plural(section.of_target, 'image')} of the target's own class left out" if section.of_target else ""
        yield f"**{heading(md(section.goal))}**: an image is broken only where it is classified as its target{left}."
        yield from (f"Numbers below are the {md(section.measure)}, and **no robust accuracy**.", "")
    for panel in section.panels:
        yield from (f"### {md(panel.text)}", "")
        for n, rows in panel.rankings:
            yield from _ranking(n, rows)
        yield from _heat(panel, section.measure)
    yield from _versus(section)
    for title, lines in (
        ("Failures and invalid results", (*section.failures, *section.cautions)),
        ("Not asked for", section.omissions),
    ):
        if lines:
            yield from (f"### {title}", "")
            yield from table(
                ("model", "seed", "what", "status", "reason"),
                ([md(f.entry), md(f.seed), md(f.what), md(f.status), md(f.reason)] for f in lines),
            )
    yield from ("### Where the numbers come from", "", "<details><summary>Command and run of every pair</summary>", "")
    pairs = (record.pair for entry in section.entries for record in section.records[entry.anchor])
    yield from table(
        ("defense", "architecture", "seed", "attack", "threat", "status", "MLflow run", "command"),
        (
            [
                md(p.result.defense),
                md(p.result.architecture),
                md(p.result.seed),
                md(column(p).name),
                md(section.threat(p.result.norm, p.result.eps)),
                md(p.result.status),
                code(p.run_id) if p.run_id else MISSING,
                code(p.result.command or ""),
            ]
            for p in pairs
        ),
    )
    yield from ("</details>", "")


def _ranking(n: int, rows: Sequence[dict[str, Any]] | Sequence[Any]) -> Iterator[str]:
    if n:
        yield from (f"n = {integer(n)} images", "")
    head = (
        "rank",
        "defense",
        "architecture",
        "clean",
        "worst case",
        "trust",
        "planted",
        "95 % interval",
        "success on correct",
        "seeds",
    )
    proved = [row.get("certified_n") or row.get("certificate") for row in rows]
    bands = [[band_on(row, n)] if any(proved) else [] for row in rows]
    last = ("strongest attack", "certified ... attacked")[: 1 + any(proved)]
    lines = ([*_ranking_row(row), *band] for row, band in zip(rows, bands, strict=True))
    yield from table((*head, *last), lines, "rllrrlrrrrlr"[: len(head) + len(last)])
    notes = [f"- {md(row['entry'].name)} has no rank: {md(row['note'])}" for row in rows if row["note"]]
    notes += [
        f"- {md(row['entry'].name)} has trust {row['trust']}: {md(row['trust_reasons'])}"
        for row in rows
        if row["trust"] in ("B", "C", "D")
    ]
    notes += [
        f"- {md(row['entry'].name)}, certificate: {md(row['certificate'])}"
        for row in rows
        if row.get("certificate") and row["certificate"] not in row["note"]
    ]
    notes += [f"- {md(row['entry'].name)}: {md(row['withheld'])}" for row in rows if row.get("withheld")]
    if notes:
        yield from (*notes, "")


def _ranking_row(row: Any) -> list[str]:
    entry = row["entry"]
    worst = spread(row.get("worst_case_accuracy"), row.get("std"))
    return [
        rank_text(row["rank"], row["shared"]),
        md(entry.defense),
        md(entry.architecture),
        spread(row.get("clean_accuracy"), row.get("clean_std")),
        f"\u2264 {worst}" if row["note"] and worst != MISSING else worst,
        row["trust"] or MISSING,
        planted_text(row),
        md(interval(row.get("worst_case_low"), row.get("worst_case_high"))),
        percent(row.get("success_on_correct")),
        integer(row.get("seeds")) if worst != MISSING else MISSING,
        md(row.get("strongest_attack") or MISSING),
    ]


def _versus(section: Section) -> Iterator[str]:
    """Pairs of models at every norm's reference eps."""
    pairs = entry_pairs(section)
    for norm in section.norms:
        eps = section.reference(norm)
        here = [two for two in pairs if two.a.attacked(norm) and two.b.attacked(norm)]
        if not here:
            continue
        yield from (f"### Who is significantly better, {md(section.threat(norm, eps))}", "")
        yield "Differences of the worst cases in percentage points, on the same images; an exact paired test, not"
        yield from ("corrected for the number of comparisons.", "")
        found = [paired_test(section, two.a, two.b, norm, eps) for two in here]
        yield from table(
            ("a", "b", "a minus b", "95 % interval", "p", "in words"),
            (
                [
                    md(two.a.name),
                    md(two.b.name),
                    points(one.numbers.difference),
                    md(points_interval(one.numbers.low, one.numbers.high)),
                    md(p_text(one.numbers.p_value)),
                    md(one.words),
                ]
                for two, one in zip(here, found, strict=True)
            ),
            "llrrrl",
        )


def _heat(panel: Panel, measure: str) -> Iterator[str]:
    if not panel.columns:
        return
    heads = [md(attack.name) + (" (control)" if attack.control else "") for attack in panel.columns]
    yield from (f"{heading(md(measure))} under each attack alone, {panel.text}", "")
    yield from table(
        ("defense", "architecture", "worst case", *heads),
        (
            [md(row.entry.defense), md(row.entry.architecture), *map(_heat_text, (row.worst, *row.cells))]
            for row in panel.heat
        ),
        "ll" + "r" * (len(heads) + 1),
    )


def _heat_text(cell: HeatCell) -> str:
    if cell.value is not None and is_number(cell.value):
        return ("\u2264 " if cell.state == "bound" else "") + percent(cell.value)
    if cell.state == "cascade":
        return f"cascade, broke {md(cell.text)}"
    return f"**{md(cell.text)}**" if cell.state == "failed" else f"{MISSING} ({md(cell.text)})"
