"""Jobs that a plan still needs, given what is on disk (here a pair is resumed), and their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from ..errors import UserError
from ..planning.plan import Plan
from ..planning.specs import Cell, Certification, ModelSpec
from ..records.boards import read_probe
from ..records.checkpoints import has_model, weights_standing
from ..records.crafted import read_crafted
from ..records.files import read_record, set_aside
from ..records.home import Home
from ..records.prepared import prepared_record
from ..records.provenance import provenance
from ..records.results import Damaged, check_result, is_finished, read_shard, shard_path
from ..schema.base import Provenance
from ..schema.certificates import CertificateRecord
from ..schema.probes import PlantedRecord, ProbeRecord
from .jobs import Certify, Craft, Examine, Job, Judge, Plant, Prepare, Sampling, Train
from .process_pool import Task


class Scheduler:
    """Tasks that are left to do, and which of them may start.

    Tasks start in the plan's order: trainings, then probes and plantings, then pairs, then certificates. Where
    something can be attacked at once, its model being there already, those attacks come first and its probes and
    certificates after them, and trainings that only transfers need stand aside: they start when every worker has begun
    with something else, on at most half of the workers (a lone worker trains last); and on any worker as soon as
    nothing else can start, so that nobody is idle. So the first attacks wait for no surrogate, and several workers do
    not end with one of them training. No number depends on the order. Damaged files that are set aside are said to
    ``say``.
    """

    def __init__(self, plan: Plan, home: Home, say: Callable[[str], None], workers: int = 1) -> None:
        self._home = home
        self._say = say
        self._jobs: dict[str, Job] = {}
        self._needs: dict[str, set[str]] = {}
        self._dependents: dict[str, list[str]] = {}
        self.shards_left: dict[str, int] = {}
        self.cells = {cell.key: cell for cell in plan.cells}
        self._sources = plan.sources_before
        self._probes = {(one.model.key, one.threat.norm): one.key for one in plan.probes}
        self._plantings = {(one.model.key, one.threat.norm): one.key for one in plan.plantings}
        self._before: dict[str, tuple[str, ...]] = {}
        for spec in plan.models:
            self._train(spec)
        for probe in plan.probes:
            self._look(f"examine {probe.key}", Examine(probe), probe.model, home.health(probe.key), ProbeRecord)
        for planting in plan.plantings:
            path = home.planted(planting.key)
            self._look(f"plant {planting.key}", Plant(planting), planting.model, path, PlantedRecord)
        unfinished = [cell for cell in plan.cells if not self._finished(cell)]
        needed = {cell.screen.key for cell in unfinished if cell.screen is not None}
        self._certify_all(screen for screen in plan.screens if screen.key in needed)
        for cell in unfinished:
            self._cell(cell)
        self._certify_all(plan.certifications)
        self._workers = workers
        self._begun = 0
        self._ready, self._aside = self._queues({_training(spec) for spec in plan.crafters})
        self._beside: set[str] = set()

    def _queues(self, crafting: set[str]) -> tuple[deque[str], deque[str]]:
        """What may start now, in its order; and apart from it trainings that are not to delay the rest."""
        ready = [name for name, needs in self._needs.items() if not needs]
        trainings = [name for name in ready if isinstance(self._jobs[name], Train)]
        looks = [name for name in ready if self._is_a_look(name)]
        attacks = [name for name in ready if name not in {*trainings, *looks}]
        if not attacks:
            return deque(ready), deque()
        aside = [name for name in trainings if name in crafting and not self._stood_upon(name)]
        return deque([*(name for name in trainings if name not in aside), *attacks, *looks]), deque(aside)

    def _is_a_look(self, name: str) -> bool:
        """Whether no pair waits for it."""
        job = self._jobs[name]
        return isinstance(job, Examine | Plant) or (isinstance(job, Certify) and not job.certifications[0].intervals)

    def _stood_upon(self, name: str) -> bool:
        """Whether other models wait for this training."""
        return any(isinstance(self._jobs[other], Train) for other in self._dependents.get(name, ()))

    def _add(self, name: str, job: Job, needs: set[str]) -> str:
        if name not in self._jobs:
            self._jobs[name] = job
            self._needs[name] = {need for need in needs if need in self._jobs}
            for need in self._needs[name]:
                self._dependents.setdefault(need, []).append(name)
        return name

    def _train(self, spec: ModelSpec) -> None:
        if not has_model(self._home, spec):
            self._add(_training(spec), Train(spec), {_training(part) for part in spec.parents})

    def _look(
        self, name: str, job: Job, model: ModelSpec, path: Path, kind: type[ProbeRecord] | type[PlantedRecord]
    ) -> None:
        """A look at a model, unless its record is there and of the same weights."""
        if not self._stands(path, kind):
            self._add(name, job, {_training(model)})

    def _certify_all(self, asked: Iterable[Certification]) -> None:
        for _, each in groupby(asked, lambda one: (one.model.key, one.n)):
            self._certify(tuple(each))

    def _certify(self, asked: Sequence[Certification]) -> None:
        """What is to be proved of one model: all norms together, for it is taken apart only once."""
        for shard in range(max(one.shards for one in asked)):
            left = tuple(
                one
                for one in asked
                if shard < one.shards and not self._stands(self._home.certificate(one.key, shard), CertificateRecord)
            )
            if left:
                model = left[0].model
                self._add(_certifying(left[0], shard), Certify(left, shard), {_training(model)})

    def _stands(self, path: Path, kind: type[ProbeRecord] | type[PlantedRecord] | type[CertificateRecord]) -> bool:
        """Whether facts of a model are there, whole and of its weights; if not, nothing is."""
        if not path.exists():
            return False
        try:
            weights = (read_probe(path) if kind is ProbeRecord else read_record(path, kind)).weights
        except UserError as error:
            self._say(f"{error}; computing it again")
            weights = {}
        if weights_standing(self._home, weights).state == "fresh":
            return True
        path.unlink()
        return False

    def before(self, cell: Cell) -> tuple[str, ...]:
        """Keys of the cells that a cascade runs before this one, in their order."""
        if not cell.after:
            return ()
        if cell.key not in self._before:
            self._before[cell.key] = (*self.before(self.cells[cell.after]), cell.after)
        return self._before[cell.key]

    def _below(self, cell: Cell, before: Sequence[str]) -> tuple[str, ...]:
        """Those of the cells before this one at an eps below its ceiling."""
        if cell.ceiling is None:
            return ()
        threats = {key: self.cells[key].threat for key in before}
        return tuple(
            key
            for key, threat in threats.items()
            if threat.norm == cell.threat.norm and threat.eps is not None and threat.eps < cell.ceiling
        )

    def _sampling(self, cell: Cell, before: Sequence[str]) -> Sampling | None:
        """What decides whether a cell of a sampled cascade meets the rest."""
        if cell.share == "all":
            return None
        norm = cell.threat.norm
        chain = [one for one in (*map(self.cells.__getitem__, before), cell) if one.threat.norm == norm]
        return Sampling(
            tuple(sorted({one.threat.eps for one in chain if one.threat.eps is not None})),
            {one.key: one.shards for one in chain if one.share == "tenth"},
            self._probes.get((cell.victim.key, norm)),
            self._plantings.get((cell.victim.key, norm)),
        )

    def _cell(self, cell: Cell) -> None:
        needs = {_training(cell.victim), _training(cell.crafter)}
        folder = self._home.cell(cell.key)
        sources = self._sources(cell)
        made = provenance(self._home, cell, before=sources)
        crafting = provenance(self._home, cell, judged=False)
        unprepared = False
        if cell.prepared_key is not None:
            name = f"prepare {cell.prepared_key}"
            ready = self._home.prepared(cell.prepared_key)
            unprepared = not (ready.exists() and self._usable(ready, lambda: prepared_record(ready), crafting))
            if unprepared:
                self._add(name, Prepare(cell), {_training(cell.crafter)})
            needs.add(name)
        self.shards_left[cell.key] = 0
        before = self.before(cell)
        below, sampling = self._below(cell, before), self._sampling(cell, before)
        if cell.share == "rest" and sampling is not None:
            needs |= {f"judge {key} {part}" for key, parts in sampling.tenths.items() for part in range(parts)}
            needs |= {f"examine {sampling.probe}", f"plant {sampling.planting}"}
        for shard in range(cell.shards):
            path = shard_path(folder, shard)
            if unprepared:  # they do not say with what they were attacked
                path.unlink(missing_ok=True)
            if path.exists() and self._usable(path, lambda p=path: read_shard(p)[1], made):  # type: ignore[misc]
                continue
            wanted = set(needs)
            if cell.crafted_key is not None:
                file = self._home.crafted(cell.crafted_key, shard)
                name = f"craft {cell.crafted_key} {shard}"
                if unprepared:
                    file.unlink(missing_ok=True)
                if not (file.exists() and self._usable(file, lambda f=file: read_crafted(f)[1], crafting)):  # type: ignore[misc]
                    self._add(name, Craft(cell, shard), set(needs))
                wanted.add(name)
            if cell.after:
                wanted.add(f"judge {cell.after} {shard}")
            if cell.screen is not None:
                wanted |= {_certifying(cell.screen, part) for part in cell.screen.covering(cell.shard_slice(shard))}
            self._add(f"judge {cell.key} {shard}", Judge(cell, shard, before, below, sampling, sources), wanted)
            self.shards_left[cell.key] += 1

    def _finished(self, cell: Cell) -> bool:
        """Whether the cell's result is whole and is of the models that are here now."""
        folder = self._home.cell(cell.key)
        if not is_finished(folder):
            return False
        try:
            standing = weights_standing(self._home, check_result(folder).weights)
        except Damaged as error:
            self._say(f"{error}; kept as {set_aside(folder).name}, computing it again")
            return False
        if standing.state != "fresh":
            self._say(f"{cell}: {standing.reason}; kept as {set_aside(folder).name}, computing it again")
        return standing.state == "fresh"

    def _usable(self, path: Path, facts: Callable[[], Provenance], made: Provenance) -> bool:
        """Whether a part of an interrupted cell can be kept: it is whole, and made with what is here now."""
        try:
            return facts().made_with(made)
        except UserError as error:
            self._say(f"{error}; computing it again")
            path.unlink(missing_ok=True)
            return False

    @property
    def jobs(self) -> Mapping[str, Job]:
        """Tasks that are left, by name; it changes as they end."""
        return self._jobs

    @property
    def left(self) -> int:
        """Tasks that are left."""
        return len(self._jobs)

    def count(self, kind: type) -> int:
        """Tasks of a kind that are left."""
        return sum(isinstance(job, kind) for job in self._jobs.values())

    def take(self) -> Task | None:
        """The next task that may start, None if there is none just now."""
        beside = self._begun >= self._workers and len(self._beside) < self._workers // 2
        if self._aside and (beside or not self._ready):
            name = self._aside.popleft()
            self._beside.add(name)
        elif self._ready:
            name = self._ready.popleft()
            self._begun += 1
        else:
            return None
        return Task(name, self._jobs[name])

    def done(self, name: str) -> None:
        """A task ended well: what waited for it alone may start."""
        del self._jobs[name]
        self._beside.discard(name)
        for dependent in self._dependents.pop(name, ()):
            if dependent in self._needs:
                self._needs[dependent].discard(name)
                if not self._needs[dependent]:
                    self._ready.append(dependent)

    def failed(self, name: str) -> list[Job]:
        """A task failed: drop it and everything that needs it; returns the jobs dropped."""
        job = self._jobs.pop(name, None)
        self._beside.discard(name)
        if job is None:
            return []
        dropped = [job]
        for dependent in self._dependents.pop(name, ()):
            dropped += self.failed(dependent)
        return dropped


def _certifying(asked: Certification, shard: int) -> str:
    kind = "screen" if asked.intervals else "certify"
    return f"{kind} {asked.model.key} {shard}"


def _training(spec: ModelSpec) -> str:
    return f"train {spec.key}"
