"""Single changes to a bundle, as chance and outsiders make them: each is to be noticed."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

from harness.records import seals
from harness.records.files import json_text, read_json


def changes(folder: Path, chance: random.Random, *, sealed: bool = True) -> str:
    """Make one change in a folder of records, and say which.

    Args:
        folder: A bundle, or a home.
        chance: Which.
        sealed: Whether edits of records are sealed anew, as who knows the format would.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 8)
    kind = chance.choice(["byte", "byte", "cut", "delete", "swap", "copy", "new", "edit", "edit", "edit", "edit"])
    path = chance.choice(files)
    name = path.relative_to(folder).as_posix()
    content = path.read_bytes()
    match kind:
        case "byte":
            at = chance.randrange(len(content))
            path.write_bytes(content[:at] + bytes([content[at] ^ chance.randrange(1, 256)]) + content[at + 1 :])
            return f"byte {at} of {name}"
        case "cut":
            path.write_bytes(content[: chance.randrange(len(content))])
            return f"{name} cut off"
        case "delete":
            path.unlink()
            return f"{name} deleted"
        case "swap" | "copy":
            others = [each for each in files if each.name == path.name and each.read_bytes() != content]
            other = chance.choice(others or [each for each in files if each.read_bytes() != content])
            if kind == "swap":
                path.write_bytes(other.read_bytes())
                other.write_bytes(content)
            else:
                shutil.copyfile(other, path)
            return f"{kind} of {name} and {other.relative_to(folder).as_posix()}"
        case "new":
            path.with_name(f"new-{path.name}").write_bytes(content)
            return f"{name} twice"
        case _:
            records = [each for each in files if each.suffix == ".json" and each.name != "manifest.json"]
            path = chance.choice(records)
            return f"{path.relative_to(folder).as_posix()}: {edit(path, chance, sealed=sealed)}"


def edit(path: Path, chance: random.Random, *, sealed: bool) -> str:
    """Change one value of a record to another of its type; which."""
    record = read_json(path)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    while hashlib.sha256(path.read_bytes()).hexdigest() == before:
        holder, at = chance.choice(list(_values(record)))
        holder[at] = _other(holder[at], chance)
        text = json.dumps(record, indent=1, sort_keys=True) + "\n"
        path.write_text(json_text(record) if sealed and seals.NAME in record else text)
    return f"{at} is {holder[at]!r}"


def _values(record: Any) -> list[tuple[Any, Any]]:
    """Where every plain value of a record stands, its seal and format aside."""
    names = record.keys() if isinstance(record, dict) else range(len(record))
    found: list[tuple[Any, Any]] = []
    for name in names:
        if isinstance(record[name], dict | list):
            found += _values(record[name])
        elif name not in (seals.NAME, "format"):
            found.append((record, name))
    return found


def _other(value: Any, chance: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + chance.choice([-1, 1])
    if isinstance(value, float):
        return value * chance.choice([0.5, 0.9, 1.1]) + 0.001
    return f"{value or ''}x"
