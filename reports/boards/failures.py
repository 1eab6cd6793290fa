"""Failures that cost a model its rank, cautions about pairs that count, and what nobody asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..drawing.text import percent, plural
from .results import SuiteResults
from .rows import Entry, Failure, Record

MOSTLY: Final = 0.5
"""Share of unchanged images above which an attack with a budget is pointed out."""


def failures(results: SuiteResults) -> list[Failure]:
    """Failed models, pairs that did not run, crashed and invalid pairs."""
    found = []
    for key, model in results.known.items():
        name, seed = f"{model.defense} / {model.architecture}", str(model.seed)
        labels = results.board.missing.get(key, ())
        error = model.error
        if model.status == "failed" or error:
            what = f"training, so {plural(len(labels), 'pair')} did not run" if labels else "training"
            found.append(Failure(name, seed, what, "failed", _first_line(error), _more(error)))
        else:
            found += [Failure(name, seed, str(label), "not run", "no record") for label in labels]
    for entry in results.entries:
        for record in results.records[entry.anchor]:
            errors = record.pair.result.errors
            if record.failed or errors or record.problem:
                reason = "; ".join(filter(None, [record.problem, *dict.fromkeys(map(_first_line, errors))]))
                status = record.pair.result.status if record.failed else "noted"
                found.append(_failure(results, entry, record, status, reason, errors))
    return found


def cautions(results: SuiteResults) -> list[Failure]:
    """Pairs that count, of an attack with a budget that gave back most images as they were."""
    found = []
    for entry in results.entries:
        for record in results.records[entry.anchor]:
            result = record.pair.result
            idle = result.kind != "budget" or record.column.control or not result.eps
            if idle or record.failed or record.unchanged <= MOSTLY:
                continue
            reason = f"{percent(record.unchanged)} % of the attacked images came back unchanged"
            found.append(_failure(results, entry, record, "caution", reason))
    return found


def omissions(results: SuiteResults) -> list[Failure]:
    """What the suite holds and nobody asked of a model, a line per model and kind."""
    board, found = results.board, []
    for key, model in results.known.items():
        name, seed = f"{model.defense} / {model.architecture}", str(model.seed)
        unasked, left_out = board.unasked.get(key, ()), board.left_out.get(key, ())
        if unasked:
            total = len(board.by_model.get(key, ())) + len(board.missing.get(key, ())) + len(unasked)
            what = f"{len(unasked)} of the suite's {plural(total, 'pair')}"
            found.append(Failure(name, seed, what, "not asked", ", ".join(unasked)))
        if left_out:
            what = plural(len(left_out), "attack")
            found.append(Failure(name, seed, what, "left out", "on purpose: " + ", ".join(left_out)))
    return found


def _failure(
    results: SuiteResults, entry: Entry, record: Record, status: str, reason: str, errors: Sequence[str] = ()
) -> Failure:
    result = record.pair.result
    what = f"{record.column.name}, {results.threat(result.norm, result.eps)}"
    return Failure(entry.name, str(result.seed), what, status, reason, errors, record)


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines and lines[0].startswith("Traceback") else (lines[0] if lines else "no message")


def _more(text: str) -> list[str]:
    return [text] if len(text.strip().splitlines()) > 1 else []
