"""Leaderboards as CSV, Markdown and one self-contained page, from frames alone: no torch, no toolkit, no MLflow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from harness.metrics import LEADERBOARD_COLUMNS, PAIR_COLUMNS, Board, leaderboard, pair_rows

from . import html, markdown, tables

__all__ = ["write"]


def write(
    boards: Sequence[Board], out: Path, *, title: str = "Adversarial robustness report", command: str = ""
) -> list[Path]:
    """Write ``leaderboard.csv``, ``pairs.csv``, ``leaderboard.md`` and ``index.html`` into a directory.

    The same boards give the same bytes. Each file is replaced as a whole.

    Args:
        boards: What to report, one board a suite; none gives a report that says so.
        out: Directory, made if it does not exist.
        title: Heading of the page and of the Markdown file.
        command: Command that reproduces the report; left out if empty.

    Returns:
        The files written, the page last.

    Raises:
        OSError: ``out`` cannot be written to.
    """
    frames = [leaderboard(board) for board in boards]
    sections = tables.sections(boards, frames)
    contents = {
        "leaderboard.csv": _csv(frames, LEADERBOARD_COLUMNS),
        "pairs.csv": _csv([pair_rows(board) for board in boards], PAIR_COLUMNS),
        "leaderboard.md": markdown.render(sections, title, command),
        "index.html": html.render(sections, title, command),
    }
    out.mkdir(parents=True, exist_ok=True)
    return [_replace(out / name, content) for name, content in contents.items()]


def _csv(frames: Sequence[pd.DataFrame], columns: Sequence[str]) -> str:
    filled = [frame for frame in frames if len(frame)]  # an empty frame would spoil the others' types
    frame = pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=list(columns))
    return str(frame.to_csv(index=False, columns=list(columns), lineterminator="\n"))


def _replace(path: Path, content: str) -> Path:
    """Write beside, then rename: a reader never sees half a file."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(content, encoding="utf-8", newline="\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
