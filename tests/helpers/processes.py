"""Processes as Linux tells of them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from harness.execution.fork_server import WORKER


def workers(session: int, name: str = WORKER) -> list[int]:
    """Numbers of the workers of a session that have not ended, or of what else has a name."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            called, _, fields = (entry / "stat").read_text().partition(" (")[2].rpartition(") ")
            state, _, _, of = fields.split()[:4]
            if called == name and int(of) == session and state not in "ZX":
                found.append(int(entry.name))
    return found
