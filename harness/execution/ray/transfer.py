"""Files that a job reads and writes, for workers that do not share the home's disk.

Such a worker does what any other does, in a folder that holds no more than what its job needs; what it leaves there is
carried back. So there is one worker, and one driver that writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ...planning.specs import Cell, ModelSpec
from ...records.files import write_bytes
from ...records.home import Home
from ...records.prepared import tensor_files
from ...records.results import shard_path
from ..jobs import Certify, Craft, Examine, Job, Judge, Plant, Prepare, Train

Changes = list[tuple[str, bytes | None]]
"""Paths below a home with their new content, None where a file is gone, in the order in which they must be made."""


def needs(home: Home, job: Job) -> list[Path]:
    """Files of a home that a job reads or replaces, in the order to read them in. Some may not be there."""
    return list(dict.fromkeys(_wanted(home, job)))


def _wanted(home: Home, job: Job) -> Iterator[Path]:
    match job:
        case Train(spec):
            yield from (home.model(spec.key) / name for name in ("card.json", "failed.json"))
            for part in spec.parents:
                yield from _model(home, part)
        case Examine(look) | Plant(look):
            yield from _model(home, look.model)
        case Certify(asked):
            yield from _model(home, asked[0].model)
        case Prepare(cell):
            yield from _model(home, cell.crafter)
        case Craft(cell):
            yield from _model(home, cell.crafter)
            yield from _prepared(home, cell)
        case Judge(cell, shard, before):
            yield from _model(home, cell.victim)
            yield from _model(home, cell.crafter)
            yield from _prepared(home, cell)
            if cell.crafted_key is not None:
                yield home.crafted(cell.crafted_key, shard)
            for folder in map(home.cell, before):
                # the shard first: if the cell is finished just now, the table is there before the shard is gone
                yield from (shard_path(folder, shard), folder / "samples.parquet")
            if cell.screen is not None:
                yield from (home.certificate(cell.screen.key, part) for part in range(cell.screen.shards))


def _model(home: Home, spec: ModelSpec) -> Iterator[Path]:
    yield from (home.model(spec.key) / name for name in ("weights.safetensors", "card.json"))
    for part in spec.parents:
        yield from _model(home, part)


def _prepared(home: Home, cell: Cell) -> Iterator[Path]:
    if cell.prepared_key is not None:
        path = home.prepared(cell.prepared_key)
        yield from (path, *tensor_files(path))


class Hold:
    """A home that was made for one job, an empty folder, with the files that it needs, by path below it."""

    def __init__(self, home: Home, files: Mapping[str, bytes]) -> None:
        self._home = home
        for name, content in files.items():
            path = home.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self._before = self._look()

    def _look(self) -> dict[str, tuple[int, int]]:
        """Every file's identity: a home's files are never changed, they are replaced."""
        skip = self._home.progress
        files = [path for path in self._home.path.rglob("*") if skip not in path.parents and path.is_file()]
        found = {str(path.relative_to(self._home.path)): path.stat() for path in files}
        return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}

    def changes(self) -> Changes:
        """What the job left. JSON comes last: it makes count what lies beside it."""
        after = self._look()
        gone: Changes = [(name, None) for name in self._before if name not in after]
        fresh = [name for name, what in after.items() if self._before.get(name) != what]
        fresh.sort(key=lambda name: (name.endswith(".json"), name))
        return gone + [(name, (self._home.path / name).read_bytes()) for name in fresh]


def unload(home: Home, changes: Changes) -> None:
    """Make in a home the changes that a job made elsewhere; each file is written whole or not at all.

    Raises:
        OSError: A file cannot be written.
    """
    for name, content in changes:
        if content is None:
            (home.path / name).unlink(missing_ok=True)
        else:
            write_bytes(home.path / name, content)
