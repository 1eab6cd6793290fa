"""SQLite files as tracking stores: looked at without MLflow, made whole, set aside where they are broken."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import sqlite3
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..records.files import set_aside

EXPERIMENT: Final = "gauntlet"

BINNED: Final = "SELECT name FROM experiments WHERE lifecycle_stage = 'deleted' AND name = ?"

TRACKED: Final = """
SELECT runs.run_uuid, kind.value, named.value FROM runs
JOIN experiments ON experiments.experiment_id = runs.experiment_id AND experiments.lifecycle_stage = 'active'
JOIN tags AS origin ON origin.run_uuid = runs.run_uuid AND origin.key = 'gauntlet.origin' AND origin.value = ?
JOIN tags AS kind ON kind.run_uuid = runs.run_uuid AND kind.key = 'gauntlet.kind'
JOIN tags AS named ON named.run_uuid = runs.run_uuid AND named.key = 'gauntlet.' || kind.value
WHERE runs.lifecycle_stage = 'active'
"""


class Tracked(NamedTuple):
    """A run that a store has: of what kind (plan, model, pair), and of which key."""

    run: str
    kind: str
    key: str


def address(path: Path) -> str:
    """Address of a database; what in its path would be taken for part of an address is quoted."""
    plain = str(path.resolve())
    quoted = plain.replace("%", "%25").replace("?", "%3F")
    # MLflow makes the folders of what follows sqlite:///, without unquoting it
    return f"sqlite:///{plain}" if quoted == plain else f"sqlite+pysqlite:///{quoted}"


def file_of(uri: str) -> Path | None:
    """The file of a plain SQLite address, which :func:`address` could have given; None for any other store."""
    if not uri.startswith("sqlite:///") or any(mark in uri for mark in "?%"):
        return None
    path = uri.removeprefix("sqlite:///")
    return Path(path) if path and not path.startswith(("file:", ":memory:")) else None


def make(place: Path, connect: Callable[..., Any]) -> bool:
    """Let MLflow make a database if there is none: beside its place, because a killed migration is never mended.

    Of several processes that make it at once one puts it in its place, and the others use that.

    Returns:
        Whether this process did.
    """
    if place.exists():
        return False
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".{place.name}.{uuid.uuid4().hex}.part")  # MLflow remembers addresses
    try:
        connect(tracking_uri=address(part)).search_experiments(max_results=1)
        with contextlib.suppress(FileExistsError):  # another process was faster, and has perhaps written to it
            os.link(part, place)
            return True
    finally:
        for left in (part, *(part.with_name(part.name + end) for end in ("-wal", "-shm", "-journal"))):
            left.unlink(missing_ok=True)
    return False


def fault(place: Path) -> str:
    """What makes a file no database that anything can be read from, "" if nothing does or it is not there.

    Reads it once; raises nothing: one that is locked, or must not be read, is for MLflow to complain of.
    """
    if not place.exists():
        return ""
    try:
        with _opened(place) as found:
            (said,) = found.execute("PRAGMA quick_check(1)").fetchone()
            found.execute("SELECT count(*) FROM sqlite_master").fetchone()
            return "" if said == "ok" else str(said).splitlines()[0]
    except sqlite3.OperationalError:
        return ""
    except sqlite3.DatabaseError as error:
        return str(error)


def outdated(place: Path) -> bool:
    """Whether another version of MLflow made a database, or a migration did not come to its end."""
    if not place.exists() or (newest := _newest()) is None:
        return False
    try:
        with _opened(place) as found:
            return [version for (version,) in found.execute("SELECT version_num FROM alembic_version")] != [newest]
    except sqlite3.DatabaseError as error:
        return "no such table" in str(error)


@functools.lru_cache
def _newest() -> str | None:
    """The layout that the installed MLflow wants, by its migrations: none is the next one's ``down_revision``.

    MLflow itself takes seconds to be imported, and a command with nothing to do has no other need of it.
    """
    spec = importlib.util.find_spec("mlflow")
    folder = Path(next(iter((spec and spec.submodule_search_locations) or [""]))) / "store/db_migrations/versions"
    texts = [file.read_text(encoding="utf-8") for file in folder.glob("*.py")]
    made, before = (
        {found[1] for text in texts if (found := re.search(rf"^{name} = [\"'](\w+)[\"']", text, re.MULTILINE))}
        for name in ("revision", "down_revision")
    )
    heads = made - before
    return heads.pop() if len(heads) == 1 else None


def _opened(place: Path) -> contextlib.closing[sqlite3.Connection]:
    """A database to be read alone; a path like ``q?x`` is no part of the address."""
    address = f"{place.resolve().as_uri()}?mode=ro"
    return contextlib.closing(sqlite3.connect(address, uri=True, timeout=30))


def tracked(place: Path, origin: str) -> list[Tracked] | None:
    """What a database has of a home, by SQL alone; None where only MLflow can say, as of a deleted experiment."""
    if not place.exists():
        return []
    try:
        with _opened(place) as found:
            if found.execute(BINNED, (EXPERIMENT,)).fetchone() is not None:
                return None
            return [Tracked(*row) for row in found.execute(TRACKED, (origin,))]
    except sqlite3.DatabaseError:
        return None


def origins(place: Path) -> list[str]:
    """Names of the homes that a database has runs of."""
    if not place.exists():
        return []
    try:
        with _opened(place) as found:
            return [name for (name,) in found.execute("SELECT DISTINCT value FROM tags WHERE key = 'gauntlet.origin'")]
    except sqlite3.DatabaseError:
        return []


def put_aside(place: Path) -> Path:
    """Rename a database with the files that belong to it; returns the new name."""
    target = set_aside(place)
    for end in ("-wal", "-shm", "-journal"):
        beside = place.with_name(place.name + end)
        if beside.exists():
            beside.rename(target.with_name(target.name + end))
    return target


def identity(place: Path) -> tuple[int, int] | None:
    """Which file lies there, None for none: another one may come in its place while it is open."""
    try:
        found = place.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
