"""Atomic writes, JSON records, and damaged files set aside."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import ValidationError

from ..errors import UserError, printable
from ..schema.base import FORMAT, Record
from . import seals

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T", bound=Record)

FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What a cell begins with that a spreadsheet runs (OWASP, "CSV Injection")."""

ASIDE: Final = ".damaged-"
"""What the name of a file or folder that was set aside goes on with."""


def check_plain(entry: os.DirEntry[str]) -> None:
    """Make sure that an entry of a folder is a file or a folder itself.

    Raises:
        UserError: It is a link or a special file.
    """
    if not entry.is_file(follow_symlinks=False) and not entry.is_dir(follow_symlinks=False):
        raise UserError(f"{entry.path!r} is no plain file: links and special files are not followed")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it exists whole or not at all, whatever kills the process or the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # not tempfile's: its files are for their owner's eyes only, and results are to be shared
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """:func:`write_bytes` of :func:`json_text`."""
    write_bytes(path, json_text(value).encode())


def csv_text(frame: pd.DataFrame, **how: Any) -> str:
    """A frame as CSV, without its index; a text that a spreadsheet would take for a formula begins with ``'``."""
    texts = frame.select_dtypes(exclude=["number", "bool", "datetime"]).columns
    plain = frame.assign(**{str(name): frame[name].map(_no_formula) for name in texts})
    return str(plain.to_csv(index=False, lineterminator="\n", **how))


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def json_text(value: Any) -> str:
    """Readable, sorted JSON, sealed if it has a field for that; a number that is not finite becomes null."""
    sealed = isinstance(value, Mapping) and seals.NAME in value
    plain = finite({**value, seals.NAME: seals.BLANK} if sealed else value)
    text = json.dumps(plain, indent=1, sort_keys=True, allow_nan=False) + "\n"
    return seals.seal(text.encode()).decode() if sealed else text


def finite(value: Any) -> Any:
    """The same value with NaN and infinities replaced by None, and texts :func:`printable`: JSON has no others."""
    if isinstance(value, str):
        return value if value.isascii() else printable(value)
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: It is damaged, or not what was sealed; the message names it.
    """
    content = path.read_bytes()
    seals.check(content, path)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error})") from None


def read_record(path: Path, kind: type[T], name: str = "the record") -> T:
    """Read a record.

    Raises:
        UserError: It is damaged, of a later format, or another kind of record; the message names it.
    """
    content = path.read_bytes()
    found = parse_record(content, kind, path, name)  # first: it says best what is wrong
    seals.check(content, path)
    return found


def parse_record(content: bytes | str, kind: type[T], path: Path, name: str = "the record") -> T:
    """:func:`read_record` of JSON that stands in a file."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise UserError(f"{path} {_fault(error, name)}") from None


def write_record(path: Path, record: Record) -> None:
    """:func:`write_json` of a record, sealed."""
    write_json(path, sealed(record))


def sealed(record: Record) -> dict[str, Any]:
    """A record's plain values, to be sealed when they are written."""
    return {**record.model_dump(), seals.NAME: seals.BLANK}


def sealed_facts(record: Record) -> str:
    """A record as the metadata of a file of tensors, to be sealed with it: one text, for their order is not kept."""
    return json.dumps(finite({**record.model_dump(), "format": FORMAT, seals.NAME: seals.BLANK}), separators=(",", ":"))


def _fault(error: ValidationError, name: str) -> str:
    """The first thing that is wrong with a record."""
    first = error.errors(include_url=False)[0]
    place, found = ".".join(map(str, first["loc"])), first["input"]
    if place == "format" and isinstance(found, int) and found > FORMAT:
        return f"is of format {found}, and this version of gauntlet reads up to {FORMAT}: update it"
    if first["type"] == "missing":
        return f"is damaged ({name} has no {place!r})"
    what = first["msg"][:1].lower() + first["msg"][1:]
    return f"is damaged ({place or name}: {what})"


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to a free name beside it, and return that name."""
    number = 1
    while (target := path.with_name(f"{path.name}{ASIDE}{number}")).exists():
        number += 1
    path.rename(target)
    return target


def is_aside(path: Path) -> bool:
    """Whether it was set aside."""
    return ASIDE in path.name


def earlier(path: Path) -> list[Path]:
    """What was set aside from this place."""
    return list(path.parent.glob(f"{path.name}{ASIDE}*"))


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= flat(item, f"{prefix}.{name}" if prefix else str(name))
    return found
