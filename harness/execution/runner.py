"""Run a plan: schedule its jobs on workers, record and track finished pairs.

What is on disk decides what is left to do, so the same command again does only what is missing.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Final

from filelock import FileLock, Timeout

from ..errors import UserError, describe
from ..planning.plan import Plan
from ..planning.specs import Cell
from ..records import witnesses as records_of_witnesses
from ..records.checkpoints import set_models_aside
from ..records.home import Home
from ..records.plans import model_name, plan_record, write_plan
from ..records.provenance import declare
from ..records.results import finish
from ..records.witnesses import Mode
from ..tracking.connection import Unreachable
from ..tracking.tracker import Tracker
from .jobs import Certify, Context, Examine, Job, Judge, Plant, Train
from .process_pool import Done, Engine, Pool, Task
from .scheduler import Scheduler
from .worker import loads, setup

PATIENCE: Final = 20.0
"""Seconds before a tracking store that did not answer is asked again."""


@dataclass
class Watch:
    """What an observer (the live table) may know of a run; the runner updates it.

    Attributes:
        shards: Shards this run has to do.
        models: Models this run has to train.
        running: Names of tasks in flight, with their jobs.
        left: The same of all tasks that are left, those in flight among them.
        messages: Lines to show once.
    """

    cells: int = 0
    cells_done: int = 0
    shards: int = 0
    shards_done: int = 0
    models: int = 0
    models_done: int = 0
    running: dict[str, Job] = field(default_factory=dict)
    left: Mapping[str, Job] = field(default_factory=dict)
    messages: deque[str] = field(default_factory=deque)


@dataclass(frozen=True)
class Report:
    """How a run ended.

    Attributes:
        failures: Lines, each naming a model or cell that has no result, and why.
        waiting: Results that the tracking store has not got.
        stopped: Whether its time was up before everything was done.
    """

    failures: tuple[str, ...]
    waiting: int
    trouble: str
    stopped: bool = False


@contextmanager
def exclusive(home: Home, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a home alone; a second command waits for the first."""
    lock = FileLock(home.path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another command is working in {home.path}; waiting for it to end")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def mend_models(home: Home, plans: Iterable[Plan], say: Callable[[str], None]) -> None:
    """Set damaged models aside that plans need; they are made again like those that were never there."""
    every = {spec.key: spec for plan in plans for spec in plan.models}
    if any((home.model(key) / "card.json").exists() for key in every):
        with exclusive(home, say):
            for line in set_models_aside(home, every.values()):
                say(line)


def deliver(tracker: Tracker) -> str:
    """Deliver what earlier commands could not, unless another command is at it.

    Returns:
        Why something could not be delivered, and stays in ``pending/``; "" if nothing did.
    """
    lock = FileLock(tracker.home.path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return ""
    trouble = ""
    try:
        tracker.reconcile()
        waiting = tracker.waiting()
        for marker in waiting:
            try:
                tracker.offer(marker)
            except UserError as error:  # this one cannot be delivered, the others can
                trouble = str(error)
        if waiting:
            tracker.reopen()
            trouble = trouble or _close(tracker)
        if tracker.vanished():
            trouble = trouble or f"{tracker.file} was deleted meanwhile; the next command fills another"
    except Unreachable as error:
        trouble = str(error)
    finally:
        lock.release()
    return trouble


class Recorder:
    """Finishes cells and tracks them, in a thread beside the driver, so that no worker waits for either.

    Not ``beside`` it, cells are finished where they are added: for work in the driver's own process, because attacks
    change what belongs to the process and other threads would see it (warnings, the default generators).
    """

    def __init__(
        self, plan: Plan, home: Home, tracker: Tracker | None, watch: Watch, witnesses: Mode, *, beside: bool = True
    ) -> None:
        self._plan, self._home, self._tracker, self._watch = plan, home, tracker, watch
        self._mode = witnesses
        self._queue: queue.SimpleQueue[Cell | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._stopping = threading.Event()
        self._asked = -math.inf
        self.trouble = ""
        self.failures: list[str] = []
        self._beside = beside
        if beside:
            self._thread.start()

    def add(self, cell: Cell) -> None:
        """A cell has all its shards."""
        if self._beside:
            self._queue.put(cell)
        else:
            self._record(cell)

    def join(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until everything is recorded and delivered, or undeliverable; ``meanwhile`` is called now and then."""
        if not self._beside:
            self._end()
            return
        self._queue.put(None)
        while self._thread.is_alive():
            self._thread.join(0.2)  # in slices: a join without end would swallow Ctrl-C
            meanwhile()

    def abandon(self) -> None:
        """Stop after the result in hand."""
        if not self._beside:
            return
        self._stopping.set()
        self._queue.put(None)
        self._thread.join(2)

    def _work(self) -> None:
        self._reconcile()
        self._deliver()  # what earlier commands could not
        while (cell := self._queue.get()) is not None and not self._stopping.is_set():
            self._record(cell)
        if not self._stopping.is_set():
            self._end()

    def _end(self) -> None:
        """Deliver what waits; all of it once more if the store was deleted or emptied meanwhile."""
        self._deliver(last=True)
        if self._reconcile():
            self._deliver(last=True)

    def _reconcile(self) -> int:
        """Let home and store agree on what was delivered; returns how much was not, though it had been."""
        if self._tracker is None or self.trouble:
            return 0
        try:
            return self._tracker.reconcile()
        except Unreachable as error:
            self._away(error)
            return 0
        except Exception as error:  # the results are on disk; whatever it is, the run goes on
            self.failures.append(f"cannot look through the tracking store: {describe(error)}")
            return 0
        finally:
            self._watch.messages.extend(self._tracker.notes)
            self._tracker.notes.clear()

    def _away(self, error: Unreachable) -> None:
        if not self.trouble:
            self._watch.messages.append(f"tracking store out of reach, results wait in pending/: {error}")
        self.trouble = str(error)
        self._asked = time.monotonic()

    def _record(self, cell: Cell) -> None:
        try:
            self._finish(cell)
        except Exception as error:  # whatever it is, the other cells are worth finishing
            self.failures.append(f"{cell}: {describe(error)}")
            return
        self._watch.cells_done += 1
        self._deliver()

    def _finish(self, cell: Cell) -> None:
        declared = declare(self._home, cell, self._plan)
        if self._tracker is not None:
            self._tracker.mark(self._plan.key, cell.key)  # before the result: a kill between them loses nothing
        finish(self._home.cell(cell.key), cell.shards, declared, self._keep(cell, declared.weights))

    def _keep(self, cell: Cell, weights: Mapping[str, str]) -> bytes | None:
        """Let a cell's witnesses into the table of its model, before its shards go; all of them if all are kept."""
        folder = self._home.cell(cell.key)
        rows = records_of_witnesses.of_shards(folder, cell.shards) if self._mode != "none" else None
        if rows is None:
            return None
        victim = cell.victim.key
        norms = self._plan.budgets[cell.victim.dataset]
        how: dict[str, str] = {"model": victim, "weights": weights[victim], "part": cell.part}
        records_of_witnesses.keep(self._home, cell.key, rows, norms, **how)
        return records_of_witnesses.pack(rows) if self._mode == "all" else None

    def _deliver(self, *, last: bool = False) -> None:
        """Deliver every waiting result; a store that did not answer is asked now and then, and once more at the end."""
        if self._tracker is None or (self.trouble and not last and time.monotonic() < self._asked + PATIENCE):
            return
        markers = deque(self._tracker.waiting())
        while markers:
            if self._stopping.is_set():
                return
            if self._tracker.vanished():  # what was delivered to it has gone with it
                self.trouble = ""
                self._reconcile()
                markers = deque(self._tracker.waiting())
            marker = markers.popleft()
            try:
                self._tracker.offer(marker)
            except Unreachable as error:
                if self._tracker.vanished():
                    markers.append(marker)
                    continue
                self._away(error)
                return
            except UserError as error:  # this one cannot be delivered, the others can
                self.failures.append(str(error))
                self._tracker.give_up(marker)
        if self.trouble:
            self.trouble = ""
            self._watch.messages.append("the tracking store answers again")


def run(
    plan: Plan,
    context: Context,
    *,
    jobs: int,
    command: str,
    tracker: Tracker | None = None,
    observe: Callable[[Watch], None] = lambda watch: None,
    engine: Engine | None = None,
    until: float = math.inf,
    witnesses: Mode = "worst-case",
    beside: bool = True,
) -> Report:
    """Run what is missing of a plan.

    The command line is for the record; ``observe`` is called several times per second with the state of the run.
    Without an engine, made for this context, the work is that of ``jobs`` processes of this machine. After
    ``until``, on :func:`time.monotonic`'s clock, no task is begun, and those under way are finished. Of the images that
    break a model those are kept that ``witnesses`` says. ``beside``: see :class:`Recorder`.

    Raises:
        UserError: The home cannot be used.
        KeyboardInterrupt: Ctrl-C; everything finished is kept.
    """
    home = context.home.create()
    watch = Watch(cells=len(plan.cells))
    failures: list[str] = []

    def say(message: str) -> None:
        watch.messages.append(message)
        observe(watch)

    with exclusive(home, say):
        home.sweep()
        write_plan(home, plan_record(plan, command))
        graph = Scheduler(plan, home, say, jobs)
        watch.left = graph.jobs
        watch.models, watch.shards = graph.count(Train), graph.count(Judge)
        watch.cells_done = len(plan.cells) - len(graph.shards_left)
        if tracker is not None:
            tracker.mark_untracked(plan.key, (cell.key for cell in plan.cells))
            if graph.left or tracker.waiting():
                tracker.reopen()
        recorder = Recorder(plan, home, tracker, watch, witnesses, beside=beside)
        for key, left in graph.shards_left.items():
            if left == 0:
                recorder.add(graph.cells[key])
        try:
            with _pool(jobs, context, graph) if engine is None else nullcontext(engine) as workers:
                for done in workers.run(lambda: _take(graph, watch) if time.monotonic() < until else None):
                    if done is not None:
                        failures += _settle(done, graph, watch, recorder, plan)
                    observe(watch)
            recorder.join(lambda: observe(watch))
            home.sweep()  # also what a worker killed in this run, or one that outlived its driver, left half written
        except BaseException:
            recorder.abandon()
            raise
        trouble = recorder.trouble
        if tracker is not None and not trouble:
            trouble = _close(tracker)
        if tracker is not None:
            watch.messages.extend(tracker.notes)
            tracker.notes.clear()
        observe(watch)
        waiting = len(tracker.waiting()) if tracker is not None else 0
    return Report(tuple(failures + recorder.failures), waiting, trouble, bool(graph.left) and time.monotonic() >= until)


def _pool(jobs: int, context: Context, graph: Scheduler) -> Pool:
    # a card's driver does not bear a fork, and what is imported may have looked whether there is one
    forked = context.device == "cpu"
    return Pool(jobs, setup, context, loads(graph.jobs.values(), context.sources.values()) if forked else None)


def _close(tracker: Tracker) -> str:
    """Close what is to be closed; why that could not be done, "" if it was. Damaged files are the report's business."""
    try:
        tracker.close_all(lambda path, error: None)
    except (Unreachable, UserError) as error:
        return str(error)
    return ""


def _take(graph: Scheduler, watch: Watch) -> Task | None:
    task = graph.take()
    if task is not None:
        watch.running[task.name] = task.payload
    return task


def _settle(done: Done, graph: Scheduler, watch: Watch, recorder: Recorder, plan: Plan) -> list[str]:
    """Book the end of a task; returns failures to report."""
    name = done.task.name
    job: Job = done.task.payload
    watch.running.pop(name, None)
    if done.error is not None:
        dropped = graph.failed(name)
        lost = {j.cell.key for j in dropped if isinstance(j, Judge)}
        what = _job_name(job, plan)
        more = f" ({len(lost)} pairs have no result)" if lost else ""
        watch.messages.append(f"failed: {what}: {done.error}{more}")
        return [f"{what}: {done.error}{more}"]
    graph.done(name)
    if isinstance(job, Train):
        watch.models_done += 1
    if isinstance(job, Judge):
        watch.shards_done += 1
        key = job.cell.key
        graph.shards_left[key] -= 1
        if graph.shards_left[key] == 0:
            recorder.add(graph.cells[key])
    return []


def _job_name(job: Job, plan: Plan) -> str:
    match job:
        case Train(spec):
            return str(model_name(spec, plan.infos[spec.dataset]))
        case Examine(probe):
            return f"{model_name(probe.model, plan.infos[probe.model.dataset])}: health in {probe.threat}"
        case Certify(asked):
            spec = asked[0].model
            return f"{model_name(spec, plan.infos[spec.dataset])}: certificates"
        case Plant(planting):
            return f"{model_name(planting.model, plan.infos[planting.model.dataset])}: planted in {planting.threat}"
        case _:
            return str(job.cell)
