"""Progress of a run: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ..planning.plan import Plan
from ..records.home import Home
from .jobs import Certify, Examine, Plant, Train
from .runner import Watch

QUIET_SECONDS = 10.0
"""Between two lines of progress where there is no terminal."""


class Display:
    """Shows a :class:`Watch`; use as a context manager and call it with the watch.

    ``patient``, where there is no terminal it says nothing before :data:`QUIET_SECONDS` have passed.
    """

    def __init__(self, plan: Plan, home: Home, console: Console, *, patient: bool = False) -> None:
        self._plan, self._home, self._console = plan, home, console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._rows = {
            name: self._bars.add_task(name, total=None, visible=False) for name in ("models", "shards", "pairs")
        }
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._last = time.monotonic() if patient else 0.0

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, watch: Watch) -> None:
        """Show the state of the run."""
        while watch.messages:
            self._console.print(watch.messages.popleft(), style="yellow", markup=False, soft_wrap=True)
        totals = {
            "models": (watch.models_done, watch.models),
            "shards": (watch.shards_done, watch.shards),
            "pairs": (watch.cells_done, watch.cells),
        }
        if self._live is None:
            if time.monotonic() - self._last >= QUIET_SECONDS:
                self._last = time.monotonic()
                parts = [f"{name} {done}/{total}" for name, (done, total) in totals.items() if total]
                self._console.print(
                    "; ".join(parts + self._training(watch) + _doing(watch)), markup=False, soft_wrap=True
                )
            return
        for name, (done, total) in totals.items():
            self._bars.update(self._rows[name], completed=done, total=total, visible=total > 0)
        table = Table.grid(padding=(0, 2))
        for line in self._training(watch) or [""]:
            table.add_row(line)
        for line in _doing(watch):
            table.add_row(line, style="dim")
        self._live.update(Group(self._bars, table))

    def _training(self, watch: Watch) -> list[str]:
        """A line for each model in training: epoch, loss, accuracy, time left."""
        lines = []
        for job in list(watch.running.values()):
            if isinstance(job, Train):
                state = self._state(job.spec.key)
                name = f"train {job.spec}"
                lines.append(f"{name}: {_progress(state)}" if state else f"{name}: starting")
        return lines

    def _state(self, key: str) -> Mapping[str, Any]:
        try:
            state: dict[str, Any] = json.loads((self._home.progress / f"train-{key}.json").read_text())
        except (OSError, ValueError):
            return {}
        return state


def _doing(watch: Watch) -> list[str]:
    """A line for each job under way that is no training."""
    lines = []
    for job in list(watch.running.values()):
        if isinstance(job, Examine):
            lines.append(f"examine {job.probe}")
        elif isinstance(job, Certify):
            lines.append(f"certify {job.certifications[0].model}")
        elif isinstance(job, Plant):
            lines.append(f"plant {job.planting}")
        elif not isinstance(job, Train):
            lines.append(f"{type(job).__name__.lower()} {job.cell}")
    return lines


def _progress(state: Mapping[str, Any]) -> str:
    left = (time.time() - state["started"]) / max(state["done"], 1) * (state["total"] - state["done"])
    return (
        f"epoch {state['done']}/{state['total']} loss {state['loss']:.4f} accuracy {state['accuracy']:.1%} "
        f"{max(left, 0):.0f} s left"
    )
