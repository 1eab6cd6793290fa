"""Merge homes: parts of a plan that ran on several machines, or a home to be rebuilt.

What is merged is what a run leaves to be kept: models, results, shards of unfinished pairs, what attacks prepared and
crafted, facts of probes, certificates, witnesses, plans. Everything is checked as it is read. MLflow's runs, reports
and whatever was set aside stay where they are: both can be made again from the rest.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..metrics.pairs import SAMPLE_COLUMNS, Pair
from ..schema.base import Provenance
from ..schema.certificates import CertificateRecord
from ..schema.models import Card, FailedTraining
from ..schema.probes import PlantedRecord, ProbeRecord
from . import witnesses
from .boards import read_probe
from .checkpoints import whole_model
from .crafted import read_crafted
from .files import is_aside, read_record, set_aside, write_bytes
from .home import Home, no_runs
from .plans import attempt, read_plan
from .prepared import prepared_record, tensor_files
from .results import is_finished, read_pair, read_shard

KEPT = ("models", "cells", "prepared", "crafted", "health", "planted", "certificates", "witnesses", "plans")
"""Folders that are merged."""


@dataclass
class Merged:
    """What came of a merge.

    Attributes:
        new: Files or folders taken over, by kind: ``models``, ``cells``, ...
        same: Those that were there already, with equal numbers.
        refused: Lines naming what contradicts what was there, which is left as it was.
        damaged: Lines naming what cannot be read, and was left behind; or, in the home merged into, set aside.
    """

    new: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KEPT, 0))
    same: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KEPT, 0))
    refused: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether everything could be merged."""
        return not (self.refused or self.damaged)


def homes(given: Sequence[Path], into: Path) -> list[Home]:
    """Homes to merge, each looked at before anything is done.

    Raises:
        UserError: One is no home, is named twice, or is the one merged into.
    """
    found: dict[Path, Home] = {}
    for path in given:
        if not path.is_dir():
            raise no_runs(path)
        if not any((path / name).is_dir() for name in KEPT):
            raise UserError(f"{path} is no home of gauntlet: it has none of {', '.join(KEPT)}")
        if path.resolve() == into.resolve():
            raise UserError(f"{path} cannot be merged into itself; name another with --home")
        if path.resolve() in found:
            raise UserError(f"{path} is named twice")
        found[path.resolve()] = Home(path)
    return list(found.values())


def merge(source: Home, into: Home) -> Merged:
    """Take over from one home what another lacks. Only while no other process works on the one merged into.

    Every file is written whole or not at all, those that make others count last: a merge that was killed is gone on
    with by the same command. What both homes have is compared: equal numbers are one result; different ones are refused
    by name and nothing is changed for them. Results, facts and parts made with weights other than those merged
    into are refused as well. A plan that both have was first asked for when the earlier of them was.
    """
    return _Merge(source, into).run()


class _Merge:
    def __init__(self, source: Home, into: Home) -> None:
        self._source, self._into = source, into
        self._done = Merged()
        self._seen: set[str] = set()
        self._digests: dict[str, str | None] = {}
        self._left: set[str] = set()
        self._taken: set[str] = set()

    def run(self) -> Merged:
        for key in self._names("models", folders=True):
            self._model(key)
        for key in self._names("cells", folders=True):
            self._check("cells", self._source.cell(key), self._cell, key)
        takes = {"health": self._facts, "planted": self._planted, "plans": self._plan}
        for kind, take in takes.items():
            for name in self._names(kind):
                if name.endswith(".json"):
                    self._check(kind, self._source.path / kind / name, take, Path(name).stem)
        for key in self._names("certificates", folders=True):
            for file in sorted((self._source.path / "certificates" / key).glob("*.json")):
                self._check("certificates", file, lambda _, path=file: self._certificate(path), key)  # type: ignore[misc]
        for key in self._names("witnesses", folders=True):
            for file in witnesses.tables(self._source, key):
                self._check("witnesses", file, lambda _, path=file: self._table(path), key)  # type: ignore[misc]
        for key in self._names("crafted", folders=True):
            for file in sorted((self._source.path / "crafted" / key).glob("*.safetensors")):
                self._part("crafted", file, lambda path: read_crafted(path)[1])
        for name in self._names("prepared"):
            if name.endswith(".json"):
                key = Path(name).stem
                self._check("prepared", self._source.prepared(key), self._prepared, key)
        return self._done

    def _names(self, kind: str, *, folders: bool = False) -> list[str]:
        """Entries of a folder, without what is half written or was set aside."""
        place = self._source.path / kind
        entries = sorted(place.iterdir()) if place.is_dir() else []
        kept = (path for path in entries if path.is_dir() == folders and not path.name.startswith("."))
        return [path.name for path in kept if not is_aside(path)]

    def _check(self, kind: str, path: Path, take: Callable[[str], bool | None], key: str) -> None:
        """Take one thing over; damage and contradiction are booked, and nothing else stops for them."""
        try:
            new = take(key)
        except _Refused as error:
            self._left.add(key)
            self._done.refused.append(f"{path}: {error}")
        except UserError as error:
            self._left.add(key)
            self._done.damaged.append(f"{error}; left behind")
        else:
            if new is not None:
                (self._done.new if new else self._done.same)[kind] += 1

    def _copy(self, source: Path, target: Path) -> None:
        write_bytes(target, source.read_bytes())

    def _mended(self, path: Path, read: Callable[[], Any]) -> Any:
        """What is in the home merged into; None if nothing is, or only something damaged, which is set aside."""
        if not path.exists():
            return None
        try:
            return read()
        except UserError as error:
            self._done.damaged.append(f"{error}; kept as {set_aside(path).name}")
            return None

    # -- models ----------------------------------------------------------------------------------------------

    def _model(self, key: str) -> None:
        """Take a model over, after those that it is built upon."""
        if key not in self._seen:
            self._seen.add(key)  # a circle of damaged cards comes to an end
            self._check("models", self._source.model(key), self._take_model, key)

    def _take_model(self, key: str) -> bool | None:
        source, target = self._source.model(key), self._into.model(key)
        if not (source / "card.json").exists():
            failed = source / "failed.json"
            if not failed.exists() or any((target / name).exists() for name in ("card.json", "failed.json")):
                return None
            read_record(failed, FailedTraining)
            self._copy(failed, target / failed.name)
            return True
        card = whole_model(source)
        there = self._mended(target, lambda: whole_model(target) if (target / "card.json").exists() else None)
        if there is not None:
            if there.sha256 != card.sha256:
                raise _Refused(f"other weights than those in {target}")
            return False
        for parent, digest in card.upon.items():
            if self._source.model(parent).is_dir():
                self._model(parent)
            if self._digest(parent) not in (digest, None):
                raise _Refused(f"it is built upon other weights of {parent} than those merged")
        for file in sorted(source.iterdir()):
            if file.suffix == ".safetensors":
                self._copy(file, target / file.name)
        self._copy(source / "card.json", target / "card.json")
        self._digests.pop(key, None)
        return True

    def _digest(self, key: str) -> str | None:
        """Digest of a model's weights in the home merged into, None if it is not there."""
        if key not in self._digests:
            path = self._into.model(key) / "card.json"
            card = attempt(lambda: read_record(path, Card), path, lambda *_: None) if path.exists() else None
            self._digests[key] = card.sha256 if card is not None else None
        return self._digests[key]

    def _fits(self, made: Provenance) -> None:
        """Raise where a record was made with other weights than those merged into."""
        for key, digest in made.weights.items():
            if self._digest(key) not in (digest, None):
                raise _Refused(f"made with other weights of the model {key} than those in {self._into.model(key)}")

    # -- results ---------------------------------------------------------------------------------------------

    def _cell(self, key: str) -> bool | None:
        source, target = self._source.cell(key), self._into.cell(key)
        if not is_finished(source):
            if not is_finished(target):
                for file in sorted((source / "shards").glob("*.safetensors")):
                    self._part("cells", file, lambda path: read_shard(path)[1])
            return None
        pair = read_pair(source)
        if pair.result.cell != key:
            raise UserError(f"{source / 'result.json'} is damaged (it is of the pair {pair.result.cell})")
        there = self._mended(target, lambda: read_pair(target) if is_finished(target) else None)
        if there is not None:
            if not same_numbers(pair, there):
                who = f"{pair.result.attack} on {pair.result.defense}"
                raise _Refused(f"other numbers than those in {target} ({who})")
            return False
        self._fits(pair.result)
        witnesses.of_pair(source, pair.result)
        for name in ("gallery.safetensors", witnesses.FILE, "samples.parquet", "result.json"):
            if (source / name).exists():
                self._copy(source / name, target / name)
        shutil.rmtree(target / "shards", ignore_errors=True)
        self._taken.add(key)
        return True

    def _part(self, kind: str, file: Path, facts: Callable[[Path], Provenance]) -> None:
        """A shard or crafted images, where there are none."""
        target = self._into.path / file.relative_to(self._source.path)

        def take(_: str) -> bool | None:
            if target.exists():
                return None
            self._fits(facts(file))
            self._copy(file, target)
            return None if kind == "cells" else True

        self._check(kind, file, take, file.name)

    def _facts(self, key: str) -> bool:
        return self._look(self._source.health(key), self._into.health(key), ProbeRecord)

    def _planted(self, key: str) -> bool:
        return self._look(self._source.planted(key), self._into.planted(key), PlantedRecord)

    def _look(self, source: Path, target: Path, kind: type[ProbeRecord] | type[PlantedRecord]) -> bool:
        read = read_probe if kind is ProbeRecord else lambda path: read_record(path, kind)
        record = read(source)
        there: ProbeRecord | PlantedRecord | None = self._mended(target, lambda: read(target))
        if there is not None:
            if record.facts.model_copy(update={"seconds": there.facts.seconds}) != there.facts:
                raise _Refused(f"other facts than those in {target}")
            return False
        self._fits(record)
        self._copy(source, target)
        return True

    def _certificate(self, source: Path) -> bool:
        """A shard of a certificate."""
        target = self._into.path / source.relative_to(self._source.path)
        record = read_record(source, CertificateRecord)
        there: CertificateRecord | None = self._mended(target, lambda: read_record(target, CertificateRecord))
        if there is not None:
            mine, theirs = (one.facts.model_dump_json(exclude={"seconds"}) for one in (record, there))
            if mine != theirs:  # as text: what is no number equals nothing, not even itself
                raise _Refused(f"another certificate than that in {target}")
            return False
        self._fits(record)
        self._copy(source, target)
        return True

    def _table(self, source: Path) -> bool:
        """A chunk of a model's witnesses: of two, the nearer image of each sample is kept.

        None of pairs that were left behind, and none in place of one of a pair whose result stays.
        """
        target = self._into.path / source.relative_to(self._source.path)
        rows, facts = witnesses.read_table(source)
        self._fits(Provenance(weights={source.parent.name: facts.weights}))
        there = self._mended(target, lambda: witnesses.read_table(target, images=False)[0])
        kept = set() if there is None else set(zip(there["cell"].tolist(), there["index"].tolist(), strict=True))
        named = zip(rows["cell"].tolist(), rows["index"].tolist(), strict=True)
        wanted = np.array([c not in self._left and (c in self._taken or (c, i) not in kept) for c, i in named], bool)
        return witnesses.merge(target, {name: values[wanted] for name, values in rows.items()}, facts, self._taken)

    def _prepared(self, key: str) -> bool | None:
        source, target = self._source.prepared(key), self._into.prepared(key)
        if target.exists():
            return False
        record = prepared_record(source)
        if not record.weights:  # from before it said on which model: it is made anew
            return None
        self._fits(record)
        for file in (*tensor_files(source), source):
            self._copy(file, target.with_name(file.name))
        return True

    def _plan(self, key: str) -> bool:
        source, target = (home.plans / f"{key}.json" for home in (self._source, self._into))
        if read_plan(source).plan != key:
            raise UserError(f"{source} is damaged (it is of another plan)")
        there = self._mended(target, lambda: read_plan(target))
        asked = source.stat().st_mtime_ns
        if there is None:
            self._copy(source, target)
        else:
            asked = min(asked, target.stat().st_mtime_ns)
        os.utime(target, ns=(asked, asked))  # the order of plans says which declaration is the newest
        return there is None


class _Refused(Exception):
    """Two homes contradict each other; the message says how."""


def same_numbers(a: Pair, b: Pair) -> bool:
    """Whether two results of one pair say the same: every column of every image to the last bit, and the status."""
    if a.result.status != b.result.status or a.n != b.n:
        return False
    columns = ((a.columns[name].astype(float), b.columns[name].astype(float)) for name in SAMPLE_COLUMNS)
    return all(np.array_equal(mine, theirs, equal_nan=True) for mine, theirs in columns)
