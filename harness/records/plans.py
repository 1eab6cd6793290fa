"""Plan records, ``plans/KEY.json``: what a command asked for, written before anything runs."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from .. import identity
from ..attacks.transfer import inner
from ..datasets.registry import DatasetInfo, dataset_names
from ..errors import UserError
from ..external.external import External
from ..external.external import words as victim_words
from ..goal import goal_text
from ..options import written
from ..planning.plan import Plan
from ..planning.specs import Cell, ModelSpec
from ..schema.bundles import MANIFEST, Manifest
from ..schema.certificates import CertificateEntry
from ..schema.models import ModelEntry, ModelName
from ..schema.pairs import BatteryPair, PlannedPair
from ..schema.plans import PlanRecord, ProbeEntry
from ..user_code.plugins import architecture_argument, origin_of
from . import seals
from .files import read_record, set_aside, write_record
from .home import Home, plain

T = TypeVar("T")

Spoiled = Callable[[Path, UserError], None]
"""Told of a file or folder that cannot be read and is left out, and why."""


def model_name(spec: ModelSpec, info: DatasetInfo) -> ModelName:
    """What people know a model by."""
    return ModelName(dataset=spec.dataset, architecture=spec.architecture, defense=spec.label(info), seed=spec.seed)


def pair_record(cell: Cell, info: DatasetInfo, command: str = "") -> PlannedPair:
    """What people want to know of a pair: the part of its result known beforehand, and the command that measures it."""
    source = ""
    if cell.source is not None:
        source = cell.source.label(info)
        if not cell.source.members:
            source = f"{cell.source.architecture} {source} seed {cell.source.seed}"
    return PlannedPair(
        **dict(model_name(cell.victim, info)),
        model=cell.victim.key,
        cell=cell.key,
        attack=cell.attack.draws_as.label,  # of a cascade and of the full matrix it is one attack
        toolkit=inner(cell.attack).toolkit,
        access=cell.attack.access,
        family=cell.attack.family,
        cascade=cell.cascaded,
        share=cell.share,
        needs_a_boundary=cell.attack.needs_a_boundary,
        kind=cell.attack.kind,
        norm=cell.threat.norm,
        eps=cell.threat.eps,
        source=source,
        goal=goal_text(cell.goal),
        n=cell.n,
        part=cell.part,
        batch=cell.batch,
        levels=info.levels,
        class_names=tuple(info.classes),
        command=command,
    )


def command(plan: Plan, cell: Cell) -> str:
    """The shell command that measures a pair of a plan again; "" for what only Python can declare.

    Of a cascade it is the command of the whole chain: what an attack meets depends on those before it.
    """
    spec = cell.victim
    info, argument = plan.infos[spec.dataset], plan.arguments.get(spec.dataset)
    if plan.again:
        return plan.again
    if argument is None and spec.dataset not in dataset_names():
        return ""
    words = ["gauntlet", "run", *(plan.words or (plan.suite.name,)), "--dataset", argument or spec.dataset]
    if isinstance(spec.defense, External):
        if spec.defense.reference is None:
            return ""  # it was handed over in Python
        words += ["--victim", *victim_words(spec.defense)]
    elif said := defense_argument(spec, info):
        words += ["--model", architecture_argument(spec.architecture), "--defense", said, "--seeds", str(spec.seed)]
    else:
        return ""
    chosen = ["--attack", cell.attack.label]
    if cell.cascaded:
        chosen = [
            "--sampled" if plan.suite.sampled else "--cascade",
            *(["--no-surrogate"] if plan.without_transfers else []),
        ]
    return shlex.join([*words, "--samples", str(cell.n), *chosen])


def defense_argument(spec: ModelSpec, info: DatasetInfo) -> str:
    """A defense as ``NAME:key=value,...``, with what differs from its defaults on that data set.

    What it is built upon comes before it and a ``+``; "" where the command line cannot say it: a class that is none of
    ours, upon a model of another architecture or seed, or one of a user's, or with a front.
    """
    plugin = origin_of(type(spec.defense))
    if (plugin is None and not type(spec.defense).__module__.startswith("defenses.")) or spec.front is not None:
        return ""
    if not (name := plugin.text if plugin is not None else spec.defense.name):
        return ""
    before = ""
    if spec.base is not None:
        same = (spec.base.architecture, spec.base.seed) == (spec.architecture, spec.seed)
        if not (same and (before := defense_argument(spec.base, info))):
            return ""
        before += "+"
    usual = type(spec.defense)().resolve(info)
    changed = {name: value for name, value in vars(spec.defense).items() if value != getattr(usual, name)}
    settings = ",".join(f"{name}={written(value)}" for name, value in changed.items())
    return before + (f"{name}:{settings}" if settings else name)


def plan_record(plan: Plan, command_line: str) -> PlanRecord:
    """A plan as it is recorded."""
    records: dict[str, PlannedPair] = {}
    for cell in (*plan.cells, *plan.battery):
        if cell.key not in records:
            records[cell.key] = pair_record(cell, plan.infos[cell.victim.dataset], command(plan, cell))
    battery = {cell.key: BatteryPair.model_validate(records[cell.key].model_dump()) for cell in plan.battery}
    return PlanRecord(
        plan=plan.key,
        suite=plan.suite.name,
        command=command_line,
        budgets={name: {norm: tuple(grid) for norm, grid in norms.items()} for name, norms in plan.budgets.items()},
        reference={name: {str(norm): eps for norm, eps in info.eps.items()} for name, info in plan.infos.items()},
        models=tuple(
            ModelEntry(
                **dict(model_name(spec, plan.infos[spec.dataset])),
                model=spec.key,
                ranked=spec.key in plan.ranked,
                stochastic=spec.defense.remedy.stochastic,
                declaration=identity.canonical(spec),
            )
            for spec in plan.models
        ),
        cells=tuple(records[cell.key] for cell in plan.cells),
        battery=tuple(battery[cell.key] for cell in plan.battery),
        probes=tuple(ProbeEntry(probe=p.key, model=p.model.key, norm=p.threat.norm) for p in plan.probes),
        left_out=tuple(plan.left_out),
        certificates=tuple(
            CertificateEntry(certificate=c.key, model=c.model.key, norm=c.norm, shards=c.shards, screen=c.intervals)
            for c in (*plan.certifications, *plan.screens)
        ),
        goal=goal_text(plan.suite.goal),
        plantings=tuple(ProbeEntry(probe=p.key, model=p.model.key, norm=p.threat.norm) for p in plan.plantings),
        notes=plan.notes,
    )


def read_plan(path: Path) -> PlanRecord:
    """A recorded plan.

    Raises:
        UserError: It is damaged; the message names it.
    """
    found = read_record(path, PlanRecord, "the plan")
    if path.parent.name == "plans":
        seals.in_place(found.plan, path, path.stem)
    return found


def read_plans(home: Home, spoiled: Spoiled | None = None) -> list[PlanRecord]:
    """Every recorded plan, oldest first; damaged ones are told and left out.

    Raises:
        UserError: One is damaged, and nobody is to be told.
    """
    files = sorted(home.plans.glob("*.json"), key=lambda file: (file.stat().st_mtime_ns, file.name))
    if (listed := home.path / MANIFEST).exists():  # of a bundle, whose files may have been copied in any order
        order = read_record(listed, Manifest, "the manifest").plans
        files = [home.plans / f"{plain(key)}.json" for key in order]
    return [record for file in files if (record := attempt(lambda f=file: read_plan(f), file, spoiled))]  # type: ignore[misc]


def attempt(read: Callable[[], T], path: Path, spoiled: Spoiled | None) -> T | None:
    """What ``read`` returns; None if it finds damage and there is somebody to tell."""
    try:
        return read()
    except UserError as error:
        if spoiled is None:
            raise
        spoiled(path, error)
        return None


def write_plan(home: Home, record: PlanRecord) -> None:
    """Record a plan as the newest, also if the clock was set back; the same plan again keeps its place.

    A damaged record of it is set aside.
    """
    path = home.plans / f"{record.plan}.json"
    try:
        known = read_plan(path) if path.exists() else None
    except UserError:
        set_aside(path)
        known = None
    if known != record:
        latest = max((other.stat().st_mtime_ns for other in home.plans.glob("*.json") if other != path), default=0)
        write_record(path, record)
        if path.stat().st_mtime_ns <= latest:
            os.utime(path, ns=(latest + 1, latest + 1))
