"""All reproduced papers in one table, from their records."""

from __future__ import annotations

from collections.abc import Mapping

from harness.studies.deciding import remedies
from harness.studies.record import StudyRecord

from ..drawing.markdown import escape as md
from ..drawing.markdown import table
from ..drawing.text import MISSING, eps_text, interval, norm_name, percent
from .view import outlook

ENOUGH = 100
"""Images that a statement about today's attacks takes."""


def summary(records: Mapping[str, StudyRecord], folder: str) -> str:
    """A Markdown table, a row per record, by name and with a link to its own page in ``folder``.

    Claims, clauses and printed values by verdict; what would decide those that are open; what today's batteries leave
    of the model that stands best at the smallest budget; what was spent.
    """
    heads = (
        "study, profile", "claims that hold", "claims refuted", "undecided", "printed values", "to decide the rest",
        "today's attacks leave at most", "seeds, core-hours",
    )  # fmt: skip
    return "\n".join(table(heads, (_row(*one, folder) for one in records.items())))


def _row(name: str, record: StudyRecord, folder: str) -> list[str]:
    verdicts = {claim.name: record.verdict(claim) for claim in record.study.claims}
    values, apart, clauses = record.counts()
    own = ", ".join(f"{count} {name}" for name, count in values.items() if count)
    aside = sum(sum(counts.values()) for counts in apart.values())
    open_ = clauses["undecided"] + clauses["not run"]
    hours = (record.facts["training_seconds"] + record.facts["attack_seconds"]) / 3600
    return [
        f"[{name}]({folder}/{name}/study-{record.study.name}.md), {record.facts['profile']}",
        *(
            "<br>".join(name for name, verdict in verdicts.items() if verdict == wanted) or MISSING
            for wanted in ("held", "refuted")
        ),
        f"{open_} of {sum(clauses.values())} clauses",
        (own or "none printed") + (f"; {aside} counted apart" if aside else ""),
        _rest(record),
        _best(record),
        f"{len(record.facts['seeds'])}, {hours:.1f}",
    ]


def _rest(record: StudyRecord) -> str:
    """How much of what is open a run is foreseen to decide, and what that takes beyond what was run."""
    found = remedies(record)
    if not found:
        return MISSING
    sizes = [one for one in found if one.size is not None]
    if not sizes or any(one.hours is None for one in sizes):
        return outlook(found)
    return f"{outlook(found)}; at most {sum(one.hours or 0 for one in sizes):.1f} core-hours"


def _best(record: StudyRecord) -> str:
    found = []
    if len(record.judgement) and record.judgement["n"].max() < ENOUGH:
        return f"{record.judgement['n'].max()} images: too few to say"
    for norm, group in sorted(record.judgement.groupby("norm"), key=lambda part: part[0] != "linf"):
        near = group[group["eps"] == group["eps"].min()].sort_values("worst_case_accuracy")
        one = near.iloc[-1]
        left = ("\u2264 " if one["note"] else "") + percent(one["worst_case_accuracy"])
        where = f"{norm_name(str(norm))} {eps_text(float(one['eps']))}"
        ends = md(interval(one["worst_case_low"], one["worst_case_high"]))
        found.append(f"{where}: {left} % {ends} of {one['n']} ({md(str(one['model']))})")
    return "<br>".join(found) or MISSING
