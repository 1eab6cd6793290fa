"""Tables for ``gauntlet list`` and ``gauntlet plan``. Imports neither ART, Foolbox nor MLflow."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final, NamedTuple

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..attacks.base import Attack
from ..errors import UserError
from ..goal import goal_text
from ..planning.plan import Plan
from ..planning.specs import ModelSpec
from ..records.checkpoints import card, has_model
from ..records.home import Home
from ..records.results import is_finished
from ..schema.counts import plural
from ..schema.eps import eps_text
from ..schema.goals import UNTARGETED
from ..user_code import plugins

if TYPE_CHECKING:
    from pandas import DataFrame

    from ..records.explain import Explanation


def _table(*columns: str, rows: Iterable[Iterable[str]] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def datasets() -> Group:
    """Data sets, their canonical budgets, and how a user's own are laid out."""
    from ..datasets.image_folders import LAYOUTS, TABLES
    from ..datasets.registry import DATASETS, PLACES, default_info

    table = _table("data set", "shape", "classes", "linf", "l2", "l1")
    examples = (default_info("images:DIR, parquet:FILE", shape, (), 0) for shape in ((3, 224, 224), (1, 224, 224)))
    for info in (*DATASETS.values(), *examples):
        grids = [" ".join(eps_text(eps) for eps in info.budgets.get(norm, ())) for norm in ("linf", "l2", "l1")]
        table.add_row(info.name, "x".join(map(str, info.shape)), str(len(info.classes) or "2 or more"), *grids)
    scaled = "any one size; as cifar10 in colour and mnist in gray, l2 and l1 times the square root of the size"
    notes = [
        f"images:DIR   {LAYOUTS}",
        f"parquet:FILE {TABLES}",
        f"size and budgets of both: {scaled}",
        "--resize 256 --crop 224: images of several sizes, as torchvision's Resize and CenterCrop",
        "--classes MAP: which of a model's outputs the classes are, all of which compete: imagenet (folders named by "
        "id or name), or JSON or CSV: folder to number or name, or the names of all outputs",
        "FILE.py:NAME: a function that makes one (docs/extending.md)",
        "the others lie in --data-root, in torchvision's layout: "
        + ", ".join(f"{name} {PurePosixPath(places[0]).parent}/" for name, places in PLACES.items()),
    ]
    return Group(table, *(Text(note, style="dim") for note in notes))


def models() -> Table:
    """Architectures."""
    from ..models.registry import ARCHITECTURES, PAPER_MLPS

    rows = [(name, "fully connected ReLU network") for name in PAPER_MLPS]
    rows.append(("mlp-A-B-...", "the same with any hidden widths"))
    rows += [(name, _first_line(build)) for name, build in ARCHITECTURES.items()]
    return _table("model", "what it is", rows=rows)


def defenses() -> Table:
    """Defenses and their hyperparameters' defaults."""
    import dataclasses

    from defenses import defenses as kinds

    from ..training.gradient_descent import GradientDescent
    from ..training.trainer import Trainer

    common = {field.name: None for field in dataclasses.fields(Trainer)}
    table = _table("defense", "what it does", "its own hyperparameters", "source")
    for name, kind in kinds().items():
        own = [f"{f.name}={f.default}" for f in dataclasses.fields(kind) if f.name not in common]
        table.add_row(name, kind.summary, ", ".join(own), kind.source)
    descent = [field.name for field in dataclasses.fields(GradientDescent)]
    table.add_row("", "", f"all that are trained: {', '.join(descent)}", "", style="dim")
    more = [name for name in common if name not in descent]
    table.add_row("", "", f"classifiers too: {', '.join(more)}", "", style="dim")
    return table


def own_attacks() -> dict[str, type[Attack]]:
    """Attacks of our own by name."""
    from .. import attacks as package

    found: dict[str, type[Attack]] = {}
    for module in pkgutil.iter_modules(package.__path__):
        for value in vars(importlib.import_module(f"{package.__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Attack) and isinstance(vars(value).get("name"), str):
                found[value.name] = value
    return {name: kind for name, kind in sorted(found.items()) if kind.toolkit == "gauntlet"}


def attacks() -> Table:
    """Attacks: our own, and what the two doors let through or refuse."""
    from ..attacks.toolkits import art, foolbox

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


class _Planned(NamedTuple):
    """A pair or a certificate of a plan."""

    spec: ModelSpec
    what: str
    threat: str
    images: str
    key: str
    done: bool


def plan_table(plan: Plan, home: Home, *, folded: bool = False) -> Table:
    """The cells of a plan and their state.

    ``folded`` has one row for all seeds and threats of a network under an attack, and says how many of them are done.
    """
    goal = goal_text(plan.suite.goal)
    aim = f", {goal}" if plan.suite.goal is not None else ""
    pairs = [
        _Planned(
            cell.victim,
            escape(cell.attack.label),
            f"{cell.threat}{aim}",
            str(cell.n),
            cell.key,
            is_finished(home.cell(cell.key)),
        )
        for cell in plan.cells
    ]
    certificates = [
        _Planned(
            asked.model,
            "certificate",
            f"{asked.norm} {', '.join(map(eps_text, asked.grid))}",
            f"first {asked.n}" if asked.passes is None else f"at most {asked.n}",
            asked.key,
            all(home.certificate(asked.key, shard).exists() for shard in range(asked.shards)),
        )
        for asked in plan.certifications
    ]
    last = (
        ("seeds", "attack", "threats", "pairs", "done")
        if folded
        else ("seed", "attack", "threat", "images", "cell", "state")
    )
    table = _table("data set", "model", "defense", *last)

    def network(spec: ModelSpec) -> tuple[str, ...]:
        return spec.dataset, spec.architecture, escape(spec.label(plan.infos[spec.dataset]))

    if folded:
        networks: dict[tuple[str, ...], dict[str, list[_Planned]]] = {}
        for one in (*pairs, *certificates):
            networks.setdefault(network(one.spec), {}).setdefault(one.what, []).append(one)
        for names, attacks in networks.items():
            for what, some in attacks.items():
                seeds = " ".join(dict.fromkeys(str(one.spec.seed) for one in some))
                threats = ", ".join(dict.fromkeys(one.threat for one in some))
                table.add_row(*names, seeds, what, threats, str(len(some)), str(sum(one.done for one in some)))
                names = ("", "", "")
    else:
        for one in (*pairs, *certificates):
            state = "done" if one.done else "to do"
            table.add_row(*network(one.spec), str(one.spec.seed), one.what, one.threat, one.images, one.key, state)
    trained = sum(has_model(home, spec) for spec in plan.models)
    done = sum(one.done for one in pairs)
    table.caption = (
        f"{plural(len(plan.models), 'model')} ({trained} trained), {plural(len(pairs), 'pair')} "
        f"({done} done, {len(pairs) - done} to do), {goal}"
    )
    if certificates:
        table.caption += f", {plural(len(certificates), 'certificate')} ({sum(one.done for one in certificates)} done)"
    table.caption_justify = "left"
    return table


def checks() -> Table:
    """Health checks."""
    from ..trust.grade import QUESTIONS

    return _table("check", "question", rows=((question.name, question.title) for question in QUESTIONS))


OWN: Final = {
    "datasets": "--dataset; a function that returns the images",
    "models": "--model; a function of shape and classes that returns the network",
    "defenses": "--defense; a class derived from gauntlet.Trainer",
    "attacks": "--add-attack; a class derived from gauntlet.Attack, or a declaration",
    "suites": "gauntlet run FILE.py:NAME; a gauntlet.Suite",
}
"""How what is listed is named from a file of the user's."""


def offers(what: str) -> Table | None:
    """What installed packages offer of a sort, None if nothing; what cannot be loaded says why."""
    group: plugins.Group = what  # type: ignore[assignment]
    if not (found := plugins.offered(group)):
        return None
    table = _table("from a package", "what it is", "package")
    for name in found:
        try:
            said, style = _first_line(plugins.from_package(group, name, what, lambda value: True).value), None
        except UserError as error:
            said, style = str(error), "red"
        table.add_row(escape(name), escape(said), escape(plugins.whence(group, name)), style=style)
    return table


def surrogates(plans: Sequence[Plan], home: Home, seconds: Mapping[str, float]) -> list[str]:
    """A line for each network that is trained for nothing but transfers from it, those that differ by seed in one."""
    from ..execution.estimate import duration

    kinds: dict[str, list[ModelSpec]] = {}
    for plan in plans:
        for spec in (spec for spec in plan.crafters if not spec.members and spec.defense.trainable):
            name = f"{spec.architecture} {spec.label(plan.infos[spec.dataset])} on {spec.dataset}"
            if spec not in kinds.setdefault(name, []):
                kinds[name].append(spec)
    lines = []
    for name, specs in kinds.items():
        missing = [spec for spec in specs if not has_model(home, spec)]
        known = [seconds[spec.key] for spec in missing if spec.key in seconds]
        each = " each" if len(missing) > 1 else ""
        cost = f"about {duration(max(known) / 3600)}{each}" if known else "of unknown cost"
        state = f"{cost}; kept for later commands" if missing else "trained already"
        if missing and len(missing) < len(specs):
            state = f"{len(specs) - len(missing)} of {len(specs)} trained already, the others {state}"
        seeds = ", ".join(str(spec.seed) for spec in specs)
        lines.append(f"surrogate for transfers: {name}, seed{'s' if len(specs) > 1 else ''} {seeds}, {state}")
    return lines


def trained_table(plan: Plan, home: Home) -> Table:
    """Models of a plan and how well they were trained."""
    table = _table("data set", "model", "defense", "seed", "train accuracy", "test accuracy", "seconds")
    for spec in plan.models:
        name = escape(spec.label(plan.infos[spec.dataset]))
        if not has_model(home, spec):
            table.add_row(spec.dataset, spec.architecture, name, str(spec.seed), "-", "-", "failed")
            continue
        facts = card(home, spec.key)
        accuracies = (f"{facts.train_accuracy:.2%}", f"{facts.test_accuracy:.2%}")
        table.add_row(spec.dataset, spec.architecture, name, str(spec.seed), *accuracies, f"{facts.seconds:.1f}")
    return table


def versions() -> dict[str, int]:
    """Versions of attacks and defenses, by ``"attack NAME"`` and ``"defense NAME"``: both have a gaussian-noise."""
    from defenses import defenses as kinds

    from ..attacks.toolkits.art import Art
    from ..attacks.toolkits.foolbox import Foolbox

    found = {f"defense {name}": kind.version for name, kind in kinds().items()}
    found |= {f"attack {name}": kind.version for name, kind in own_attacks().items()}
    return found | {f"attack {door.name}": door.version for door in (Art, Foolbox)}


def explanation(found: Explanation) -> Group:
    """What is known of a pair or a model."""
    styles = {"fresh": "green", "missing": "yellow", "stale": "yellow", "superseded": "yellow", "damaged": "red"}
    head = [Text(f"{found.kind} {found.key}: {found.title}", style="bold")]
    head += [Text(f"{found.state}: {'; '.join(found.reasons)}", style=styles[found.state])]
    head += [Text(f"made by: {found.command or 'Python alone; no command line can declare it'}")]
    head += [Text(f"asked for by: {command}") for command in found.plans]
    head += [Text(f"MLflow run in {store}: {run}") for store, run in found.runs.items()]
    tables = []
    if found.files:
        rows = ((escape(str(file)), f"{size:,}") for file, size in found.files.items())
        tables.append(_table("file", "bytes", rows=rows))
    if found.made_with:
        made = _table("made with", "then", "here")
        for name, (then, now) in found.made_with.items():
            made.add_row(name, escape(then), escape(now), style=None if then == now else "bold yellow")
        tables.append(made)
    if found.declaration:
        rows = ((escape(name), escape(str(value))) for name, value in found.declaration.items())
        tables.append(_table("declaration", "", rows=rows))
    return Group(*head, *(part for table in tables for part in ("", table)))


def moved_table(moved: DataFrame, most: int = 50) -> Table:
    """Numbers that moved between two homes, of :func:`harness.records.diff.differences`."""
    table = _table("model", "attack", "threat", "A", "B", "B - A", "95 % interval", "p", "")
    for row in moved.head(most).to_dict("records"):
        model = f"{row['dataset']} {row['architecture']} {row['defense']} seed {row['seed']}"
        about = f" from {row['source']}" if row["source"] else ""
        about += f" of {row['suite']}" if row["suite"] else ""
        about += f", {row['part']} images" if row["part"] != "test" else ""
        about += f", {row['goal']}" if row["goal"] != UNTARGETED and not row["suite"] else ""  # a suite's name has it
        other = "" if row["matched"] == "key" else ", another version"
        sides = [
            f"{row[f'accuracy_{side}']:.1%}" if row[f"accuracy_{side}"] >= 0 else row[f"status_{side}"] for side in "ab"
        ]
        known = row["difference"] == row["difference"]  # a failure has no number
        table.add_row(
            escape(model),
            escape(row["attack"] + about),
            f"{row['norm']} {eps_text(row['eps'])}",
            *sides,
            f"{row['difference']:+.1%}" if known else "",
            f"{row['low']:+.1%} to {row['high']:+.1%}" if known else "",
            f"{row['p_value']:.2g}" if row["test"] == "paired" else "",
            f"{row['state']}{other}",
            style="bold" if row["state"] == "beyond noise" else None,
        )
    if len(moved) > most:
        table.caption = f"and {len(moved) - most} more: --csv FILE writes all"
        table.caption_justify = "left"
    return table


def _first_line(thing: object) -> str:
    said = getattr(thing, "summary", "") or getattr(thing, "title", "") or (thing.__doc__ or "").strip()
    return str(said).partition("\n")[0]


def studies() -> Table:
    """Papers whose experiments can be reproduced."""
    from suites import studies as known

    rows = [
        (study.name, f"{study.title}. {study.source}", ", ".join(study.profiles), ", ".join(study.names))
        for study in known().values()
    ]
    return _table("study", "paper", "profiles", "items", rows=(map(escape, row) for row in rows))
