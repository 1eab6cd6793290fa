"""Results on disk: one directory a cell, ``result.json`` + ``samples.parquet``. They are the truth.

A cell in progress holds finished shards under ``shards/``; the three files of a finished one are written
together, ``result.json`` last, and the shards are then removed.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import pandas as pd
from pyarrow.parquet import ParquetFile, read_metadata
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_arrays

from ..errors import UserError, first_line
from ..judging.shard import GALLERY
from ..metrics.pairs import COLUMN_TYPES, DISTANCES, FLAGS, Pair, summary
from .files import finite, read_json, write_bytes, write_json
from .schema import RESULT, misfit

_KINDS: Final[Mapping[type, str]] = {bool: "b", int: "iu", float: "fiu"}
"""NumPy's letters for the types of columns."""

Arrays = Mapping[str, npt.NDArray[Any]]

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
            table = file.read(use_threads=False)
            columns = {column: table.column(column).to_numpy() for column in table.column_names}
    except Exception as error:  # damaged bytes make pyarrow and pandas raise a dozen types
        raise Damaged(f"{name} is damaged ({first_line(error)})") from None
    missing = [column for column in COLUMN_TYPES if column not in columns]
    if missing:
        raise Damaged(f"{name} is damaged (no column {missing[0]})")
    for column, kind in COLUMN_TYPES.items():
        if columns[column].dtype.kind not in _KINDS[kind]:
            raise Damaged(f"{name} is damaged ({column} is {columns[column].dtype})")
    return columns


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
    return pd.DataFrame(_columns(path, path))


def write_shard(folder: Path, shard: int, samples: pd.DataFrame, facts: Mapping[str, Any], gallery: Arrays) -> None:
    """Keep one finished shard as a single file, so that it is there whole or not at all."""
    packed = {f"gallery.{name}": value for name, value in gallery.items()}
    packed["samples"] = np.frombuffer(samples_to_bytes(samples), dtype=np.uint8)
    content = save_arrays(packed, metadata={"facts": json.dumps(finite(dict(facts)))})
    write_bytes(shard_path(folder, shard), content)


def shard_path(folder: Path, shard: int) -> Path:
    """File of one shard."""
    return folder / "shards" / f"{shard:05d}.safetensors"


def read_shard(path: Path) -> tuple[pd.DataFrame, dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Samples, facts and gallery of a shard.

    Raises:
        Damaged: The file cannot be read.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        packed = io.BytesIO(arrays.pop("samples").tobytes())
        facts = json.loads(metadata["facts"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise Damaged(f"{path} is damaged ({first_line(error)})") from None
    samples = pd.DataFrame(_columns(packed, path))
    return samples, facts, {name.removeprefix("gallery."): value for name, value in arrays.items()}


def shard_samples(folder: Path, shard: int) -> pd.DataFrame:
    """Samples of one shard, also of a cell that is finished.

    Raises:
        Damaged: Neither the shard nor the result can be read.
    """
    path = shard_path(folder, shard)
    if path.exists():
        try:
            return read_shard(path)[0]
        except Damaged:
            if path.exists():  # else the cell was finished at this very moment
                raise
    samples = read_samples(folder / "samples.parquet")
    return samples[samples["shard"] == shard]


def finish(folder: Path, shards: int, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Merge a cell's shards into its result.

    Args:
        folder: The cell's directory.
        shards: How many it has.
        meta: Declaration and provenance; counts, costs and status are added.

    Returns:
        The content of ``result.json``.

    Raises:
        Damaged: A shard cannot be read.
    """
    parts = [read_shard(shard_path(folder, number)) for number in range(shards)]
    pair = pair_from_outcomes(meta, parts)
    write_bytes(folder / "gallery.safetensors", save_arrays(dict(pair.gallery)))
    write_bytes(folder / "samples.parquet", samples_to_bytes(pair.samples))
    write_json(folder / "result.json", pair.meta)
    shutil.rmtree(folder / "shards", ignore_errors=True)
    return dict(pair.meta)


def pair_from_outcomes(
    meta: Mapping[str, Any], parts: Sequence[tuple[pd.DataFrame, Mapping[str, Any], Arrays]]
) -> Pair:
    """Merge the samples, facts and galleries of a cell's shards.

    Args:
        meta: Declaration and provenance.
        parts: A triple a shard, in order.
    """
    samples = pd.concat([part[0] for part in parts], ignore_index=True)
    facts = [part[1] for part in parts]
    gallery = {name: np.concatenate([part[2][name] for part in parts])[:GALLERY] for name in parts[0][2]}
    attacked = max(int(samples["attacked"].sum()), 1)
    errors = {error for fact in facts for error in fact["errors"]}
    state = status(samples, boxed=all(fact.get("boxed", True) for fact in facts))
    unchanged = sum(fact.get("unchanged", 0) for fact in facts)
    seeks = meta.get("access") != "none" and meta.get("family") != "transformation"
    if state in ("ok", "unclipped") and unchanged == attacked and seeks and meta.get("eps") != 0:
        # an attack that does nothing must not read as a model that stands
        state = "invalid"
        errors.add("the attack returned every image unchanged")
    result = {
        **meta,
        "seconds": sum(fact["seconds"] for fact in facts),
        "forwards": sum(fact["forwards"] for fact in facts) / attacked,
        "backwards": sum(fact["backwards"] for fact in facts) / attacked,
        "errors": sorted(errors),
        "unchanged": unchanged,
        "unsteady": sum(fact.get("unsteady", 0) for fact in facts),
        "answers": _together([fact.get("answers", {}) for fact in facts]),
        "invalid": {flag: int(samples[flag].sum()) for flag in FLAGS},
        "status": state,
        "summary": summary(samples),
    }
    return Pair(result, samples, gallery)


def _together(answers: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Agreements of a cell's shards as those of the cell: see :class:`harness.victims.agreement.Agreement`."""
    found: dict[str, dict[str, float]] = {}
    for shard in answers:
        for who, one in shard.items():
            total = found.setdefault(who, dict.fromkeys(one, 0))
            for name, value in one.items():
                total[name] = max(total[name], value) if name == "change" else total[name] + value
    return found


def status(samples: pd.DataFrame, *, boxed: bool = True) -> str:
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


def _interned(value: Any) -> Any:
    """The same JSON with its strings shared: those of a result take more room than its numbers, and mostly recur."""
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, dict):
        return {sys.intern(name): _interned(item) for name, item in value.items()}
    return [_interned(item) for item in value] if isinstance(value, list) else value


class Gallery(Mapping[str, npt.NDArray[Any]]):
    """Arrays of a gallery's file, read when they are asked for: a report shows one gallery of a hundred.

    Raises:
        Damaged: The file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as file:
            self.shapes: Mapping[str, Sequence[int]] = {
                name: file.get_slice(name).get_shape()
                for name in file.keys()  # noqa: SIM118
            }

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with safe_open(self._path, framework="numpy") as file:
                yield file
        except (OSError, ValueError, SafetensorError) as error:
            raise Damaged(f"{self._path} is damaged ({first_line(error)})") from None

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in self.shapes:
            raise KeyError(name)
        with self._open() as file:
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
    """Read a finished cell.

    Raises:
        Damaged: A file is damaged; the message names it.
    """
    try:
        meta = read_json(folder / "result.json")
    except (UserError, OSError) as error:
        raise Damaged(str(error)) from None
    if not isinstance(meta, dict):
        raise Damaged(f"{folder / 'result.json'} is damaged (not a JSON object)")
    meta = _interned(meta)
    path = folder / "samples.parquet"
    columns = _columns(path, path)
    if (n := len(columns["index"])) != meta.get("n"):
        raise Damaged(f"{path} is damaged ({n} rows, {meta.get('n')} declared)")
    # cast, which copies, they keep nothing of the table alive: its own objects take more room than a hundred images
    columns = {name: _shared(array.astype(COLUMN_TYPES.get(name, array.dtype))) for name, array in columns.items()}
    return Pair(meta, columns, read_gallery(folder / "gallery.safetensors"), run_id, run_url)


def read_result(folder: Path, run_id: str = "", run_url: str = "") -> Pair:
    """:func:`read_pair`, and a look at whether it holds what boards and reports need.

    Raises:
        Damaged: A file is damaged, or not of this cell; the message names it.
    """
    pair = read_pair(folder, run_id, run_url)
    fault = misfit(pair.meta, RESULT, "result.json")
    if not fault and pair.meta["norm"] not in DISTANCES:
        fault = f"unknown norm {pair.meta['norm']!r}"
    if fault:
        raise Damaged(f"{folder / 'result.json'} is damaged ({fault})")
    if isinstance(pair.gallery, Gallery) and pair.gallery:
        shown = [pair.gallery.shapes.get(name) for name in ("index", "x", "x_adv", "label", "clean_pred", "adv_pred")]
        if not all(shown) or len({shape[0] for shape in shown if shape}) > 1:
            raise Damaged(f"{folder / 'gallery.safetensors'} is damaged (not the images of a gallery)")
    return pair


def check_result(folder: Path) -> dict[str, Any]:
    """Content of ``result.json``, after a look at the files beside it that does not read them whole.

    Raises:
        Damaged: A file is damaged or missing; the message names it.
    """
    try:
        meta: dict[str, Any] = read_json(folder / "result.json")
        rows = read_metadata(folder / "samples.parquet").num_rows
    except (OSError, ValueError) as error:  # pyarrow's and UserError derive from these
        raise Damaged(f"{folder} is damaged ({first_line(error)})") from None
    if not isinstance(meta, dict) or rows != meta.get("n"):
        raise Damaged(f"{folder} is damaged (result.json and samples.parquet do not belong together)")
    return meta


def read_pairs(folders: Iterable[Path]) -> list[Pair]:
    """Every finished cell among the folders, in their order."""
    return [read_pair(folder) for folder in folders if is_finished(folder)]
