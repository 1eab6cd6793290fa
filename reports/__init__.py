"""Leaderboards and studies as CSV, Markdown and self-contained pages: from frames alone, without torch or MLflow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from harness.leaderboard import LEADERBOARD_COLUMNS, leaderboard
from harness.metrics.pairs import PAIR_COLUMNS, Board, pair_rows
from harness.records.files import csv_text, write_bytes
from harness.schema.board import BundleEntry
from harness.studies.findings import CLAIM_COLUMNS
from harness.studies.record import JUDGEMENT_COLUMNS, StudyRecord

from .boards.section import Section, sections
from .boards.trust import CHECK_COLUMNS, check_rows
from .bundles import board as bundles_board
from .bundles.standings import threats
from .comparison import page as comparison_page
from .comparison.paired_tests import entry_pairs
from .drawing.html import MARK
from .drawing.png import png
from .drawing.svg import svg
from .models import page as models_page
from .overview import markdown
from .overview import page as overview_page
from .studies import markdown as study_markdown
from .studies import page as study_page
from .studies import today
from .studies.figures import headed, picture_sheet
from .studies.summary import summary
from .studies.view import item_views

__all__ = ["studies_board", "summary", "write", "write_board", "write_study"]

FOLDERS = ("models", "compare")
"""Where pages are that come and go with the models."""


def write(
    boards: Sequence[Board], out: Path, *, title: str = "Adversarial robustness report", command: str = ""
) -> list[Path]:
    """Write a report into a directory.

    ``leaderboard.csv``, ``pairs.csv``, ``checks.csv``, ``leaderboard.md``, a page for every model in ``models/``, for
    pairs of models in ``compare/``, and ``index.html``. The same boards give the same bytes. Each file is replaced as a
    whole; pages in these two folders that an earlier report made and this one does not are removed.

    Args:
        boards: What to report, one board a suite; none gives a report that says so.
        out: Directory, made if it does not exist.
        title: Heading of the page and of the Markdown file.
        command: Command that reproduces the report; left out if empty.

    Returns:
        The files written, ``index.html`` last.

    Raises:
        OSError: ``out`` cannot be written to.
    """
    frames = [leaderboard(board) for board in boards]
    found = sections(boards, frames)
    contents = {
        "leaderboard.csv": csv_text(_frame(frames, LEADERBOARD_COLUMNS)),
        "pairs.csv": csv_text(_frame([pair_rows(board) for board in boards], PAIR_COLUMNS)),
        "checks.csv": csv_text(_frame([check_rows(found)], CHECK_COLUMNS)),
        "leaderboard.md": markdown.render(found, title, command),
        **dict(_pages(found)),
        "index.html": overview_page.render(found, title, command),
    }
    written = _write(out, contents)
    _sweep(out, set(written))
    return written


def write_board(
    entries: Sequence[BundleEntry], out: Path, *, title: str = "Adversarial robustness board"
) -> list[Path]:
    """Write what many bundles say into a directory: ``board.csv``, ``board.md`` and the self-contained ``index.html``.

    The same entries give the same bytes.

    Returns:
        The files written, the page last.

    Raises:
        OSError: ``out`` cannot be written to.
    """
    found = threats(entries)
    contents = {
        "board.csv": csv_text(bundles_board.frame(found)),
        "board.md": bundles_board.markdown(entries, found, title),
        "index.html": bundles_board.render(entries, found, title),
    }
    return _write(out, contents)


def write_study(record: StudyRecord, out: Path) -> list[Path]:
    """Write what a study came to into a directory: its record, and the pages that are made from that alone.

    The record: ``claims.csv``, ``judgement.csv`` (what today's batteries leave), ``environment.json`` (what it was run
    with), ``figures/*.png`` (image grids); :func:`harness.studies.record.read_record` reads it. The pages:
    ``study-NAME.md``, ``study-NAME.html`` (self-contained) and ``figures/*.svg``, which the Markdown file shows. The
    same record gives the same bytes.

    Returns:
        The files written, the page last.

    Raises:
        OSError: ``out`` cannot be written to.
    """
    charts, sheets, grids = {}, dict(record.pictures), {}
    for one in item_views(record):
        name = one.item.name
        if one.chart is not None:
            charts[name] = svg(one.chart)
        if (sheet := picture_sheet(one.item, record.galleries)) is not None:
            sheets[name] = png(sheet)
        if one.item.pictures and name in sheets:
            grids[name] = headed(one.item, sheets[name])
    figures = {name: f"figures/{name}.svg" for name in (*charts, *grids)}
    contents: dict[str, str | bytes] = {
        "claims.csv": _csv([record.frame()], CLAIM_COLUMNS),
        "judgement.csv": _csv([record.judgement], JUDGEMENT_COLUMNS),
        "environment.json": json.dumps(dict(record.facts), indent=2) + "\n",
        **{f"figures/{name}.png": sheet for name, sheet in sheets.items()},
        **{figures[name]: text for name, text in (charts | grids).items()},
        f"study-{record.study.name}.md": study_markdown.render(record, figures),
        f"study-{record.study.name}.html": study_page.render(record, grids),
    }
    return _write(out, contents)


def studies_board(records: Mapping[str, StudyRecord]) -> tuple[str, str]:
    """What today's batteries leave of every model that studies defend: as Markdown, and as a self-contained page.

    Args:
        records: By folder; the page's links are relative to where these are.
    """
    found = today.boards(records)
    return today.board(found), today.render(found, records)


def _pages(sections: Sequence[Section]) -> Iterator[tuple[str, str]]:
    """Name and content of the pages beside the first one."""
    for section in sections:
        pairs = entry_pairs(section)
        for entry in section.entries:
            elsewhere = [
                (other, one)
                for other in sections
                if other is not section and other.dataset == section.dataset
                for one in other.entries
                if (one.architecture, one.defense) == (entry.architecture, entry.defense)
            ]
            yield f"models/{entry.page}.html", models_page.render(section, entry, pairs, elsewhere)
        for two in pairs:
            yield f"compare/{two.page}.html", comparison_page.render(section, two)


def _csv(frames: Sequence[pd.DataFrame], columns: Sequence[str]) -> str:
    return str(_frame(frames, columns).to_csv(index=False, lineterminator="\n"))


def _frame(frames: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    filled = [frame for frame in frames if len(frame)]  # an empty frame would spoil the others' types
    frame = pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=list(columns))
    return frame[list(columns)]


def _write(out: Path, contents: Mapping[str, str | bytes]) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_bytes(out / name, content.encode() if isinstance(content, str) else content)
    return [out / name for name in contents]


def _sweep(out: Path, written: set[Path]) -> None:
    """Remove pages that an earlier report made; files of anybody else stay."""
    for folder in (out / name for name in FOLDERS):
        if folder.is_symlink() or not folder.is_dir():
            continue
        for path in set(folder.glob("*.html")) - written:
            if path.is_file() and MARK in path.read_text(encoding="utf-8", errors="replace")[:2000]:
                path.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()
