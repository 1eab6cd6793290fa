"""The record of what a command asked for, and the boards that records make.

A plan is written to ``plans/KEY.json`` before anything runs. Reports and the tracking store are made from these
files, the cells' results and the models' cards alone, so both can be rebuilt at any time.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import identity
from .data import DatasetInfo
from .errors import UserError
from .metrics import Board, Pair
from .plan import Cell, ModelSpec, Plan
from .results import is_finished, read_pair
from .store import Home, read_json, write_json
from .work import inner

Record = Mapping[str, Any]


def model_record(spec: ModelSpec, info: DatasetInfo) -> dict[str, Any]:
    """What people want to know of a model, by plain names."""
    return {
        "model": spec.key,
        "dataset": spec.dataset,
        "architecture": spec.architecture,
        "defense": spec.defense.label(info),
        "seed": spec.seed,
    }


def cell_record(cell: Cell, info: DatasetInfo, suite: str) -> dict[str, Any]:
    """What people want to know of a pair, by plain names: the part of ``result.json`` known beforehand."""
    source = ""
    if cell.source is not None:
        source = f"{cell.source.architecture} {cell.source.defense.label(info)} seed {cell.source.seed}"
    return {
        **model_record(cell.victim, info),
        "cell": cell.key,
        "attack": cell.attack.label,
        "toolkit": inner(cell.attack).toolkit,
        "access": cell.attack.access,
        "kind": cell.attack.kind,
        "norm": cell.threat.norm,
        "eps": cell.threat.eps,
        "source": source,
        "n": cell.n,
        "batch": cell.batch,
        "levels": info.levels,
        "class_names": list(info.classes),
        "command": command(suite, cell.victim, info, attack=cell.attack.label, samples=cell.n),
    }


def command(suite: str, spec: ModelSpec, info: DatasetInfo, *, attack: str | None = None, samples: int) -> str:
    """The shell command that measures a model (or one of its pairs) again."""
    words = ["gauntlet", "run", suite, "--dataset", spec.dataset, "--model", spec.architecture]
    words += ["--defense", defense_argument(spec, info), "--seeds", str(spec.seed), "--samples", str(samples)]
    if attack is not None:
        words += ["--attack", attack]
    return shlex.join(words)


def defense_argument(spec: ModelSpec, info: DatasetInfo) -> str:
    """A defense as ``NAME:key=value,...``, with what differs from its defaults on that data set."""
    usual = type(spec.defense)().resolve(info)
    changed = {name: value for name, value in vars(spec.defense).items() if value != getattr(usual, name)}
    settings = ",".join(f"{name}={value}" for name, value in changed.items())
    return f"{spec.defense.name}:{settings}" if settings else spec.defense.name


def plan_record(plan: Plan, command_line: str) -> dict[str, Any]:
    """A plan as plain values."""
    suite = plan.suite.name
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
                "declaration": identity.canonical(spec),
            }
            for spec in plan.models
        ],
        "cells": [cell_record(cell, plan.infos[cell.victim.dataset], suite) for cell in plan.cells],
    }


def read_plans(home: Home) -> list[dict[str, Any]]:
    """Every recorded plan, oldest first."""
    files = sorted(home.plans.glob("*.json"), key=lambda file: file.stat().st_mtime)
    return [read_json(file) for file in files]


def write_plan(home: Home, record: Record) -> None:
    """Record a plan; the same plan again keeps its place."""
    path = home.plans / f"{record['plan']}.json"
    if not path.exists() or read_json(path) != record:
        write_json(path, record)


def boards(
    plans: Sequence[Record],
    pair: Callable[[str], Pair | None],
    model: Callable[[str], Mapping[str, Any]],
) -> list[Board]:
    """One board a suite, from every plan of it.

    Args:
        plans: Plan records, oldest first; of budgets the newest plan's count.
        pair: Finds the result of a cell by key; None if there is none.
        model: Finds a model's state by key: ``status``, ``error``, ``card``.
    """
    found = []
    for suite in dict.fromkeys(record["suite"] for record in plans):
        budgets: dict[str, dict[str, list[float]]] = {}
        models: dict[str, dict[str, Any]] = {}
        cells: dict[str, Record] = {}
        for record in plans:
            if record["suite"] != suite:
                continue
            budgets |= record["budgets"]
            for entry in record["models"]:
                known = models.setdefault(entry["model"], dict(entry))
                known["ranked"] = known["ranked"] or entry["ranked"]
            cells |= {entry["cell"]: entry for entry in record["cells"]}
        pairs = {key: pair(key) for key in cells}
        missing: dict[str, list[str]] = {}
        for key, entry in cells.items():
            if pairs[key] is None:
                missing.setdefault(entry["model"], []).append(_cell_name(entry))
        found.append(
            Board(
                suite=suite,
                budgets=budgets,
                pairs=[value for value in pairs.values() if value is not None],
                missing=missing,
                models={key: {**entry, **model(key)} for key, entry in models.items()},
            )
        )
    return found


def _cell_name(entry: Record) -> str:
    eps = "" if entry["eps"] is None else f" {entry['eps']:g}"
    return f"{entry['attack']} ({entry['norm']}{eps})"


def model_state(home: Home, key: str) -> dict[str, Any]:
    """Whether a model was trained, and its card."""
    folder = home.model(key)
    if (folder / "card.json").exists():
        return {"status": "ok", "error": "", "card": read_json(folder / "card.json")}
    if (folder / "failed.json").exists():
        return {"status": "failed", "error": read_json(folder / "failed.json")["error"], "card": {}}
    return {"status": "failed", "error": "not trained", "card": {}}


def boards_from_home(home: Home, plans: Sequence[Record] | None = None) -> list[Board]:
    """Boards from the result directories.

    Args:
        home: Where the results are.
        plans: Only these; None: all that are recorded.

    Raises:
        UserError: Nothing was run there, or a result file is damaged.
    """
    chosen = read_plans(home) if plans is None else list(plans)
    if not chosen:
        raise UserError(f"no runs in {home.path}; make some with: gauntlet run quick --home {home.path}")

    def pair(key: str) -> Pair | None:
        folder = home.cell(key)
        if not is_finished(folder):
            return None
        runs = read_runs(folder)
        run_id = next(iter(runs.values()), "")
        return read_pair(folder, run_id=run_id)

    return boards(chosen, pair, lambda key: model_state(home, key))


def read_runs(folder: Any) -> dict[str, str]:
    """MLflow run ids of a model or pair, by tracking URI."""
    path = folder / "runs.json"
    return dict(read_json(path)) if path.exists() else {}
