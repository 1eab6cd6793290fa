"""Tables of what there is, for ``gauntlet list`` and ``gauntlet plan``. Imports neither ART, Foolbox nor MLflow."""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter

from rich.markup import escape
from rich.table import Table

from .attack import Attack
from .plan import Plan
from .results import is_finished
from .store import Home, has_model, load_card


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _budgets(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def datasets() -> Table:
    """Data sets and their canonical budgets."""
    from .data import DATASETS, USER_SETS

    table = _table("data set", "shape", "classes", "linf", "l2", "l1")
    for info in DATASETS.values():
        grids = [_budgets(info.budgets.get(norm, ())) for norm in ("linf", "l2", "l1")]
        table.add_row(info.name, "x".join(map(str, info.shape)), str(len(info.classes)), *grids)
    for form in USER_SETS:
        table.add_row(form, "", "", "", "", "")
    return table


def models() -> Table:
    """Architectures."""
    from .models import ARCHITECTURES, PAPER_MLPS

    table = _table("model", "what it is")
    for name in PAPER_MLPS:
        table.add_row(name, "fully connected ReLU network")
    table.add_row("mlp-A-B-...", "the same with any hidden widths")
    for name, build in ARCHITECTURES.items():
        table.add_row(name, _first_line(build))
    return table


def defenses() -> Table:
    """Defenses and their hyperparameters' defaults."""
    import dataclasses

    from defenses import defenses as kinds

    from .training import Trainer

    common = {field.name for field in dataclasses.fields(Trainer)}
    table = _table("defense", "what it does", "its own hyperparameters", "source")
    for name, kind in kinds().items():
        own = [f"{f.name}={f.default}" for f in dataclasses.fields(kind) if f.name not in common]
        table.add_row(name, kind.summary, ", ".join(own), kind.source)
    table.add_row("", "", f"every one: {', '.join(sorted(common))}", "", style="dim")
    return table


def own_attacks() -> dict[str, type[Attack]]:
    """Attacks of our own by name."""
    from . import attacks as package

    found: dict[str, type[Attack]] = {}
    for module in pkgutil.iter_modules(package.__path__):
        for value in vars(importlib.import_module(f"{package.__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Attack) and isinstance(vars(value).get("name"), str):
                found[value.name] = value
    return {name: kind for name, kind in sorted(found.items()) if kind.toolkit == "gauntlet"}


def attacks() -> Table:
    """Attacks: our own, and what the two doors let through or refuse."""
    from .attacks import art, foolbox

    table = _table("toolkit", "attack", "norms", "kind", "needs", "remark")
    for name, kind in own_attacks().items():
        norms = " ".join(kind.norms)
        table.add_row("gauntlet", name, norms, "", "", _first_line(kind))
    for toolkit, door in (("art", art), ("foolbox", foolbox)):
        for row in door.capabilities():
            if row.refused:
                hint = f"; use {row.instead}" if row.instead else ""
                table.add_row(toolkit, row.attack, "", "", "", escape(f"refused: {row.defect}{hint}"), style="dim")
            else:
                norms = " ".join(row.norms)
                table.add_row(toolkit, row.attack, norms, row.kind, row.access, escape(row.defect), style=None)
    return table


def suites() -> Table:
    """Suites."""
    from suites import suites as batteries

    table = _table("suite", "norm", "attacks", "what it is for")
    for name, suite in batteries().items():
        for number, (norm, members) in enumerate(suite.attacks.items()):
            labels = escape(", ".join(attack.label for attack in members))
            table.add_row(name if number == 0 else "", norm, labels, suite.summary if number == 0 else "")
    return table


def plan_table(plan: Plan, home: Home) -> Table:
    """The cells of a plan and their state."""
    table = _table("data set", "model", "defense", "seed", "attack", "threat", "images", "cell", "state")
    states: Counter[str] = Counter()
    for cell in plan.cells:
        spec = cell.victim
        state = "done" if is_finished(home.cell(cell.key)) else "to do"
        states[state] += 1
        table.add_row(
            spec.dataset,
            spec.architecture,
            escape(spec.label(plan.infos[spec.dataset])),
            str(spec.seed),
            escape(cell.attack.label),
            str(cell.threat),
            str(cell.n),
            cell.key,
            state,
        )
    trained = sum(has_model(home, spec) for spec in plan.models)
    table.caption = (
        f"{len(plan.models)} models ({trained} trained), {len(plan.cells)} pairs "
        f"({states['done']} done, {states['to do']} to do)"
    )
    table.caption_justify = "left"
    return table


def trained_table(plan: Plan, home: Home) -> Table:
    """Models of a plan and how well they were trained."""
    table = _table("data set", "model", "defense", "seed", "train accuracy", "test accuracy", "seconds")
    for spec in plan.models:
        name = escape(spec.label(plan.infos[spec.dataset]))
        if not has_model(home, spec):
            table.add_row(spec.dataset, spec.architecture, name, str(spec.seed), "-", "-", "failed")
            continue
        card = load_card(home, spec)
        accuracies = (f"{card['train_accuracy']:.2%}", f"{card['test_accuracy']:.2%}")
        table.add_row(spec.dataset, spec.architecture, name, str(spec.seed), *accuracies, f"{card['seconds']:.1f}")
    return table


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def studies() -> Table:
    """Papers whose experiments can be reproduced."""
    from suites import studies as known

    table = _table("study", "paper", "profiles", "items")
    for study in known().values():
        row = (study.name, f"{study.title}. {study.source}", ", ".join(study.profiles), ", ".join(study.names))
        table.add_row(*map(escape, row))
    return table
