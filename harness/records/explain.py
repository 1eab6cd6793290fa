"""What a key stands for: declaration, what it was made with, whether it still holds, where it lies, how to make it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from .. import environment
from ..errors import UserError
from .boards import read_runs
from .checkpoints import whole_model
from .files import earlier, flat, is_aside, read_record
from .home import Home, no_runs
from .plans import attempt, cell_name, read_plans
from .results import is_finished, read_result

CHOICES: Final = 6
"""Keys named where a prefix fits several or none."""

NAMES: Final = ("dataset", "architecture", "defense", "seed")
"""What people know a model by."""

State = Literal["fresh", "stale", "missing", "damaged", "superseded"]
"""``fresh``: stands, and the same command leaves it alone. ``stale``, ``missing``, ``damaged``: the same command makes
it (again). ``superseded``: it is whole, but another was declared in its place since."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What is known of a pair or a model.

    Attributes:
        kind: Which of the two.
        key: Its key.
        title: What it is, in a line.
        state: See :data:`State`.
        reasons: Why, a line each.
        declaration: By dotted names; what the key is a hash of, or, of a pair that has no result, what its plan says.
        made_with: Package versions and commit: then and now; empty where there is no result.
        plans: Commands that asked for it, oldest first.
        files: What there is, with sizes in bytes.
        runs: Its MLflow runs, by store.
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
    """Say what is known of a pair or a model.

    Args:
        home: Where it is looked for: among results, models, and what plans ask for.
        text: Its key, or the beginning of it that no other key shares.
        versions: Versions of today's classes by what they are, ``"attack NAME"`` or ``"defense NAME"``, to notice
            declarations that were bumped since.

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
    if bumped and found.state == "fresh":
        return _changed(found, "superseded", bumped)
    return _changed(found, found.state, bumped)


def _changed(found: Explanation, state: State, more: Sequence[str]) -> Explanation:
    reasons = (*found.reasons, *more) or ("whole, and made of what is here now",)
    return Explanation(**{**vars(found), "state": state, "reasons": reasons})


def _known(home: Home, plans: Sequence[Mapping[str, Any]]) -> tuple[set[str], set[str]]:
    """Keys of pairs and of models, on disk or in a plan."""
    there = {
        kind: {path.name for path in (home.path / kind).glob("*") if path.is_dir() and not is_aside(path)}
        for kind in ("cells", "models")
    }
    pairs = there["cells"] | {cell["cell"] for plan in plans for cell in (*plan["cells"], *plan["battery"])}
    return pairs, there["models"] | {model["model"] for plan in plans for model in plan["models"]}


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


def _pair(home: Home, key: str, plans: Sequence[Mapping[str, Any]]) -> Explanation:
    folder = home.cell(key)
    asking = [(plan, cell) for plan in plans for cell in (*plan["cells"], *plan["battery"]) if cell["cell"] == key]
    known: dict[str, Any] = dict(asking[-1][1]) if asking else {}
    state, reasons, meta = _result(home, folder)
    known |= next((cell for _, cell in reversed(asking) if "command" in cell), {}) | meta
    if state == "fresh" and (newer := _newer(known, plans)):
        state, reasons = "superseded", [newer]
    if not asking and meta:
        reasons.append("no plan here asks for it: no board shows it")
    if "command" not in known and asking:  # the suite asks for it, and no command did
        known["command"] = _choosing(_of_model(plans, known["model"]), known["attack"])
        reasons.append("its suite asks for it, and no command did")
    commands = dict.fromkeys(plan["command"] for plan, cell in asking if cell in plan["cells"])
    return Explanation(
        kind="pair",
        key=key,
        title=_title(known, plans),
        state=state,
        reasons=tuple(reasons),
        declaration=flat(meta.get("declaration") or {name: known[name] for name in known if name != "command"}),
        made_with=_made_with(meta),
        plans=tuple(commands),
        files=_files(folder),
        runs=_runs(folder),
        command=str(known.get("command", "")),
    )


def _result(home: Home, folder: Path) -> tuple[State, list[str], dict[str, Any]]:
    """State of a pair's result, why, and ``result.json`` if it can be read."""
    if not is_finished(folder):
        shards = len(list((folder / "shards").glob("*.safetensors")))
        before = len(earlier(folder))
        reasons = [f"interrupted: {shards} shards are done" if shards else "it was not run"]
        return "missing", reasons + ([f"{before} earlier results were set aside beside it"] if before else []), {}
    try:
        meta = dict(read_result(folder).meta)
    except UserError as error:
        return "damaged", [f"{error}; gauntlet run sets it aside and makes it again"], {}
    weights = meta.get("weights")
    for key, digest in weights.items() if isinstance(weights, dict) else ():
        card = home.model(key) / "card.json"
        if not card.exists():
            return "stale", [f"its model {key} is not here, and will be trained again"], meta
        now = _read(card).get("sha256")
        if now != digest:
            return "stale", [f"its model {key} was trained again since"], meta
    faults = []
    if meta["status"] != "ok":
        errors = meta.get("errors")
        said = f": {'; '.join(map(str, errors))}" if isinstance(errors, list) and errors else ""
        faults.append(f"its status is {meta['status']}{said}")
    then = meta.get("versions")
    now = environment.versions()
    others = [name for name, version in then.items() if now.get(name) != version] if isinstance(then, dict) else []
    if others:
        faults.append(f"made with other versions of {', '.join(others)}; a finished result stands nevertheless")
    return "fresh", faults, meta


def _newer(known: Mapping[str, Any], plans: Sequence[Mapping[str, Any]]) -> str:
    """The newest plan's pair of the same names, if it is another; "" if not."""
    names = _names(plans)
    mine = (names.get(known["model"]), known["n"], cell_name(known))
    for plan in reversed(plans):
        for cell in plan["battery"]:
            if (names.get(cell["model"]), cell["n"], cell_name(cell)) == mine:
                if cell["cell"] == known["cell"]:
                    return ""
                if not (cell["cascade"] and not known["cascade"]):  # a cascade does not replace what saw every image
                    return f"superseded by {cell['cell']} of a newer plan: {plan['command']}"
    return ""


def _names(plans: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Names of models by key."""
    return {model["model"]: tuple(model[name] for name in NAMES) for plan in plans for model in plan["models"]}


def _model(home: Home, key: str, plans: Sequence[Mapping[str, Any]]) -> Explanation:
    folder = home.model(key)
    asking = [(plan, model) for plan in plans for model in plan["models"] if model["model"] == key]
    known: dict[str, Any] = dict(asking[-1][1]) if asking else {}
    state, reasons, card = _weights(home, folder)
    known |= {name: value for name, value in card.items() if name in NAMES}
    if state == "fresh" and known:
        names = {found: other for other, found in _names(plans).items()}  # the newest plan's stands
        other = names.get(tuple(known.get(name) for name in NAMES), key)
        if other != key:
            state, reasons = "superseded", [f"superseded by the model {other} of a newer plan"]
    return Explanation(
        kind="model",
        key=key,
        title=" ".join(str(known[name]) for name in ("dataset", "architecture", "defense") if name in known)
        + (f" seed {known['seed']}" if "seed" in known else ""),
        state=state,
        reasons=tuple(reasons),
        declaration=flat(card.get("declaration") or known.get("declaration") or {}),
        made_with={},
        plans=tuple(dict.fromkeys(plan["command"] for plan, _ in asking)),
        files=_files(folder),
        runs=_runs(folder),
        command=_of_model(plans, key),
    )


def _weights(home: Home, folder: Path) -> tuple[State, list[str], dict[str, Any]]:
    """State of a model, why, and its card if it can be read."""
    if not (folder / "card.json").exists():
        failed = folder / "failed.json"
        return "missing", [f"training failed: {_read(failed).get('error')}" if failed.exists() else "not trained"], {}
    try:
        card = whole_model(folder)
    except UserError as error:
        return "damaged", [f"{error}; delete {folder} to have it trained again"], {}
    for key, digest in dict(card.get("upon") or {}).items():
        base = home.model(key) / "card.json"
        now = _read(base).get("sha256") if base.exists() else None
        if now != digest:
            why = "is not here" if now is None else "was trained again since"
            return "stale", [f"the model {key} that it is built upon {why}"], card
    return "fresh", [], card


def _of_model(plans: Sequence[Mapping[str, Any]], key: str) -> str:
    """The command that makes a model and all that the suite asks of it: that of its pairs, choosing no attack."""
    cells = [cell for plan in reversed(plans) for cell in plan["cells"] if cell["model"] == key]
    command = next((str(cell["command"]) for cell in cells if cell.get("command")), "")
    return command.partition(" --attack ")[0]


def _choosing(command: str, attack: str) -> str:
    """The same for one attack."""
    return f"{command} --attack {shlex.quote(attack)}" if command else ""


def _read(path: Path) -> dict[str, Any]:
    return attempt(lambda: read_record(path), path, lambda *_: None) or {}


def _title(known: Mapping[str, Any], plans: Sequence[Mapping[str, Any]]) -> str:
    if not known:
        return "a pair of which only unfinished parts are here"
    names = _names(plans).get(known["model"]) or tuple(known.get(name, "") for name in ("dataset", "architecture"))
    model = " ".join(map(str, names[:3])) + (f" seed {names[3]}" if len(names) > 3 else "")
    return f"{model}: {cell_name(known)}, {known['n']} images"


def _made_with(meta: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    then = meta.get("versions")
    if not isinstance(then, dict):
        return {}
    now = environment.versions()
    found = {name: (str(version), now.get(name, "-")) for name, version in then.items()}
    return found | {"commit": (str(meta.get("git_commit", "")), environment.git_commit())}


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
