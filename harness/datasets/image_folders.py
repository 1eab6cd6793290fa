"""Data sets of image files, in folders or parquet, as uint8 tensors.

Errors and late imports as in :mod:`harness.datasets.torchvision_sets`.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .sampling import fixed_split
from .torchvision_sets import POINT, Part, damaged, need_root, one_line

Shape = tuple[int, int, int]

REPLACE: Final = "replace it with a whole copy"
IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
"""What torchvision's ImageFolder takes for an image."""


class Encoded(NamedTuple):
    """A part whose images are still files: their bytes, int64 (N,), and a function that names one for people."""

    blobs: list[bytes]
    y: Tensor
    where: Callable[[int], str]
    origin: str


class UserSet(NamedTuple):
    """A user's own set, read but not decoded. ``name`` holds a digest of the content and no path."""

    name: str
    shape: Shape
    classes: tuple[str, ...]
    train: Encoded
    test: Encoded

    def parts(self) -> tuple[Part, Part]:
        """Decode both parts."""
        return decode(self.train, self.shape), decode(self.test, self.shape)


def read_parquet_folder(
    name: str, shape: Shape, classes: Sequence[str], root: Path | None, download: bool
) -> tuple[Part, Part]:
    """A set of ours as ``<root>/<name>/train.parquet`` and ``test.parquet``, columns as for :func:`open_parquet`."""
    folder = need_root(name, root) / name
    files = [folder / "train.parquet", folder / "test.parquet"]
    missing = [path for path in files if not path.is_file()]
    if missing:
        what = f"{name} is not in {folder}" if len(missing) == len(files) else f"{missing[0]} is missing"
        raise UserError(f"{what}: {POINT}")
    train, test = (decode(_encoded(_read_table(path, _read(path)), path, classes), shape) for path in files)
    return train, test


def open_images(folder: Path) -> UserSet:
    """A user's folder in the layout of torchvision's ImageFolder: ``train/CLASS/*.png``, ``test/CLASS/*.png``.

    Raises:
        UserError: A folder, or a class's images, missing; an image undecodable, of another size than the first, or
            of more than 8 bits.
    """
    splits = folder / "train", folder / "test"
    for split in splits:
        if not split.is_dir():
            raise UserError(f"{split} is missing: images:DIR needs DIR/train and DIR/test, a folder per class")
    classes, others = map(_folders, splits)
    if stray := sorted(set(others) - set(classes)):
        raise UserError(f"{splits[1] / stray[0]} has no counterpart in {splits[0]}: add it there, or remove it")
    digest = hashlib.sha256()
    parts = []
    for split in splits:
        paths: list[Path] = []
        y: list[int] = []
        for label, name in enumerate(classes):
            inside = (path for path in (split / name).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
            found = sorted(inside, key=Path.as_posix)
            if not found and split is splits[0]:
                raise UserError(f"{split / name} holds no image: add some, or remove the folder")
            paths += found
            y += [label] * len(found)
        blobs = [_read(path) for path in paths]
        for path, blob in zip(paths, blobs, strict=True):
            digest.update(f"{path.relative_to(folder).as_posix()}\0{len(blob)}\0".encode(errors="surrogateescape"))
            digest.update(blob)
        parts.append(Encoded(blobs, torch.tensor(y, dtype=torch.int64), _nth(paths), str(split)))
    return _user_set("images", folder, digest.hexdigest(), tuple(classes), parts[0], parts[1])


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _nth(paths: Sequence[Path]) -> Callable[[int], str]:
    return lambda row: str(paths[row])


def open_parquet(path: Path) -> UserSet:
    """A user's parquet file with columns ``image`` (bytes, or a struct with ``bytes``) and ``label``.

    Labels are whole numbers 0..K-1, named by the Hugging Face metadata where the file has them, or class names. A
    column ``split`` of ``train`` and ``test`` tells the parts; without one the split is fixed, stratified, 80 to 20.
    A folder with ``train.parquet`` and ``test.parquet`` will do as well.

    Raises:
        UserError: A file, column or class missing; the file or an image damaged; images of several sizes.
    """
    files = [path / "train.parquet", path / "test.parquet"] if path.is_dir() else [path]
    digest = hashlib.sha256()
    tables = []
    for file in files:
        if not file.is_file():
            raise UserError(
                f"{file} is missing: parquet:FILE needs a file, or a folder with train.parquet, test.parquet"
            )
        content = _read(file)
        digest.update(hashlib.sha256(content).digest())
        tables.append(_read_table(file, content))
    names = _class_names(tables[0], files[0])
    wholes = [_encoded(table, file, names) for table, file in zip(tables, files, strict=True)]
    if len(wholes) == 1:
        wholes = [_rows(wholes[0], rows) for rows in _split_rows(tables[0], wholes[0])]
    return _user_set("parquet", path, digest.hexdigest(), names, wholes[0], wholes[1])


def decode(part: Encoded, shape: Shape, mend: str = REPLACE) -> Part:
    """Decode every image to ``shape``: 1 channel is gray, 3 are RGB; transparency is dropped.

    Raises:
        UserError: An image cannot be decoded or has another size.
    """
    from PIL import Image

    channels, *size = shape
    mode = "L" if channels == 1 else "RGB"
    out = np.empty((len(part.blobs), *size, channels), np.uint8)
    flat = out[..., 0] if channels == 1 else out
    for row, blob in enumerate(part.blobs):
        try:
            with Image.open(io.BytesIO(blob)) as image:
                height, width = image.height, image.width
                if [height, width] == size:
                    # by way of RGBA, because PIL warns of palettes with transparency
                    whole = image.convert("RGBA") if image.mode in ("P", "PA") else image
                    flat[row] = np.asarray(whole if whole.mode == mode else whole.convert(mode))
        except Exception as error:  # PIL's formats raise whatever their parsers run into
            raise damaged(part.where(row), f"it cannot be decoded ({one_line(error)})", mend) from error
        if [height, width] != size:
            expected = f"{size[1]}x{size[0]}"
            raise UserError(f"{part.where(row)} is {width}x{height} pixels, not {expected}: images must have one size")
    x = torch.from_numpy(np.ascontiguousarray(out.transpose(0, 3, 1, 2)))
    return Part(x, part.y, part.origin, mend)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


class _Table(NamedTuple):
    """Columns of a parquet file; ``names`` are the classes of integer labels where the file tells them."""

    blobs: list[bytes]
    labels: list[Any]
    names: tuple[str, ...]
    splits: list[str]


def _read_table(path: Path, content: bytes) -> _Table:
    import pyarrow as pa

    try:
        return _columns(path, content)
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise damaged(path, one_line(error), REPLACE) from error


def _columns(path: Path, content: bytes) -> _Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(pa.BufferReader(content)) as file:
        found = file.schema_arrow.names
        table = file.read([name for name in ("image", "label", "split") if name in found])
    for name in ("image", "label"):
        if name not in found:
            raise UserError(f"{path} has no column {name!r}, only {', '.join(found)}: rename the one that holds it")
    image, label = table["image"], table["label"]
    if pa.types.is_struct(image.type) and image.type.get_field_index("bytes") >= 0:
        image = pa.chunked_array([chunk.field("bytes") for chunk in image.chunks], image.type.field("bytes").type)
    if not (pa.types.is_binary(image.type) or pa.types.is_large_binary(image.type)):
        raise UserError(f"{path}: column 'image' holds {image.type}; it must hold the bytes of image files")
    kind = label.type.value_type if pa.types.is_dictionary(label.type) else label.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(f"{path}: column 'label' holds {kind}; it must hold whole numbers 0..K-1 or class names")
    blobs, labels = image.to_pylist(), label.to_pylist()
    for name, column in (("image", blobs), ("label", labels)):
        if None in column:
            raise damaged(f"{path} row {column.index(None)}", f"it has no {name}", "fill it, or drop the row")
    splits = [str(value) for value in table["split"].to_pylist()] if "split" in found else []
    return _Table(blobs, labels, _metadata_names(table.schema.metadata), splits)


def _metadata_names(metadata: dict[bytes, bytes] | None) -> tuple[str, ...]:
    """Class names from the metadata that the Hugging Face hub writes; empty where there are none."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features["label"]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _class_names(table: _Table, path: Path) -> tuple[str, ...]:
    distinct = sorted(set(table.labels))
    if table.names or not distinct or isinstance(distinct[0], str):
        return table.names or tuple(distinct)
    if distinct != list(range(len(distinct))):
        some = ", ".join(map(str, distinct[:5])) + (", ..." if len(distinct) > 5 else "")
        raise UserError(
            f"{path}: labels must be 0..K-1 without a gap, these are {some}: number them anew, or name them"
        )
    return tuple(map(str, distinct))


def _encoded(table: _Table, path: Path, names: Sequence[str]) -> Encoded:
    """The table as a part; labels that are class names become their positions in ``names``."""
    labels = table.labels
    if labels and isinstance(labels[0], str):
        position = {name: label for label, name in enumerate(names)}
        for row, label in enumerate(labels):
            if label not in position:
                raise UserError(f"{path} row {row}: unknown class {label!r}; the classes are {', '.join(names)}")
        labels = [position[label] for label in labels]
    y = torch.tensor(labels, dtype=torch.int64)
    return Encoded(table.blobs, y, lambda row: f"{path} row {row}", str(path))


def _split_rows(table: _Table, whole: Encoded) -> tuple[Tensor, Tensor]:
    if not table.splits:
        return fixed_split(whole.y)
    for row, split in enumerate(table.splits):
        if split not in ("train", "test"):
            raise UserError(f"{whole.where(row)}: split {split!r}; choose from train, test")
    test = torch.tensor([split == "test" for split in table.splits])
    return (~test).nonzero().flatten(), test.nonzero().flatten()


def _rows(whole: Encoded, rows: Tensor) -> Encoded:
    position = rows.tolist()
    blobs = [whole.blobs[row] for row in position]
    return Encoded(blobs, whole.y[rows], lambda row: whole.where(position[row]), whole.origin)


def _user_set(kind: str, path: Path, digest: str, classes: tuple[str, ...], train: Encoded, test: Encoded) -> UserSet:
    """Give the set its name, and its shape by the headers of all images: gray only if every one is."""
    from PIL import Image

    path = path.resolve()
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem if path.is_file() else path.name)
    size: tuple[int, int] | None = None
    channels = 1
    for part in (train, test):
        for row, blob in enumerate(part.blobs):
            try:
                with Image.open(io.BytesIO(blob)) as image:
                    found, mode = image.size, image.mode
            except Exception as error:  # as in decode
                raise damaged(part.where(row), f"it cannot be decoded ({one_line(error)})", REPLACE) from error
            if mode in ("I", "F") or mode.startswith("I;"):
                raise UserError(f"{part.where(row)} has more than 8 bits a pixel: save it as 8-bit gray or RGB")
            size = size or found
            if found != size:
                pair = f"{found[0]}x{found[1]} pixels, not {size[0]}x{size[1]}"
                raise UserError(f"{part.where(row)} is {pair} as the first: images must have one size")
            channels = channels if mode in ("1", "L", "LA", "La") else 3
    if size is None or len(classes) < 2:
        found_now = f"{len(train.blobs) + len(test.blobs)} images of {len(classes)} classes"
        raise UserError(f"{path} holds {found_now}: {kind} sets need training and test images of two classes or more")
    return UserSet(f"{kind}:{base}@{digest[:8]}", (channels, size[1], size[0]), classes, train, test)
