"""Progress of a run: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..planning.plan import Plan
from ..records.home import Home
from ..schema.counts import plural
from .estimate import duration
from .jobs import Certify, Examine, Job, Plant, Train
from .runner import Watch
from .time_left import TimeLeft

QUIET_SECONDS = 10.0
"""Between two lines of progress where there is no terminal."""

LONG = 20.0
"""Seconds after which a task says how long it has been running."""


class Display:
    """Shows a :class:`Watch`; use as a context manager and call it with the watch.

    ``patient``, where there is no terminal it says nothing before :data:`QUIET_SECONDS` have passed.
    """

    def __init__(self, plan: Plan, home: Home, console: Console, *, patient: bool = False) -> None:
        self._home, self._console = home, console
        self._surrogates = {spec.key for spec in plan.crafters}
        self._time = TimeLeft()
        self._loading = True
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
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
        now = time.monotonic()
        self._time.see(watch.running, now)
        while watch.messages:
            self._console.print(watch.messages.popleft(), style="yellow", markup=False, soft_wrap=True)
        if self._live is None and now - self._last < QUIET_SECONDS:
            return
        self._last = now
        totals = {
            "models": (watch.models_done, watch.models),
            "shards": (watch.shards_done, watch.shards),
            "pairs": (watch.cells_done, watch.cells),
        }
        left = self._left(watch, now)
        doing = [self._doing(name, job, now) for name, job in list(watch.running.items())] + _delivery(watch)
        if self._live is None:
            parts = [f"{name} {done}/{total}" for name, (done, total) in totals.items() if total]
            self._console.print("; ".join([*parts, *left, *doing]), markup=False, soft_wrap=True)
            return
        for name, (done, total) in totals.items():
            self._bars.update(self._rows[name], completed=done, total=total, visible=total > 0)
        table = Table.grid(padding=(0, 2))
        for line in left:
            table.add_row(line)
        for line in doing:
            table.add_row(line, style="dim")
        self._live.update(Group(self._bars, table))

    def _left(self, watch: Watch, now: float) -> list[str]:
        if not watch.left:
            return []
        left = self._time.of(watch.left, now)
        self._loading = self._loading and left is None
        if left is None:
            return ["time left: not known yet"]
        word = ("at most" if left.whole else "about") if left.shrinks else ("about" if left.whole else "more than")
        return [f"{word} {_about(left.seconds)} left"]

    def _doing(self, name: str, job: Job, now: float) -> str:
        """What a task does, and for how long if that is long."""
        state = self._state(job.spec.key) if isinstance(job, Train) else {}
        text = _job(job)
        if isinstance(job, Train) and job.spec.key in self._surrogates:
            text = text.replace("train", "train the surrogate", 1)
        if state:
            return f"{text}: {_progress(state)}"
        if self._loading:
            return f"{text}: loading libraries and data"
        spent = self._time.running_for(name, now)
        return f"{text}, for {_about(spent)}" if spent >= LONG else text

    def _state(self, key: str) -> Mapping[str, Any]:
        try:
            state: dict[str, Any] = json.loads((self._home.progress / f"train-{key}.json").read_text())
        except (OSError, ValueError):
            return {}
        return state


def _job(job: Job) -> str:
    match job:
        case Train(spec):
            return f"train {spec}"
        case Examine(probe):
            return f"examine {probe}"
        case Certify(asked):
            return f"certify {asked[0].model}"
        case Plant(planting):
            return f"plant {planting}"
        case _:
            return f"{type(job).__name__.lower()} {job.cell}"


def _delivery(watch: Watch) -> list[str]:
    """What is left when every task has ended: results on their way to their files and to the tracking store."""
    behind = watch.cells - watch.cells_done
    ended = watch.shards > 0 and watch.shards_done == watch.shards and not watch.running
    return [f"record and deliver {plural(behind, 'result')}"] if behind and ended else []


def _about(seconds: float) -> str:
    """Seconds rounded so that what is shown stands still for a while."""
    step = 1 if seconds < 10 else 5 if seconds < 60 else 60
    return duration(max(round(seconds / step) * step, 1) / 3600)


def _progress(state: Mapping[str, Any]) -> str:
    left = (time.time() - state["started"]) / max(state["done"], 1) * (state["total"] - state["done"])
    return f"epoch {state['done']}/{state['total']}, loss {state['loss']:.3g}, accuracy {state['accuracy']:.1%}" + (
        f", about {_about(left)} left" if left >= 1 else ""
    )
