"""``gauntlet explain``: declaration, state, files, runs and command of a pair or model."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from .. import environment
from ..errors import UserError
from ..schema.base import Provenance
from ..schema.models import Card, FailedTraining, ModelName
from ..schema.pairs import BatteryPair, PlannedPair, Result
from ..schema.plans import PlanRecord
from .boards import read_runs
from .checkpoints import Standing, State, model_standing, weights_standing, whole_model
from .files import earlier, flat, is_aside, read_record
from .home import Home, no_runs
from .plans import attempt, read_plans
from .results import is_finished, read_pair

CHOICES: Final = 6
"""Keys named where a prefix fits several or none."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What is known of a pair or a model.

    Attributes:
        reasons: Why, a line each.
        declaration: By dotted names; what the key is a hash of, or, of a pair that has no result, what its plan says.
        made_with: Package versions and commit: then and now; empty where there is no result.
        files: What there is, with sizes in bytes.
        command: The command that makes it, "" if only Python can.
    """

    kind: Literal["pair", "model"]
    key: str
    title: str
    state: State
    reasons: tuple[str, ...]
    declaration: Mapping[str, Any]
    made_with: Mapping[str, tuple[str, str]]
    plans: tuple[str, ...]
    files: Mapping[Path, int]
    runs: Mapping[str, str]
    command: str


def explain(home: Home, text: str, versions: Mapping[str, int] | None = None) -> Explanation:
    """Say what is known of a pair or a model: a result, a trained model, or what a plan asks for.

    ``text`` is its key, or the beginning of it that no other key shares. Versions of today's classes, ``"attack NAME"``
    or ``"defense NAME"``, show declarations that were bumped since.

    Raises:
        UserError: The home is none; no key begins so, or several do.
    """
    if not home.path.is_dir():
        raise no_runs(home.path)
    plans = read_plans(home, lambda *_: None)
    pairs, models = _known(home, plans)
    key = _find(text, sorted(pairs | models), home)
    found = _pair(home, key, plans) if key in pairs else _model(home, key, plans)
    bumped = tuple(_bumped(found.declaration, versions or {}))
    state: State = "superseded" if bumped and found.state == "fresh" else found.state
    reasons = (*found.reasons, *bumped) or ("whole, and made of what is here now",)
    return dataclasses.replace(found, state=state, reasons=reasons)


def _known(home: Home, plans: Sequence[PlanRecord]) -> tuple[set[str], set[str]]:
    """Keys of pairs and of models, on disk or in a plan."""
    there = {
        kind: {path.name for path in (home.path / kind).glob("*") if path.is_dir() and not is_aside(path)}
        for kind in ("cells", "models")
    }
    pairs = there["cells"] | {cell.cell for plan in plans for cell in (*plan.cells, *plan.battery)}
    return pairs, there["models"] | {model.model for plan in plans for model in plan.models}


def _find(text: str, keys: Sequence[str], home: Home) -> str:
    if text in keys:
        return text
    fitting = [key for key in keys if text and key.startswith(text)]
    if len(fitting) == 1:
        return fitting[0]
    choices = fitting or keys
    if not choices:
        raise UserError(f"no pair and no model in {home.path}; make some with: gauntlet run quick --home {home.path}")
    more = f" and {len(choices) - CHOICES} more" if len(choices) > CHOICES else ""
    named = ", ".join(choices[:CHOICES]) + more
    if fitting:
        raise UserError(f"{len(fitting)} keys begin with {text!r}: {named}")
    what = f"no pair or model of {home.path} begins with {text!r}"
    raise UserError(f"{what}; choose from {named} (gauntlet plan lists them)")


def _pair(home: Home, key: str, plans: Sequence[PlanRecord]) -> Explanation:
    folder = home.cell(key)
    asked = [(plan, cell) for plan in plans for cell in plan.cells if cell.cell == key]
    listed = [cell for plan in plans for cell in plan.battery if cell.cell == key]
    standing, reasons, result = _result(home, folder)
    planned: PlannedPair | None = result or (asked[-1][1] if asked else None)
    known: BatteryPair | None = planned or (listed[-1] if listed else None)
    command = planned.command if planned is not None else ""
    if standing == "fresh" and result is not None and (newer := _newer(result, plans)):
        standing, reasons = "superseded", [newer]
    if not (asked or listed) and result is not None:
        reasons.append("no plan here asks for it: no board shows it")
    if planned is None and known is not None:
        whole = _of_model(plans, known.model)
        command = f"{whole} --attack {shlex.quote(known.attack)}" if whole else ""
        reasons.append("its suite asks for it, and no command did")
    declared = known.model_dump(exclude={"command"}) if known is not None else {}
    return Explanation(
        kind="pair",
        key=key,
        title=_title(known, plans),
        state=standing,
        reasons=tuple(reasons),
        declaration=flat((result.declaration if result is not None else {}) or declared),
        made_with=_made_with(result) if result is not None else {},
        plans=tuple(dict.fromkeys(plan.command for plan, _ in asked)),
        files=_files(folder),
        runs=_runs(folder),
        command=command,
    )


def _result(home: Home, folder: Path) -> tuple[State, list[str], Result | None]:
    """State of a pair's result, why, and the result if it can be read."""
    if not is_finished(folder):
        shards = len(list((folder / "shards").glob("*.safetensors")))
        before = len(earlier(folder))
        reasons = [f"interrupted: {shards} shards are done" if shards else "it was not run"]
        return "missing", reasons + ([f"{before} earlier results were set aside beside it"] if before else []), None
    try:
        result = read_pair(folder).result
    except UserError as error:
        return "damaged", [f"{error}; gauntlet run sets it aside and makes it again"], None
    try:
        standing = weights_standing(home, result.weights)
    except UserError as error:
        standing = Standing("stale", str(error))
    if standing.state != "fresh":
        return standing.state, [standing.reason], result
    faults = [] if result.files else ["it holds no digests, as results of earlier versions: unverified"]
    if result.failed:
        said = f": {'; '.join(result.errors)}" if result.errors else ""
        faults.append(f"its status is {result.status}{said}")
    now = environment.versions()
    if others := [name for name, version in result.versions.items() if now.get(name) != version]:
        faults.append(f"made with other versions of {', '.join(others)}; a finished result stands nevertheless")
    return "fresh", faults, result


def _newer(known: PlannedPair, plans: Sequence[PlanRecord]) -> str:
    """The newest plan's pair of the same names, if it is another; "" if not."""
    names = _names(plans)
    mine = (names.get(known.model), known.n, known.pair_name)
    for plan in reversed(plans):
        for cell in plan.battery:
            if (names.get(cell.model), cell.n, cell.pair_name) == mine:
                if cell.cell == known.cell:
                    return ""
                if not (cell.cascade and not known.cascade):  # a cascade does not replace what saw every image
                    return f"superseded by {cell.cell} of a newer plan: {plan.command}"
    return ""


def _names(plans: Sequence[PlanRecord]) -> dict[str, ModelName]:
    """Names of models by key."""
    return {model.model: ModelName.of(model) for plan in plans for model in plan.models}


def _model(home: Home, key: str, plans: Sequence[PlanRecord]) -> Explanation:
    folder = home.model(key)
    asking = [(plan, model) for plan in plans for model in plan.models if model.model == key]
    state, reasons, card = _weights(home, key)
    names = _names(plans)
    name = ModelName.of(card) if card is not None else names.get(key)
    if state == "fresh" and name is not None:
        other = {found: other for other, found in names.items()}.get(name, key)  # the newest plan's stands
        if other != key:
            state, reasons = "superseded", [f"superseded by the model {other} of a newer plan"]
    declared = (card.declaration if card is not None else {}) or (asking[-1][1].declaration if asking else {})
    return Explanation(
        kind="model",
        key=key,
        title=str(name) if name is not None else "",
        state=state,
        reasons=tuple(reasons),
        declaration=flat(declared),
        made_with={},
        plans=tuple(dict.fromkeys(plan.command for plan, _ in asking)),
        files=_files(folder),
        runs=_runs(folder),
        command=_of_model(plans, key),
    )


def _weights(home: Home, key: str) -> tuple[State, list[str], Card | None]:
    """State of a model, why, and its card if it can be read."""
    folder = home.model(key)
    if not (folder / "card.json").exists():
        path = folder / "failed.json"
        failed = attempt(lambda: read_record(path, FailedTraining), path, lambda *_: None) if path.exists() else None
        return "missing", [f"training failed: {failed.error}" if failed is not None else "not trained"], None
    try:
        card = whole_model(folder)
    except UserError as error:
        return "damaged", [f"{error}; delete {folder} to have it trained again"], None
    try:
        standing = model_standing(home, key)
    except UserError as error:
        standing = Standing("stale", str(error))
    return standing.state, [standing.reason] if standing.reason else [], card


def _of_model(plans: Sequence[PlanRecord], key: str) -> str:
    """The command that makes a model and all that the suite asks of it: that of its pairs, choosing no attack."""
    cells = [cell for plan in reversed(plans) for cell in plan.cells if cell.model == key]
    command = next((cell.command for cell in cells if cell.command), "")
    return command.partition(" --attack ")[0]


def _title(known: BatteryPair | None, plans: Sequence[PlanRecord]) -> str:
    if known is None:
        return "a pair of which only unfinished parts are here"
    name = _names(plans).get(known.model) or (ModelName.of(known) if isinstance(known, PlannedPair) else known.dataset)
    return f"{name}: {known.pair_name}, {known.n} images"


def _made_with(made: Provenance) -> dict[str, tuple[str, str]]:
    now = environment.versions()
    found = {name: (version, now.get(name, "-")) for name, version in made.versions.items()}
    return found | {"commit": (made.git_commit, environment.git_commit())} if found else {}


def _files(folder: Path) -> dict[Path, int]:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.endswith(".part"))
    return {file: file.stat().st_size for file in files}


def _runs(folder: Path) -> dict[str, str]:
    return attempt(lambda: read_runs(folder), folder, lambda *_: None) or {}


def _bumped(declaration: Mapping[str, Any], versions: Mapping[str, int]) -> Iterator[str]:
    """Lines about parts of a declaration whose class has another version today."""
    for name, kind in declaration.items():
        prefix, _, last = name.rpartition(".")
        if last != "is":
            continue
        role = prefix.rpartition(".")[2]
        then, now = declaration.get(f"{prefix}.version"), versions.get(f"{role} {kind}")
        if now is not None and then != now:
            yield f"{kind} is at version {now} today, this is of version {then}: the same command makes another"
