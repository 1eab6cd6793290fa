"""How long a run will still take, from the tasks that it has ended.

A task costs what tasks of its kind cost (one attack, trainings of one defense, probes, ...), times what it has to do
beside theirs. Of a kind that has not been seen it costs what its sort costs: attacks by the passes that they declare.
So the time left is told as soon as one task has ended, and it does not run away where cheap tasks come first. A
training lasts seconds or hours, and tells nothing of what comes after it: until the first attack has ended, the time
left is at least that of the trainings.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from typing import Final, NamedTuple

from ..training.gradient_descent import GradientDescent
from .estimate import passes, preparation
from .jobs import Certify, Craft, Examine, Job, Judge, Plant, Prepare, Train

DEARER: Final = {Examine: 10.0, Plant: 10.0, Certify: 10.0, Prepare: 5.0}
"""What a task of a sort that has not been seen is taken to cost beside an attack on a shard."""

JUDGED: Final = 4
"""Passes of each image beside those of its attack: clean, again afterwards, and twice what came back."""


class Left(NamedTuple):
    """How long tasks will take.

    Attributes:
        seconds: Of all whose cost is known.
        whole: Whether those are all the tasks.
        shrinks: Whether there are cascades among them, whose attacks are taken to meet all images.
    """

    seconds: float
    whole: bool
    shrinks: bool = False


class TimeLeft:
    """Watches tasks begin and end, and tells seconds. Times are those of one clock, in seconds."""

    def __init__(self) -> None:
        self._begun: dict[str, tuple[float, Job]] = {}
        self._spent: dict[Hashable, list[float]] = defaultdict(lambda: [0.0, 0.0])  # seconds, amount of work
        self._first: set[str] = set()  # tasks that began before any had ended: the first of each worker
        self._workers = 1

    def see(self, running: Mapping[str, Job], now: float) -> None:
        """Tell what is running; what is not there any more has ended."""
        for name in [name for name in self._begun if name not in running]:
            start, job = self._begun.pop(name)
            kinds = _kinds(job)
            if name in self._first and not isinstance(job, Train):
                kinds = [kinds[0], kinds[-1]]  # most of it may be the loading of libraries: it tells nothing of passes
            for kind, amount in kinds:
                self._spent[kind][0] += now - start
                self._spent[kind][1] += amount
        if not self._spent:
            self._first |= set(running)
        for name, job in running.items():
            self._begun.setdefault(name, (now, job))
        self._workers = max(self._workers, len(running))

    def running_for(self, name: str, now: float) -> float:
        """Seconds since a running task was first seen."""
        return now - self._begun[name][0] if name in self._begun else 0.0

    def of(self, left: Mapping[str, Job], now: float) -> Left | None:
        """What tasks, running ones among them, take all workers together; None as long as no cost is known.

        Never less than what the longest of the running ones still takes.
        """
        costs = {name: cost for name, job in left.items() if (cost := self._cost(job)) is not None}
        if not costs:
            return None
        ahead = [max(cost - self.running_for(name, now), 0.0) for name, cost in costs.items()]
        shrinks = any(isinstance(job, Judge) and job.cell.cascaded for job in left.values())
        return Left(max(sum(ahead) / self._workers, *ahead), len(costs) == len(left), shrinks)

    def _cost(self, job: Job) -> float | None:
        for kind, amount in _kinds(job):
            seconds, done = self._spent[kind]
            if done:
                return seconds / done * amount
        return None


def _kinds(job: Job) -> list[tuple[Hashable, float]]:
    """Kinds of a task, the narrowest first, each with its amount of work in a unit of that kind."""
    sort = type(job).__name__
    match job:
        case Train(spec):
            epochs = spec.defense.epochs if isinstance(spec.defense, GradientDescent) else None
            found: list[tuple[Hashable, float]] = [
                ((sort, spec.dataset, spec.architecture, spec.defense.name), float(epochs or 1)),
                (sort, 1.0),
            ]
        case Judge(cell) | Craft(cell):
            images, victim = min(cell.batch, cell.n), cell.victim
            kind = (sort, victim.dataset, victim.architecture, cell.attack.label, cell.threat.norm)
            found = [(kind, float(images)), (sort, float(images * (JUDGED + passes(cell.attack))))]
        case Prepare(cell):
            found = [((sort, cell.attack.label), 1.0), (sort, float(preparation(cell.attack) or 1))]
        case Examine(probe):
            found = [((sort, probe.threat.norm), 1.0), (sort, 1.0)]
        case _:
            found = [(sort, 1.0)]
    return found if isinstance(job, Train) else [*found, ("any", DEARER.get(type(job), 1.0))]
