"""The record of what a command asked for, and the boards that records make.

A plan is written to ``plans/KEY.json`` before anything runs. Reports and the tracking store are made from these
files, the cells' results and the models' cards alone, so both can be rebuilt at any time.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from . import identity
from .attacks.transfer import inner
from .datasets.registry import DatasetInfo
from .errors import UserError
from .external.external import External
from .external.external import words as victim_words
from .metrics.pairs import Board, Pair
from .planning.plan import Plan
from .planning.specs import Cell, ModelSpec
from .results import Damaged, is_finished, read_result
from .shape import PLAN, misfit
from .store import Home, no_runs, read_json, read_record, set_aside, write_json

T = TypeVar("T")
Record = Mapping[str, Any]

Spoiled = Callable[[Path, UserError], None]
"""Told of a file or folder that cannot be read and is left out, and why."""

_OF_A_PAIR = ("cell", "model", "dataset", "n", "attack", "norm", "eps", "source")
_BATTERY_FIELDS = (*_OF_A_PAIR, "cascade", "needs_a_boundary")


def model_record(spec: ModelSpec, info: DatasetInfo) -> dict[str, Any]:
    """What people want to know of a model, by plain names."""
    return {
        "model": spec.key,
        "dataset": spec.dataset,
        "architecture": spec.architecture,
        "defense": spec.label(info),
        "seed": spec.seed,
    }


def cell_record(cell: Cell, info: DatasetInfo, suite: str, argument: str | None = None) -> dict[str, Any]:
    """What people want to know of a pair, by plain names: the part of ``result.json`` known beforehand.

    Args:
        cell: The pair.
        info: Its data set.
        suite: Name of the suite.
        argument: How the data set is named on the command line, if not by its own name.
    """
    source = ""
    if cell.source is not None:
        source = f"{cell.source.architecture} {cell.source.label(info)} seed {cell.source.seed}"
    return {
        **model_record(cell.victim, info),
        "cell": cell.key,
        "attack": cell.attack.label,
        "toolkit": inner(cell.attack).toolkit,
        "access": cell.attack.access,
        "family": cell.attack.family,
        "cascade": cell.cascaded,
        "needs_a_boundary": cell.attack.needs_a_boundary,
        "kind": cell.attack.kind,
        "norm": cell.threat.norm,
        "eps": cell.threat.eps,
        "source": source,
        "n": cell.n,
        "part": cell.part,
        "batch": cell.batch,
        "levels": info.levels,
        "class_names": list(info.classes),
        "command": command(suite, cell.victim, info, attack=cell.attack.label, samples=cell.n, argument=argument),
    }


def command(
    suite: str, spec: ModelSpec, info: DatasetInfo, *, attack: str, samples: int, argument: str | None = None
) -> str:
    """The shell command that measures a pair again; "" for a model that only Python can declare."""
    words = ["gauntlet", "run", suite, "--dataset", argument or spec.dataset]
    if isinstance(spec.defense, External):
        if spec.defense.reference is None:
            return ""  # it was handed over in Python
        words += ["--victim", *victim_words(spec.defense)]
    elif said := defense_argument(spec, info):
        words += ["--model", spec.architecture, "--defense", said, "--seeds", str(spec.seed)]
    else:
        return ""
    return shlex.join([*words, "--samples", str(samples), "--attack", attack])


def defense_argument(spec: ModelSpec, info: DatasetInfo) -> str:
    """A defense as ``NAME:key=value,...``, with what differs from its defaults on that data set.

    What it is built upon comes before it and a ``+``; "" where the command line cannot say it: upon a model of another
    architecture or seed, or one of a user's, or with a front.
    """
    if isinstance(spec.defense, External) or spec.front is not None:
        return ""
    before = ""
    if spec.base is not None:
        same = (spec.base.architecture, spec.base.seed) == (spec.architecture, spec.seed)
        if not (same and (before := defense_argument(spec.base, info))):
            return ""
        before += "+"
    usual = type(spec.defense)().resolve(info)
    changed = {name: value for name, value in vars(spec.defense).items() if value != getattr(usual, name)}
    settings = ",".join(f"{name}={value}" for name, value in changed.items())
    return before + (f"{spec.defense.name}:{settings}" if settings else spec.defense.name)


def plan_record(plan: Plan, command_line: str) -> dict[str, Any]:
    """A plan as plain values."""
    suite = plan.suite.name

    records: dict[str, dict[str, Any]] = {}
    for cell in (*plan.cells, *plan.battery):
        if cell.key not in records:
            dataset = cell.victim.dataset
            records[cell.key] = cell_record(cell, plan.infos[dataset], suite, plan.arguments.get(dataset))
    return {
        "plan": plan.key,
        "suite": suite,
        "command": command_line,
        "budgets": {name: {norm: list(grid) for norm, grid in norms.items()} for name, norms in plan.budgets.items()},
        "reference": {name: dict(info.eps) for name, info in plan.infos.items()},
        "models": [
            {
                **model_record(spec, plan.infos[spec.dataset]),
                "ranked": spec.key in plan.ranked,
                "stochastic": spec.defense.remedy.stochastic,
                "declaration": identity.canonical(spec),
            }
            for spec in plan.models
        ],
        "cells": [records[cell.key] for cell in plan.cells],
        "battery": [
            {name: value for name, value in records[cell.key].items() if name in _BATTERY_FIELDS}
            for cell in plan.battery
        ],
        "probes": [{"probe": probe.key, "model": probe.model.key, "norm": probe.threat.norm} for probe in plan.probes],
        "left_out": list(plan.left_out),
    }


def read_plan(path: Path) -> dict[str, Any]:
    """A recorded plan.

    Raises:
        UserError: It is damaged; the message names it.
    """
    record = read_record(path, PLAN, "the plan")
    for cell in record["battery"]:
        norms = record["budgets"].get(cell["dataset"])
        grid = norms.get(cell["norm"]) if isinstance(norms, dict) else None
        if not grid or misfit(grid, [(int, float)]):
            raise UserError(f"{path} is damaged (no budget of {cell['dataset']} in {cell['norm']})")
    if wrong := misfit(record.get("left_out", []), [str], "left_out"):  # older records have none
        raise UserError(f"{path} is damaged ({wrong})")
    return record


def read_plans(home: Home, spoiled: Spoiled | None = None) -> list[dict[str, Any]]:
    """Every recorded plan, oldest first.

    Args:
        home: Whose.
        spoiled: Told of damaged ones, which are then left out.

    Raises:
        UserError: One is damaged, and nobody is to be told.
    """
    files = sorted(home.plans.glob("*.json"), key=lambda file: (file.stat().st_mtime_ns, file.name))
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


def write_plan(home: Home, record: Record) -> None:
    """Record a plan as the newest, also if the clock was set back; the same plan again keeps its place.

    A damaged record of it is set aside.
    """
    path = home.plans / f"{record['plan']}.json"
    try:
        known = read_json(path) if path.exists() else None
    except UserError:
        set_aside(path)
        known = None
    if known != record:
        latest = max((other.stat().st_mtime_ns for other in home.plans.glob("*.json") if other != path), default=0)
        write_json(path, record)
        if path.stat().st_mtime_ns <= latest:
            os.utime(path, ns=(latest + 1, latest + 1))


def boards(
    plans: Sequence[Record],
    pair: Callable[[str], Pair | None],
    model: Callable[[str], Mapping[str, Any]],
    facts: Callable[[str, str], Mapping[str, Any] | None],
) -> list[Board]:
    """One board a suite, data set and number of images, from every plan of it.

    A model is complete once every pair of the suite's newest battery is done, also those that no command asked for
    (``--attack`` picks some): a model that met fewer attacks must not rank above one that met all. The board tells the
    two apart: a pair that was asked for and has no result is missing, one that nobody asked for is unasked.

    Attacks that a plan leaves out of its batteries on purpose (``left_out``) are no part of them. What an earlier plan
    found with one of them counts nevertheless: adversarials do not go away because nobody looks.

    Where a trainer or an attack was declared anew under the same name (a bumped version, a changed default), the newest
    plan's model or pair stands and the older one is left out.

    Args:
        plans: Plan records, oldest first; of budgets the newest plan's count.
        pair: Finds the result of a cell by key; None if there is none.
        model: Finds a model's state by key: ``status``, ``error``, ``card``.
        facts: Finds what a probe found, by the keys of model and probe; None if there is nothing.
    """
    found = []
    asked = frozenset(cell["cell"] for record in plans for cell in record["cells"])
    for suite in dict.fromkeys(record["suite"] for record in plans):
        mine = [record for record in plans if record["suite"] == suite]
        sets = dict.fromkeys((cell["dataset"], cell["n"]) for record in mine for cell in record["battery"])
        found += [_board(mine, asked, suite, dataset, n, pair, model, facts) for dataset, n in sets]
    return found


def _board(
    plans: Sequence[Record],
    wanted: Collection[str],
    suite: str,
    dataset: str,
    n: int,
    pair: Callable[[str], Pair | None],
    model: Callable[[str], Mapping[str, Any]],
    facts: Callable[[str, str], Mapping[str, Any] | None],
) -> Board:
    models: dict[tuple[Any, ...], dict[str, Any]] = {}
    battery: dict[str, dict[str, Record]] = {}  # by model key, by name of the pair
    budgets: dict[str, list[float]] = {}
    newest: dict[str, Record] = {}
    probes: dict[str, dict[str, str]] = {}
    out: dict[str, Sequence[str]] = {}  # by model key, what its newest plan leaves out
    for record in plans:
        here = [cell for cell in record["battery"] if (cell["dataset"], cell["n"]) == (dataset, n)]
        if not here:
            continue
        budgets = dict(record["budgets"][dataset])
        newest = {cell_name(cell): cell for cell in here}
        judged = {cell["model"] for cell in here}
        for entry in record["models"]:
            if entry["model"] in judged:
                models[tuple(entry[name] for name in ("architecture", "defense", "seed"))] = dict(entry)
        asked: dict[str, set[str]] = {}
        for cell in here:
            asked.setdefault(cell["model"], set()).add(cell_name(cell))
        # a plan lists all that its suite asks of a model: what it lacks is asked no more, unless it says why
        left = record.get("left_out", ())
        for key, names in asked.items():
            before = battery.get(key, {}).items()
            battery[key] = {name: cell for name, cell in before if name in names or cell["attack"] in left}
            out[key] = left
        for cell in here:
            known = battery[cell["model"]]
            name = cell_name(cell)
            if name in known and cell["cascade"] and not known[name]["cascade"] and pair(known[name]["cell"]):
                continue  # what saw every image says more than what saw those that stood
            known[name] = cell
        for look in record["probes"]:
            if look["model"] in judged:
                probes.setdefault(look["model"], {})[look["norm"]] = look["probe"]
    pairs: list[Pair] = []
    missing: dict[str, list[str]] = {}
    unasked: dict[str, list[str]] = {}
    left_out: dict[str, list[str]] = {}
    first = {name[:-1]: place for place, name in reversed(list(enumerate(models)))}
    # seeds in their order, whichever plan came first: a mean over them is the same to the last bit
    models = dict(sorted(models.items(), key=lambda item: (first[item[0][:-1]], item[0][-1])))
    for entry in models.values():
        key = entry["model"]
        cells, left = battery[key], out[key]
        results = {name: pair(cell["cell"]) for name, cell in cells.items()}
        pairs += [result for result in results.values() if result is not None]
        none = [name for name, result in results.items() if result is None and cells[name]["attack"] not in left]
        nobodys = [name for name in none if cells[name]["cell"] not in wanted]
        absent = [name for name in none if cells[name]["cell"] in wanted]
        absent += sorted(
            name
            for name, cell in newest.items()
            if name not in cells and cell["attack"] not in left and not _spared(cell, entry)
        )
        done = {
            label: [results[name] is not None for name in cells if cells[name]["attack"] == label] for label in left
        }
        never = [label for label, ran in done.items() if not ran or not all(ran)]
        for kind, labels in ((missing, absent), (unasked, nobodys), (left_out, never)):
            if labels:
                kind[key] = labels
    health = {
        key: {norm: found for norm, probe in looks.items() if (found := facts(key, probe)) is not None}
        for key, looks in probes.items()
    }
    return Board(
        suite=suite,
        budgets={dataset: budgets},
        pairs=pairs,
        missing=missing,
        models={entry["model"]: {**entry, **model(entry["model"])} for entry in models.values()},
        health=health,
        unasked=unasked,
        left_out=left_out,
    )


def _spared(cell: Record, entry: Record) -> bool:
    """Whether a pair of another model's battery is none of this one's.

    It may be a transfer from this very model, and a model that draws has no boundary to walk along.
    """
    return bool(cell["source"] or (cell.get("needs_a_boundary") and entry.get("stochastic")))


def misplaced(pair: Pair, entry: Record) -> str:
    """Name of the first thing that a result says of its pair and the pair's entry in a plan does not; "" if none."""
    return next((name for name in _OF_A_PAIR if pair.meta.get(name) != entry[name]), "")


def cell_name(entry: Record) -> str:
    """A pair's attack and threat for people: the same in every version of it."""
    eps = "" if entry["eps"] is None else f" {entry['eps']:g}"
    source = f" from {entry['source']}" if entry["source"] else ""
    return f"{entry['attack']}{source} ({entry['norm']}{eps})"


def model_state(home: Home, key: str, spoiled: Spoiled | None = None) -> dict[str, Any]:
    """Whether a model was trained, and its card; one whose files are damaged was not, if there is somebody to tell.

    Raises:
        UserError: A file is damaged and nobody is to be told.
    """
    folder = home.model(key)

    def read() -> dict[str, Any]:
        if (folder / "card.json").exists():
            return {"status": "ok", "error": "", "card": read_record(folder / "card.json", name="the card")}
        if (folder / "failed.json").exists():
            return {"status": "failed", "error": read_json(folder / "failed.json")["error"], "card": {}}
        return {"status": "failed", "error": "not trained", "card": {}}

    return attempt(read, folder, spoiled) or {"status": "failed", "error": "its card is damaged", "card": {}}


def boards_from_home(home: Home, store: str | None = None, spoiled: Spoiled | None = None) -> list[Board]:
    """Boards from the result directories.

    Args:
        home: Where the results are.
        store: Tracking store whose run ids are shown; None: any.
        spoiled: Told of whatever is damaged. It is then left out: a pair counts as not run, a model as not trained.

    Raises:
        UserError: Nothing was run there, or a file is damaged and nobody is to be told.
    """
    plans = read_plans(home, spoiled)
    if not plans:
        raise no_runs(home.path)

    declared = {cell["cell"]: cell for record in plans for cell in (*record["cells"], *record["battery"])}

    def pair(key: str) -> Pair | None:
        folder = home.cell(key)
        if not is_finished(folder):
            return None
        runs = read_runs(folder)
        run_id = runs.get(store, "") if store is not None else next(iter(runs.values()), "")
        found = read_result(folder, run_id=run_id)
        if other := misplaced(found, declared[key]):
            raise Damaged(f"{folder / 'result.json'} is damaged (its {other} is not that of its plan)")
        return found

    return boards(
        plans,
        lru_cache(maxsize=None)(lambda key: attempt(lambda: pair(key), home.cell(key), spoiled)),
        lambda key: model_state(home, key, spoiled),
        lambda _, probe: attempt(lambda: probe_facts(home, probe), home.health(probe), spoiled),
    )


def probe_facts(home: Home, probe: str) -> dict[str, Any] | None:
    """What a probe found, None if it was not run."""
    path = home.health(probe)
    return dict(read_record(path, {"facts": dict})["facts"]) if path.exists() else None


def read_runs(folder: Path) -> dict[str, str]:
    """MLflow run ids of a plan, model or pair, by the tracking store."""
    path = folder / "runs.json"
    return read_record(path) if path.exists() else {}
