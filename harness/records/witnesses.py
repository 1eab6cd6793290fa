"""Witnesses: the judged images that broke a model, kept so that its accuracies can be judged again.

A shard's file holds all of its witnesses. When its pair is finished, those that come nearer than any before, in some
norm of the plan, go into the model's table, ``witnesses/MODEL/``; the nearest image of each sample serves every eps of
its norm. The table is kept in chunks by position in the test set, each written whole or not at all. Which images it
holds depends on no order: of equally near ones that of the smaller key counts.
"""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import parquet
from safetensors.numpy import save as save_arrays

from ..errors import first_line
from ..metrics.pairs import DISTANCES
from ..schema.pairs import Result
from ..schema.witnesses import WitnessFacts
from . import seals
from .files import parse_record, sealed_facts, write_bytes
from .home import Home
from .results import PACKED, Damaged, bounded, opened, shard_path, whole

Mode = Literal["none", "worst-case", "all"]
MODES: Final[tuple[Mode, ...]] = ("none", "worst-case", "all")
"""Which are kept: none; of each model the nearest in every norm; and those of every pair beside them."""

FILE: Final = "witnesses.parquet"
"""Beside a result, where all are kept."""

CHUNK: Final = 2**26
"""Bytes of one image for each position of a chunk of a model's table, before compression."""

Rows = dict[str, npt.NDArray[Any]]
"""Witnesses by column, a row each: ``index`` (position in the data set's part), ``adv_pred``, ``batch`` and ``place``
(how many images were judged at once, and where among them), distances, ``x_adv`` float32 (M, C, H, W); ``cell``, the
pair's key, in a model's table."""

COLUMNS: Final = ("index", "adv_pred", "place", "batch", *DISTANCES)


def pack(rows: Rows) -> bytes:
    """Rows as a parquet file. Images are compressed as they are: bytes sorted by their place take more room."""
    images = rows["x_adv"]
    flat = np.ascontiguousarray(images, dtype=np.float32).reshape(len(images), math.prod(images.shape[1:]))
    columns = {name: pa.array(rows[name]) for name in rows if name != "x_adv"}
    columns["x_adv"] = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
    table = pa.table(columns, metadata={"shape": ",".join(map(str, images.shape[1:]))})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="zstd", use_dictionary=False, write_page_checksum=True)
    return buffer.getvalue()


def unpack(content: bytes, path: Path, *, images: bool = True) -> Rows:
    """Rows of :func:`pack`; without their images where these are not wanted.

    Raises:
        Damaged: It is none of these; ``path`` is the file to blame.
    """
    try:
        with parquet.ParquetFile(io.BytesIO(content), page_checksum_verification=True) as file:
            bounded(file.metadata)
            names = [name for name in file.schema_arrow.names if images or name != "x_adv"]
            table = file.read(columns=names, use_threads=False)
            shape = tuple(int(side) for side in file.schema_arrow.metadata[b"shape"].split(b","))
        rows = {name: table.column(name).combine_chunks() for name in table.column_names}
        found = {name: array.to_numpy(zero_copy_only=False) for name, array in rows.items() if name != "x_adv"}
        if images:
            flat = rows["x_adv"].flatten().to_numpy(zero_copy_only=False)
            found["x_adv"] = flat.reshape(table.num_rows, *shape).astype(np.float32, copy=False)
    except Exception as error:  # damaged bytes make pyarrow raise a dozen types
        raise Damaged(f"{path} is damaged ({first_line(error)})") from None
    if missing := [name for name in COLUMNS if name not in found]:
        raise Damaged(f"{path} is damaged (no column {missing[0]})")
    return found


def of_shard(path: Path) -> Rows | None:
    """Witnesses in a shard's file; None where none were kept.

    Raises:
        Damaged: The file cannot be read.
    """
    with opened(path) as file:
        if PACKED not in list(file.keys()):
            return None
        return unpack(file.get_tensor(PACKED).tobytes(), path)


def of_shards(folder: Path, shards: int) -> Rows | None:
    """Witnesses of a pair's shards, in their order; None where there are none.

    Raises:
        Damaged: A shard cannot be read.
    """
    parts = [rows for number in range(shards) if (rows := of_shard(shard_path(folder, number))) is not None]
    return _joined(parts) if parts else None


def of_pair(folder: Path, result: Result) -> Rows | None:
    """Witnesses beside a finished pair's result, None where they were not kept.

    Raises:
        Damaged: The file cannot be read, or is another than the record says.
    """
    path = folder / FILE
    return unpack(whole(result, path), path) if FILE in result.files else None


def tables(home: Home, model: str) -> list[Path]:
    """Files of a model's table."""
    return sorted(home.witnesses(model).glob("*.safetensors"))


def read_table(path: Path, *, images: bool = True) -> tuple[Rows, WitnessFacts]:
    """One chunk of a model's table.

    Raises:
        Damaged: It cannot be read, or lies in another's place.
    """
    with opened(path) as file:
        seals.check(path.read_bytes(), path)
        facts = parse_record((file.metadata() or {})["facts"], WitnessFacts, path)
        seals.in_place(facts.place, path, f"{path.parent.name}/{path.stem}")
        rows = unpack(file.get_tensor(PACKED).tobytes(), path, images=images)
    if "cell" not in rows:
        raise Damaged(f"{path} is damaged (no column cell)")
    return rows, facts


def keep(home: Home, cell: str, rows: Rows, norms: Collection[str], *, model: str, weights: str, part: str) -> None:
    """Let a pair's witnesses take their places in the table of its model.

    What the table has of that pair, or of other weights of the model, goes. Doing it twice changes nothing.

    Args:
        home: Where.
        cell: Key of the pair.
        rows: Its witnesses.
        norms: In which the nearest are kept.
        model: Key of the model.
        weights: Digest of its weights.
        part: Whose images, ``"test"`` or ``"train"``.
    """
    rows = {**rows, "cell": np.full(len(rows["index"]), cell, dtype=object)}
    facts = WitnessFacts(norms=tuple(norms), weights=weights)
    chunks = dict(_chunks(rows, part))
    none = {name: value[:0] for name, value in rows.items()}
    there = [path.stem for path in tables(home, model) if (part == "test") == path.stem.isdigit()]
    for name in sorted({*chunks, *there}):
        merge(home.witnesses(model) / f"{name}.safetensors", chunks.get(name, none), facts, {cell})


def merge(path: Path, rows: Rows, facts: WitnessFacts, mine: Collection[str]) -> bool:
    """Merge rows of some pairs into one chunk of a table; whether that changed it. A damaged one is made anew."""
    old: Rows | None = None
    norms = set(facts.norms)
    if path.exists():
        try:
            old, known = read_table(path, images=False)
        except Damaged:
            old = None
        else:
            norms |= set(known.norms)
            old = old if known.weights == facts.weights else None
    kept = np.array([cell not in mine for cell in old["cell"]], bool) if old is not None else np.zeros(0, bool)
    names = [name for name in ("cell", "index", *DISTANCES) if name in rows]
    both: Rows = {
        name: np.concatenate([old[name][kept], rows[name]]) if old is not None else np.asarray(rows[name])
        for name in names
    }
    chosen = nearest(both, sorted(norms))
    ahead = int(kept.sum())
    if old is not None and kept.all() and chosen[:ahead].all() and not chosen[ahead:].any():
        return False
    if not chosen.any():
        path.unlink(missing_ok=True)
        return False
    parts = [{name: value[chosen[ahead:]] for name, value in rows.items()}]
    if old is not None:
        whole, _ = read_table(path)
        parts.insert(0, {name: value[kept][chosen[:ahead]] for name, value in whole.items()})
    table = _joined(parts)
    order = np.lexsort((table["cell"].astype(str), table["index"]))
    packed = pack({name: value[order] for name, value in table.items()})
    told = facts.model_copy(update={"norms": tuple(sorted(norms)), "place": f"{path.parent.name}/{path.stem}"})
    content = save_arrays({PACKED: np.frombuffer(packed, np.uint8)}, metadata={"facts": sealed_facts(told)})
    content = seals.seal(content)
    if path.exists() and path.read_bytes() == content:
        return False
    write_bytes(path, content)
    return True


def nearest(rows: Mapping[str, npt.NDArray[Any]], norms: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which rows are the nearest of their image in some norm; of equally near ones that of the smallest key."""
    chosen = np.zeros(len(rows["index"]), bool)
    for norm in norms:
        order = np.lexsort((rows["cell"].astype(str), rows[norm], rows["index"]))
        first = np.ones(len(order), bool)
        first[1:] = np.diff(rows["index"][order]) != 0
        chosen[order[first]] = True
    return chosen


def size(shape: Sequence[int], n: int, norms: int) -> int:
    """Most bytes that a model's table may take, before compression: an image for each norm and sample."""
    return 4 * math.prod(shape) * n * norms


def _chunks(rows: Rows, part: str) -> Iterator[tuple[str, Rows]]:
    """Rows by the chunk that they belong to, with its name."""
    each = max(1, CHUNK // (4 * math.prod(rows["x_adv"].shape[1:])))
    number = rows["index"] // each
    for one in np.unique(number):
        name = f"{int(one):05d}" if part == "test" else f"{part}-{int(one):05d}"
        yield name, {column: value[number == one] for column, value in rows.items()}


def _joined(parts: Sequence[Rows]) -> Rows:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
