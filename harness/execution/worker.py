"""Worker process: train a model, prepare an attack, craft images, attack and judge a shard, probe, plant, certify.

Every task reads what earlier tasks wrote and writes its own result atomically, so a task may be killed at any
moment, and may run twice, without harm.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import environment, identity
from ..attacks.base import Attack
from ..attacks.transfer import inner
from ..datasets.registry import Dataset
from ..datasets.registry import loads as data_loads
from ..determinism import full_float32, seed_everything
from ..errors import UserError, describe
from ..judging.certificates import prove
from ..judging.proposal import Bench, Proposal
from ..judging.shard import Kept, craft, prepare, run_shard
from ..planning.specs import Cell, Certification, ModelSpec, Planting, Probe
from ..records.checkpoints import has_model, load_base, load_model, save_model
from ..records.crafted import read_proposal, write_proposal
from ..records.files import write_bytes, write_record
from ..records.home import Home
from ..records.plans import model_name
from ..records.prepared import prepared_record, read_prepared, write_prepared
from ..records.provenance import made_of, origin, provenance
from ..records.results import write_shard
from ..records.witnesses import pack
from ..schema.base import Cost
from ..schema.certificates import CertificateRecord
from ..schema.models import Card, EpochLine, FailedTraining
from ..schema.probes import PlantedRecord, ProbeRecord
from ..training.defense import Diverged, Trained
from ..training.gradient_descent import score
from ..training.optim import keep_compiler_out
from ..training.resuming import Saves, kept
from ..trust.planting import plant
from ..trust.probe import probe as examine
from ..victims.victim import Victim, VictimError
from .fork_server import Load
from .jobs import Certify, Context, Craft, Examine, Job, Judge, Plant, Prepare, Source, Train
from .memory import keep_freed
from .standing import before, fallen, shown

UNTRAINED_SAMPLES = 1000
"""Images that the accuracies of a model without training of its own are measured on."""

STARTS = 64
"""Images of the classes aimed at, as many of each, that an attack along a boundary may begin from, beside those that it
attacks."""


class Batch(NamedTuple):
    """Images under attack: positions in the data set (N,), images (N, C, H, W), labels (N,), targets (N,) if any."""

    places: Tensor
    x: Tensor
    y: Tensor
    target: Tensor | None


def setup(context: Context) -> Callable[[Job], Any]:
    """The function that runs jobs in this process."""
    return worker(context).run


def worker(context: Context) -> Worker:
    """A worker that has this process for itself."""
    torch.set_num_threads(1)  # parallelism is over shards, and a sum split over threads rounds differently
    full_float32()
    keep_compiler_out()
    keep_freed()
    return Worker(context)


def loads(jobs: Iterable[Job], sources: Iterable[Source]) -> tuple[Load, ...]:
    """Functions that import what workers need for jobs and data sets, this module among it; nothing of a user's."""
    data = [load for source in sources for load in data_loads(source.name)]
    attacks = dict.fromkeys(job.cell.attack for job in jobs if isinstance(job, Prepare | Craft | Judge))
    toolkits = [load for attack in attacks for load in attack.loads if load.__module__.startswith("harness.")]
    return tuple(dict.fromkeys([_imported, *data, *toolkits]))


def _imported() -> None:
    """Nothing: this module is imported where it is called."""


class Worker:
    """Runs jobs one after another, with models and data kept between them."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._bench = lru_cache(maxsize=4)(self._load_bench)

    def move(self, home: Home) -> None:
        """Read and write in another home from now on; its models are the same."""
        self.context = replace(self.context, home=home)

    def run(self, job: Job) -> Kept | None:
        """Run one job.

        Returns:
            Of judging, where the context asks for it, the adversarial images.

        Raises:
            UserError: Data or a checkpoint is missing or damaged, or the model cannot be judged.
        """
        for network in self.context.architectures:
            network.register()
        full_float32()  # whatever a user's code asked for in the job before
        match job:
            case Train(spec):
                self._train(spec)
            case Prepare(cell):
                self._prepare(cell)
            case Craft(cell, shard):
                self._craft(cell, shard)
            case Judge():
                return self._judge(job)
            case Examine(look):
                self._examine(look)
            case Certify(asked, shard):
                self._certify(asked, shard)
            case Plant(planting):
                self._plant(planting)
        return None

    def _data(self, spec: ModelSpec) -> Dataset:
        return self.context.sources[spec.dataset].load()

    def _train(self, spec: ModelSpec) -> None:
        home, data, device = self.context.home, self._data(spec), self.context.device
        if has_model(home, spec):
            return
        made_with = {"device": torch.device(device).type, **made_of(home, *spec.parents).model_dump()}
        saves = Saves(home.progress / f"train-{spec.key}.pt", made_with, write_bytes)
        say = self._reporter(f"train-{spec.key}", saves)
        base = load_base(home, spec, data.info, self.context.models)
        (home.model(spec.key) / "card.json").unlink(missing_ok=True)  # of what stood upon another base
        full_float32()
        seed_everything(spec.training_seed)
        start = time.perf_counter()
        try:
            with kept(saves):
                trained = spec.defense.fit(spec.architecture, data, device=device, base=base, progress=say)
                self._keep(spec, trained, data, saves.seconds + time.perf_counter() - start)
        except Diverged as error:
            write_record(home.model(spec.key) / "failed.json", FailedTraining(error=str(error)))
            raise

    def _keep(self, spec: ModelSpec, trained: Trained, data: Dataset, seconds: float) -> None:
        """Measure a trained model and write it down."""
        (model, history), home, device = trained, self.context.home, self.context.device
        data = spec.defense.part(data)  # the training accuracy is that on what it was given
        # where nothing was trained a part says enough, and a defense at inference time may be slow
        seen, unseen = (
            None if history else torch.arange(min(UNTRAINED_SAMPLES, len(labels)), device=device)
            for labels in (data.y_train, data.y_test)
        )
        card = Card(
            sha256="",
            git_commit=environment.git_commit(),
            **dict(origin()),
            **dict(model_name(spec, data.info)),
            parameters=sum(p.numel() for p in model.parameters()),
            epochs=len(history),
            seconds=seconds,
            train_accuracy=score(model, data, data.x_train.to(device), data.y_train.to(device), seen)[1],
            test_accuracy=score(model, data, data.x_test.to(device), data.y_test.to(device), unseen)[1],
            history=tuple(EpochLine(**{**line._asdict(), "logged": dict(line.logged)}) for line in history),
        )
        save_model(home, spec, model, card)
        (home.model(spec.key) / "failed.json").unlink(missing_ok=True)

    def _load_bench(self, spec: ModelSpec) -> Bench:
        model, classes = self._load(spec)
        return Bench.of(model, classes, self.context.device, spec.defense.remedy)

    def _load(self, spec: ModelSpec) -> tuple[nn.Module, int]:
        """A model and the number of its classes."""
        info = self.context.sources[spec.dataset].info()
        model = load_model(self.context.home, spec, info, self.context.models)
        full_float32()  # whatever a user's code has just asked for
        return model, len(info.classes)

    def _batch(self, cell: Cell, shard: int) -> Batch:
        """A shard's images, without those whose class is the target of all."""
        data, part = self._data(cell.victim), cell.shard_slice(shard)
        sample = data.test_sample if cell.part == "test" else data.train_sample
        places, (x, y) = sample(cell.n, part)
        target = None
        if cell.goal is not None:
            aims = cell.goal.targets(y.numpy(), range(part.start, part.stop), len(data.info.classes))
            target = torch.from_numpy(aims)
            kept = target != y
            if not kept.any() and cell.shards == 1:
                raise UserError(f"{cell}: of class {cell.goal.target} are all images: take more")
            places, x, y, target = places[kept], x[kept], y[kept], target[kept].to(self.context.device)
        return Batch(places, x.to(self.context.device), y.to(self.context.device), target)

    def _begun(self, bench: Bench, cell: Cell, target: Tensor | None) -> Bench:
        """A bench with images of the targets to begin from, for an attack that walks along a boundary towards them."""
        if target is None or not len(target) or not inner(cell.attack).needs_a_boundary:
            return bench
        classes: Tensor = target.cpu().unique()  # type: ignore[no-untyped-call]
        examples = self._data(cell.victim).examples(classes, math.ceil(STARTS / len(classes)))
        return replace(bench, attacked=bench.attacked.knowing(examples.to(self.context.device)))

    def _prepare(self, cell: Cell) -> None:
        key = cell.prepared_key
        assert key is not None
        data = self._data(cell.victim)
        attack = inner(cell.attack)
        x, y = data.preparation_sample(attack.preparation_samples)
        victim = self._bench(cell.crafter).attacked

        ready, cost, error = attack, Cost(seconds=0.0, forwards=0, backwards=0), ""
        try:
            ready, cost = prepare(victim, attack, x, y, identity.derive_seed(key))
        except (VictimError, torch.OutOfMemoryError):
            raise
        except Exception as trouble:  # an attack's failure is recorded, and does not stop the others
            error = describe(trouble)
        made = provenance(self.context.home, cell, judged=False)
        write_prepared(self.context.home.prepared(key), attack, ready, cost, made, error)

    def _ready(self, cell: Cell) -> Attack:
        """The cell's attack with what it learned from the training data."""
        attack = inner(cell.attack)
        if cell.prepared_key is None:
            return attack
        return read_prepared(self.context.home.prepared(cell.prepared_key), attack)

    def _unready(self, cell: Cell) -> Proposal | None:
        """What an attack proposes that failed when it looked at training data: nothing, and why."""
        if cell.prepared_key is None:
            return None
        error = prepared_record(self.context.home.prepared(cell.prepared_key)).error
        return Proposal(None, 0.0, 0, 0, (error,)) if error else None

    def _craft(self, cell: Cell, shard: int) -> None:
        assert cell.crafted_key is not None
        proposal = self._unready(cell)
        if proposal is None:
            _, x, y, target = self._batch(cell, shard)
            victim = self._crafter(cell, target)
            proposal = craft(victim, self._ready(cell), cell.threat, x, y, cell.shard_seed(shard), target=target)
        facts = provenance(self.context.home, cell, judged=False)
        write_proposal(self.context.home.crafted(cell.crafted_key, shard), proposal, facts)

    def _crafter(self, cell: Cell, target: Tensor | None) -> Victim:
        """The model that a transfer is crafted on, as its attack meets it."""
        victim = self._begun(self._bench(cell.crafter), cell, target).attacked
        return victim.insatiable() if inner(cell.attack).ends_early else victim  # Transfer.onward

    def _judge(self, job: Judge) -> Kept | None:
        home, cell, shard = self.context.home, job.cell, job.shard
        index, x, y, target = self._batch(cell, shard)
        crafted = self._unready(cell)
        if cell.crafted_key is not None:
            crafted = read_proposal(home.crafted(cell.crafted_key, shard))
        frames = before(home, job)
        met = shown(home, job, frames, index.numpy(), y.cpu().numpy()) if cell.cascaded else None
        bench = self._bench(cell.victim)
        outcome = run_shard(
            bench if crafted is not None else self._begun(bench, cell, target),
            self._ready(cell),
            cell.threat,
            index=index,
            x=x,
            y=y,
            seed=cell.shard_seed(shard),
            shard=shard,
            crafted=crafted,
            crafter=self._crafter(cell, target) if cell.alone else None,
            standing=torch.from_numpy(met.images).to(x.device) if met is not None else None,
            target=target,
            keep=self.context.keep,
        )
        if job.sampling is not None and met is not None:
            fell = fallen(job, frames, outcome.samples) if cell.share == "tenth" else 0
            facts = outcome.facts.model_copy(update={"fallen": fell, "withheld": met.withheld})
            outcome = replace(outcome, facts=facts)
        packed = pack(outcome.witnesses) if outcome.witnesses else None
        write_shard(home.cell(cell.key), shard, outcome, provenance(home, cell, before=job.sources), packed)
        return outcome.kept

    def _examine(self, look: Probe) -> None:
        home, spec = self.context.home, look.model
        _, (x, y) = self._data(spec).test_sample(look.n)
        model, classes = self._load(spec)
        facts = examine(
            model,
            x,
            y,
            look.threat,
            classes=classes,
            device=self.context.device,
            remedy=spec.defense.remedy,
            seed=look.seed,
        )
        write_record(home.health(look.key), ProbeRecord(key=look.key, facts=facts, **dict(made_of(home, spec))))

    def _certify(self, asked: Sequence[Certification], shard: int) -> None:
        home, spec = self.context.home, asked[0].model
        index, (x, y) = self._data(spec).test_sample(asked[0].n, asked[0].shard_slice(shard))
        model, classes = self._load(spec)
        found = prove(asked, shard, model, index, x, y, classes=classes, device=self.context.device)
        made = dict(made_of(home, spec))
        for one, facts in zip(asked, found, strict=True):
            write_record(home.certificate(one.key, shard), CertificateRecord(facts=facts, **made))

    def _plant(self, planting: Planting) -> None:
        home, spec = self.context.home, planting.model
        _, (x, y) = self._data(spec).test_sample(planting.n)
        model, classes = self._load(spec)
        facts = plant(
            model,
            x,
            y,
            planting.threat,
            planting.attacks,
            classes=classes,
            device=self.context.device,
            remedy=spec.defense.remedy,
            seed=planting.seed,
        )
        write_record(home.planted(planting.key), PlantedRecord(facts=facts, **dict(made_of(home, spec))))

    def _reporter(self, name: str, saves: Saves) -> Callable[[int, int, Mapping[str, float]], None]:
        """Writes progress to a small file that the driver reads: a killed worker leaves no lock behind."""
        path = self.context.home.progress / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        started = time.time()

        def say(done: int, total: int, values: Mapping[str, float]) -> None:
            part = path.with_suffix(f".{os.getpid()}")
            begun = started - saves.seconds
            part.write_text(json.dumps({"done": done, "total": total, "started": begun, **values}))
            part.replace(path)

        return say
