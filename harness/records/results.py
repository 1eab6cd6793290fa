"""Results on disk: one directory per cell, ``result.json`` + ``samples.parquet``. They are the truth.

A cell in progress holds finished shards under ``shards/``; the three files of a finished one are written
together, ``result.json`` last, and the shards are then removed.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import pandas as pd
from pyarrow.parquet import ParquetFile, read_metadata
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_arrays

from ..errors import UserError, first_line
from ..judging.shard import GALLERY, ShardOutcome
from ..metrics.pairs import COLUMN_TYPES, FLAGS, NO_TARGET, Pair, summary
from ..schema.base import Provenance
from ..schema.goals import UNTARGETED
from ..schema.models import Agreement
from ..schema.pairs import Answers, Declared, Harvested, Result, ShardFacts, ShardRecord, Status
from . import seals
from .files import parse_record, read_record, sealed_facts, write_bytes, write_record

PACKED: Final = "witnesses"
"""Name of a packed table of witnesses in a file of tensors; see :mod:`harness.records.witnesses`."""

MOST_ROWS: Final = 2**24
MOST_BYTES: Final = 2**31
"""Of a table that is read, without compression."""

_KINDS: Final[Mapping[type, str]] = {bool: "b", int: "iu", float: "fiu"}
"""NumPy's letters for the types of columns."""

_arrays: WeakValueDictionary[tuple[str, bytes], npt.NDArray[Any]] = WeakValueDictionary()
"""Columns of samples in use, by type and digest."""


class Damaged(UserError):
    """A result file cannot be read; the message names it."""


def samples_to_bytes(samples: pd.DataFrame) -> bytes:
    """Parquet bytes of a samples frame. Without its checksums a third of flipped bytes reads as other numbers."""
    buffer = io.BytesIO()
    samples.to_parquet(buffer, index=False, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def _columns(source: Path | io.BytesIO, name: Path) -> dict[str, npt.NDArray[Any]]:
    """Columns of a parquet file of samples; ``name`` is the file to blame."""
    try:
        # past pandas, which takes as long again: a report reads thousands
        with ParquetFile(source, page_checksum_verification=True) as file:
            bounded(file.metadata)
            table = file.read(use_threads=False)
            columns = {column: table.column(column).to_numpy() for column in table.column_names}
            columns.setdefault("target", np.full(table.num_rows, NO_TARGET))  # of before there were targets
    except Exception as error:  # damaged bytes make pyarrow and pandas raise a dozen types
        raise Damaged(f"{name} is damaged ({first_line(error)})") from None
    missing = [column for column in COLUMN_TYPES if column not in columns]
    if missing:
        raise Damaged(f"{name} is damaged (no column {missing[0]})")
    for column, kind in COLUMN_TYPES.items():
        if columns[column].dtype.kind not in _KINDS[kind]:
            raise Damaged(f"{name} is damaged ({column} is {columns[column].dtype})")
    return columns


def bounded(table: Any) -> None:
    """Refuse a parquet file, by its metadata, that would not fit into memory: a few bytes may stand for gigabytes.

    Raises:
        ValueError: It would not.
    """
    total = sum(table.row_group(number).total_byte_size for number in range(table.num_row_groups))
    if table.num_rows > MOST_ROWS or total > MOST_BYTES:
        raise ValueError(f"it claims {table.num_rows} rows and {total} bytes")


def _shared(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An equal array that is in use already, else this one; read-only.

    Pairs of one model have the same labels, predictions and positions, and a report holds thousands of pairs.
    """
    array.flags.writeable = False
    return _arrays.setdefault((array.dtype.str, hashlib.blake2b(array.data, digest_size=16).digest()), array)


def read_samples(path: Path) -> pd.DataFrame:
    """Read a samples frame.

    Raises:
        Damaged: Not a parquet file with the expected columns.
    """
    try:
        return pd.DataFrame(_columns(io.BytesIO(path.read_bytes()), path))
    except OSError as error:
        raise Damaged(f"{path} is damaged ({first_line(error)})") from None


def write_shard(
    folder: Path, shard: int, outcome: ShardOutcome, made: Provenance, witnesses: bytes | None = None
) -> None:
    """Keep one finished shard as a single file, so that it is there whole or not at all."""
    packed = {f"gallery.{name}": value for name, value in outcome.gallery.items()}
    if witnesses is not None:
        packed[PACKED] = np.frombuffer(witnesses, dtype=np.uint8)
    packed["samples"] = np.frombuffer(samples_to_bytes(outcome.samples), dtype=np.uint8)
    path = shard_path(folder, shard)
    facts = ShardRecord(**dict(outcome.facts), **dict(made), place=f"{folder.name}/{path.stem}")
    write_bytes(path, seals.seal(save_arrays(packed, metadata={"facts": sealed_facts(facts)})))


def shard_path(folder: Path, shard: int) -> Path:
    """File of one shard."""
    return folder / "shards" / f"{shard:05d}.safetensors"


@contextmanager
def _nameable(path: Path) -> Iterator[Path]:
    """A name of a file that safetensors takes: it wants UTF-8, and file systems do not."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield Path(f"/dev/fd/{file.fileno()}")
    else:
        yield path


@contextmanager
def opened(path: Path, framework: str = "numpy") -> Iterator[Any]:
    """A file of tensors, read in a block.

    Raises:
        Damaged: Whatever is wrong with it, or with what the block looks for in it.
    """
    try:
        with _nameable(path) as name, safe_open(name, framework=framework) as file:
            yield file
    except UserError as error:
        raise Damaged(str(error)) from None
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise Damaged(f"{path} is damaged ({first_line(error)})") from None


def read_shard(path: Path) -> tuple[ShardOutcome, ShardRecord]:
    """A judged shard, and its facts with what it was made with.

    Raises:
        Damaged: The file cannot be read.
    """
    with opened(path) as file:
        seals.check(path.read_bytes(), path)
        arrays = {name: file.get_tensor(name) for name in file.keys() if name != PACKED}  # noqa: SIM118
        packed = io.BytesIO(arrays.pop("samples").tobytes())
        facts = parse_record((file.metadata() or {})["facts"], ShardRecord, path)
        seals.in_place(facts.place, path, f"{path.parents[1].name}/{path.stem}")
    gallery = {name.removeprefix("gallery."): value for name, value in arrays.items()}
    return ShardOutcome(pd.DataFrame(_columns(packed, path)), facts, gallery), facts


@lru_cache(maxsize=512)
def _judged(path: Path, *made: int) -> tuple[pd.DataFrame, ShardRecord]:
    """Samples and facts of one file as it was made: every later attack of a cascade looks at those of all before it."""
    outcome, facts = read_shard(path)
    return outcome.samples, facts


def _waiting(folder: Path, shard: int) -> tuple[pd.DataFrame, ShardRecord] | None:
    """Samples and facts of a shard that is not merged yet; None where its cell is finished."""
    path = shard_path(folder, shard)
    try:
        made = path.stat()
        return _judged(path, made.st_ino, made.st_mtime_ns, made.st_size)
    except OSError:
        return None
    except Damaged:
        if path.exists():  # else the cell was finished at this very moment
            raise
        return None


def shard_samples(folder: Path, shard: int) -> pd.DataFrame:
    """Samples of one shard, also of a cell that is finished: not to be written into.

    Raises:
        Damaged: Neither the shard nor the result can be read.
    """
    if (found := _waiting(folder, shard)) is not None:
        return found[0]
    samples = read_samples(folder / "samples.parquet")
    return samples[samples["shard"] == shard]


def shard_facts(folder: Path, shard: int) -> ShardFacts | Result:
    """Facts of one shard; those of all together of a cell that is finished.

    Raises:
        Damaged: Neither the shard nor the result can be read.
    """
    found = _waiting(folder, shard)
    return check_result(folder) if found is None else found[1]


def finish(folder: Path, shards: int, declared: Declared, witnesses: bytes | None = None) -> Result:
    """Merge a cell's shards into its result, and write it, with a packed table of witnesses if there is to be one.

    Raises:
        Damaged: A shard cannot be read.
    """
    pair = pair_from_outcomes(declared, [read_shard(shard_path(folder, number))[0] for number in range(shards)])
    result = write_result(folder, pair.result, pair.samples, pair.gallery, witnesses)
    shutil.rmtree(folder / "shards", ignore_errors=True)
    return result


def write_result(
    folder: Path,
    result: Result,
    samples: pd.DataFrame,
    gallery: Mapping[str, npt.NDArray[Any]],
    witnesses: bytes | None = None,
) -> Result:
    """Write the files of a result, the record with their digests last, and return that."""
    contents = {"samples.parquet": samples_to_bytes(samples)}
    if gallery:
        contents["gallery.safetensors"] = save_arrays(dict(gallery))
    if witnesses is not None:
        contents["witnesses.parquet"] = witnesses
    for name, content in contents.items():
        write_bytes(folder / name, content)
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    result = result.model_copy(update={"files": files})
    write_record(folder / "result.json", result)
    return result


def pair_from_outcomes(declared: Declared, outcomes: Sequence[ShardOutcome]) -> Pair:
    """Merge a cell's judged shards, in their order."""
    samples = pd.concat([outcome.samples for outcome in outcomes], ignore_index=True)
    facts = [outcome.facts for outcome in outcomes]
    gallery = {
        name: np.concatenate([outcome.gallery[name] for outcome in outcomes])[:GALLERY] for name in outcomes[0].gallery
    }
    attacked = max(int(samples["attacked"].sum()), 1)
    errors = {error for fact in facts for error in fact.errors}
    state = status(samples, boxed=all(fact.boxed for fact in facts))
    unchanged = sum(fact.unchanged for fact in facts)
    seeks = declared.access != "none" and declared.family != "transformation"
    if state in ("ok", "unclipped") and unchanged == attacked and seeks and declared.eps != 0:
        # an attack that does nothing must not read as a model that stands
        state = "invalid"
        errors.add("the attack returned every image unchanged")
    result = Result(
        **dict(declared),
        of_target=declared.n - len(samples) if declared.goal != UNTARGETED else 0,
        seconds=sum(fact.seconds for fact in facts),
        forwards=sum(fact.forwards for fact in facts) / attacked,
        backwards=sum(fact.backwards for fact in facts) / attacked,
        errors=tuple(sorted(errors)),
        unchanged=unchanged,
        unsteady=sum(fact.unsteady for fact in facts),
        answers=_together(facts),
        harvest=_harvested(facts),
        fallen=sum(fact.fallen for fact in facts),
        withheld=sum(fact.withheld for fact in facts),
        status=state,
        summary=summary(samples),
    )
    return Pair(result, samples, gallery)


def _together(facts: Sequence[ShardFacts]) -> Answers:
    """Agreements of a cell's shards as those of the cell."""
    found: dict[Literal["referee", "attacked"], list[Agreement]] = {}
    for fact in facts:
        for who, one in fact.answers.items():
            found.setdefault(who, []).append(one)
    return {
        who: Agreement(
            images=sum(one.images for one in each),
            differ=sum(one.differ for one in each),
            labels=sum(one.labels for one in each),
            change=max(one.change for one in each),
        )
        for who, each in found.items()
    }


def _harvested(facts: Sequence[ShardFacts]) -> Harvested | None:
    """What was met in all of a cell's shards; None where nobody looked in any."""
    each = [fact.harvest for fact in facts if fact.harvest is not None]
    total = {name: sum(getattr(one, name) for one in each) for name in Harvested.model_fields}
    return Harvested(**total) if each else None


def status(samples: pd.DataFrame, *, boxed: bool = True) -> Status:
    """``"crashed"`` if the attack raised anywhere, ``"invalid"`` if it returned invalid images, else ``"ok"``.

    ``"unclipped"`` instead of ``"ok"`` for an attack that may leave [0, 1]: what it found is ranked nowhere.
    """
    if samples["crashed"].any():
        return "crashed"
    faults = [flag for flag in FLAGS if boxed or flag != "out_of_box"]
    if samples[faults].any(axis=None):
        return "invalid"
    return "ok" if boxed else "unclipped"


def is_finished(folder: Path) -> bool:
    """Whether the cell has its result."""
    return (folder / "result.json").exists()


class Gallery(Mapping[str, npt.NDArray[Any]]):
    """Arrays of a gallery's file, read when they are asked for: a report shows one gallery of a hundred.

    Raises:
        Damaged: The file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with opened(self._path) as file:
            self.shapes: Mapping[str, Sequence[int]] = {
                name: file.get_slice(name).get_shape()
                for name in file.keys()  # noqa: SIM118
            }

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in self.shapes:
            raise KeyError(name)
        with opened(self._path) as file:
            array: npt.NDArray[Any] = file.get_tensor(name)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def read_gallery(path: Path) -> Mapping[str, npt.NDArray[Any]]:
    """Gallery arrays; none if there is no such file.

    Raises:
        Damaged: The file cannot be read.
    """
    return Gallery(path) if path.exists() else {}


def read_pair(folder: Path, run_id: str = "", run_url: str = "") -> Pair:
    """Read a finished cell: its files are those that its record holds the digests of, its summary is that of its table.

    Raises:
        Damaged: A file is damaged; the message names it.
    """
    result = _result(folder)
    path = folder / "samples.parquet"
    columns = _columns(io.BytesIO(whole(result, path)), path)
    if (n := len(columns["index"])) != (rows := result.n - result.of_target):
        raise Damaged(f"{path} is damaged ({n} rows, {rows} declared)")
    # cast, which copies, they keep nothing of the table alive: its own objects take more room than a hundred images
    columns = {name: _shared(array.astype(COLUMN_TYPES.get(name, array.dtype))) for name, array in columns.items()}
    try:
        made = summary(columns)
    except (TypeError, ValueError) as error:
        raise Damaged(f"{path} is damaged ({first_line(error)})") from None
    for name in result.summary.keys() & made.keys():
        if not np.isclose(result.summary[name], made[name], rtol=1e-9, atol=0, equal_nan=True):
            raise Damaged(f"{path} is damaged (its {name} is {made[name]:g}, in result.json {result.summary[name]:g})")
    if "gallery.safetensors" in result.files:
        whole(result, folder / "gallery.safetensors")
    gallery = read_gallery(folder / "gallery.safetensors")
    if isinstance(gallery, Gallery) and gallery:
        shown = [gallery.shapes.get(name) for name in ("index", "x", "x_adv", "label", "clean_pred", "adv_pred")]
        if not all(shown) or len({shape[0] for shape in shown if shape}) > 1:
            raise Damaged(f"{folder / 'gallery.safetensors'} is damaged (not the images of a gallery)")
    return Pair(result, columns, gallery, run_id, run_url)


def whole(result: Result, path: Path) -> bytes:
    """A file beside a result, whose digest is the record's if that has one.

    Raises:
        Damaged: It is not, or the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path} is damaged ({first_line(error)})") from None
    if hashlib.sha256(content).hexdigest() != result.files.get(path.name, hashlib.sha256(content).hexdigest()):
        raise Damaged(f"{path} is damaged (its digest is not that in result.json)")
    return content


def _result(folder: Path) -> Result:
    path = folder / "result.json"
    try:
        result = read_record(path, Result, "result.json")
        if folder.parent.name == "cells":
            seals.in_place(result.cell, path, folder.name)
        return result
    except (UserError, OSError) as error:
        raise Damaged(str(error)) from None


def check_result(folder: Path) -> Result:
    """``result.json``, after a look at the files beside it that does not read them whole.

    Raises:
        Damaged: A file is damaged or missing; the message names it.
    """
    result = _result(folder)
    try:
        rows = read_metadata(io.BytesIO(whole(result, folder / "samples.parquet"))).num_rows
    except (OSError, ValueError) as error:  # pyarrow's derive from these
        raise Damaged(f"{folder} is damaged ({first_line(error)})") from None
    if rows != result.n - result.of_target:
        raise Damaged(f"{folder} is damaged (result.json and samples.parquet do not belong together)")
    return result
