"""GitHub-flavoured Markdown: escaped text, inline code, tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from harness.errors import visible

from .text import MISSING


def escape(text: Any) -> str:
    """Text that GitHub-flavoured Markdown shows as it is, in a table cell too."""
    flat = visible(" ".join(str(text).split()))
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    flat = re.sub(r"([\\`*\[\]|~])", r"\\\1", flat)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", flat)  # inside a word an underscore means nothing


def code(text: Any) -> str:
    """Text as inline code; as an element because backticks cannot hold pipes and backticks in a table."""
    flat = visible(" ".join(str(text).split())) or MISSING
    for char, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("`", "&#96;")):
        flat = flat.replace(char, entity)
    return "<code>" + re.sub(r"([\\*_~\[\]])", lambda match: f"&#{ord(match[1])};", flat) + "</code>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> Iterator[str]:
    """Lines of a table, with an empty one at its end; ``align`` has a letter ``l`` or ``r`` for each column."""
    align = align or "l" * len(head)
    assert len(align) == len(head), f"{len(align)} alignments of {len(head)} columns: no table"
    marks = {"r": "---:", "l": "---"}
    yield "| " + " | ".join(head) + " |"
    yield "| " + " | ".join(marks[side] for side in align) + " |"
    for row in rows:
        assert len(row) == len(head), f"{len(row)} entries in {len(head)} columns: no table"
        yield "| " + " | ".join(row) + " |"
    yield ""
