"""Data sets of image files, in folders or parquet, as uint8 tensors.

Errors and late imports as in :mod:`harness.datasets.torchvision_sets`.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from . import class_maps
from .sampling import fixed_split
from .set_options import PLAIN, SetOptions
from .torchvision_sets import POINT, Part, damaged, need_root, one_line

Shape = tuple[int, int, int]

REPLACE: Final = "replace it with a whole copy"
IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
"""What torchvision's ImageFolder takes for an image."""


TEST_PARTS: Final = ("test", "val", "validation")
"""Folders that hold test images: the first that is there."""

LAYOUTS: Final = (
    "DIR/train/CLASS/*.png with DIR/test/CLASS/*.png; for a --victim DIR/test or DIR/val alone, or DIR/CLASS/*.png"
)

TABLES: Final = (
    "columns image (bytes) and label (whole numbers or class names), split where wanted (train, test); or a folder "
    "with train.parquet and test.parquet"
)

IN_MEMORY: Final = 2**30
"""Bytes of decoded images beyond which they lie in a temporary file that is mapped into memory."""


class Encoded(NamedTuple):
    """A part whose images are still files: their bytes, int64 (N,), and a function that names one for people."""

    blobs: Sequence[bytes]
    y: Tensor
    where: Callable[[int], str]
    origin: str


class Files(Sequence[bytes]):
    """Contents of files, read when they are asked for. What changed since it was first read is an error."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.digests: list[bytes] = []

    def add(self, path: Path) -> bytes:
        """Read a file, and remember what is in it."""
        content = _read(path)
        self.paths.append(path)
        self.digests.append(hashlib.sha256(content).digest())
        return content

    def where(self, row: int) -> str:
        """Name of a file for people."""
        return str(self.paths[row])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: Any) -> Any:
        content = _read(self.paths[row])
        if hashlib.sha256(content).digest() != self.digests[row]:
            raise UserError(f"{self.paths[row]} has changed since the data set was first read: start again")
        return content


class UserSet(NamedTuple):
    """A user's own set, read but not decoded. ``name`` holds a digest of the content and no path.

    Attributes:
        train: Without images, where there are only some to test with.
        notes: Lines that its owner should read.
    """

    name: str
    shape: Shape
    classes: tuple[str, ...]
    train: Encoded
    test: Encoded
    options: SetOptions = PLAIN
    notes: tuple[str, ...] = ()


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


def open_images(folder: Path, options: SetOptions = PLAIN) -> UserSet:
    """A user's folder in the layout of torchvision's ImageFolder: ``train/CLASS/*.png``, ``test/CLASS/*.png``.

    ``val`` or ``validation`` will do for ``test``. A test part alone, or classes without parts, hold images to test
    with and none to train on. Links are followed; hidden files and what macOS adds (``__MACOSX``, ``._x``) are left
    out. One name in two Unicode forms is one class; classes that are all numbers stand in the order of numbers. Every
    file is read once here, and again when its image is asked for: no more is held in memory.

    Raises:
        UserError: A folder, or a class's images, missing; an image undecodable, of another size than the first, or
            of more than 8 bits; a class that ``options`` do not place.
    """
    splits = _splits(folder)
    found = [_classes(split) for split in splits]
    names = list(found[0])
    if len(found) == 2 and (stray := sorted(set(found[1]) - set(names))):
        raise UserError(f"{found[1][stray[0]][0]} has no counterpart in {splits[0]}: add it there, or remove it")
    notes, names = _ordered(names, folder)
    outputs = class_maps.read(options.classes, names) if options.classes else None
    digest, looked, left = hashlib.sha256(), _Looked(options), Counter[str]()
    parts = []
    for split, folders in zip(splits, found, strict=True):
        files, y = Files(), list[int]()
        for label, name in enumerate(names):
            paths = sorted((p for place in folders.get(name, ()) for p in _images(place, left)), key=Path.as_posix)
            if not paths and split is splits[0]:
                raise UserError(f"{split / name} holds no image: add some, or remove the folder")
            for path in paths:
                content = files.add(path)
                inside = class_maps.nfc(path.relative_to(folder).as_posix())
                digest.update(f"{inside}\0{len(content)}\0".encode(errors="surrogateescape"))
                digest.update(content)
                looked.at(content, str(path))
            y += [outputs.of[name] if outputs is not None else label] * len(paths)
        parts.append(Encoded(files, torch.tensor(y, dtype=torch.int64), files.where, str(split)))
    if left:
        counts = sorted(left.items(), key=lambda item: (-item[1], item[0]))
        notes.append(f"left out of {folder}: {', '.join(f'{n} {suffix}' for suffix, n in counts)}")
    train = parts[0] if len(parts) == 2 else Encoded((), torch.empty(0, dtype=torch.int64), str, str(folder))
    return _user_set("images", folder, digest, tuple(names), train, parts[-1], looked, outputs, notes)


def _splits(folder: Path) -> list[Path]:
    """Folders of the training and the test part, or of what there is to test with alone."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: images:DIR needs {LAYOUTS}")
    train = folder / "train"
    tests = [folder / name for name in TEST_PARTS if (folder / name).is_dir()]
    if train.is_dir():
        if not tests:
            raise UserError(f"{folder / 'test'} is missing: images:DIR needs {LAYOUTS}")
        return [train, tests[0]]
    if not (tests or _classes(folder)):
        raise UserError(f"{train} is missing: images:DIR needs {LAYOUTS}")
    return [tests[0] if tests else folder]


def _is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or what macOS puts beside its own."""
    return name.startswith(".") or name == "__MACOSX"


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Folders by their names in one Unicode form, in the order of these."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not _is_hidden(path.name):
            found.setdefault(class_maps.nfc(path.name), []).append(path)
    return dict(sorted(found.items()))


def _ordered(names: list[str], folder: Path) -> tuple[list[str], list[str]]:
    """Notes, and the classes in the order of their labels."""
    if not names or not all(name.isascii() and name.isdecimal() for name in names):
        return [], names
    ordered = sorted(names, key=lambda name: (int(name), name))
    some = ", ".join(ordered[:3]) + (f", ..., {ordered[-1]}" if len(ordered) > 3 else "")
    return (
        [f"the folders of {folder} are numbers, and stand in their order: {some}"] if ordered != names else []
    ), ordered


def _images(folder: Path, left: Counter[str]) -> Iterator[Path]:
    """Images below a folder, through links; what else there is, counted by suffix."""
    above: dict[str, set[str]] = {str(folder): {os.path.realpath(folder)}}
    for place, folders, files in os.walk(folder, followlinks=True):
        trail = above.pop(place)
        within = {name: os.path.realpath(Path(place, name)) for name in folders}
        # a link to a folder above itself would go on for ever
        folders[:] = [name for name, real in within.items() if not _is_hidden(name) and real not in trail]
        above |= {str(Path(place, name)): trail | {within[name]} for name in folders}
        for name in files:
            path = Path(place, name)
            if _is_hidden(name):
                left["hidden"] += 1
            elif path.suffix.lower() in IMAGE_SUFFIXES:
                yield path
            else:
                left[path.suffix.lower() or "without a suffix"] += 1


def open_parquet(path: Path, options: SetOptions = PLAIN) -> UserSet:
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
    looked = _Looked(options)
    for part in wholes:
        for row, blob in enumerate(part.blobs):
            looked.at(blob, part.where(row))
    outputs = class_maps.read(options.classes, names) if options.classes else None
    if outputs is not None:
        place = torch.tensor([outputs.of[class_maps.nfc(name)] for name in names])
        wholes = [part._replace(y=place[part.y]) for part in wholes]
    return _user_set("parquet", path, digest, names, wholes[0], wholes[1], looked, outputs, [])


def decode(part: Encoded, shape: Shape, mend: str = REPLACE) -> Part:
    """A part with every image decoded, see :func:`decoded`."""
    return Part(decoded(part, shape), part.y, part.origin, mend)


def decoded(part: Encoded, shape: Shape, rows: Sequence[int] | None = None, options: SetOptions = PLAIN) -> Tensor:
    """Images of a part as uint8 (N, C, H, W): 1 channel is gray, 3 are RGB; transparency is dropped.

    Args:
        part: Where they come from.
        shape: What each becomes.
        rows: Which of them; None: all.
        options: How they are brought to that size.

    Raises:
        UserError: An image cannot be decoded or has another size.
    """
    from PIL import Image

    channels, *size = shape
    mode = "L" if channels == 1 else "RGB"
    chosen = range(len(part.blobs)) if rows is None else rows
    out = _room((len(chosen), *shape))
    for place, row in enumerate(chosen):
        blob = part.blobs[row]
        try:
            with Image.open(io.BytesIO(blob)) as image:
                found = image.size
                fits = [*reversed(options.size(*found))] == size
                if fits:
                    # by way of RGBA, because PIL warns of palettes with transparency
                    whole = image.convert("RGBA") if image.mode in ("P", "PA") else image
                    pixels = np.asarray(options.apply(whole if whole.mode == mode else whole.convert(mode)))
                    out[place] = pixels if channels == 1 else pixels.transpose(2, 0, 1)
        except Exception as error:  # PIL's formats raise whatever their parsers run into
            raise damaged(part.where(row), f"it cannot be decoded ({one_line(error)})", REPLACE) from error
        if not fits:
            raise UserError(f"{part.where(row)} {_other(found, (size[1], size[0]))}")
    return torch.from_numpy(out)


def _room(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """An array of bytes; a large one lies in a file that is gone with it, so that memory need not hold it."""
    if math.prod(shape) <= IN_MEMORY:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)


def _other(found: tuple[int, int], wanted: tuple[int, int]) -> str:
    return (
        f"is {found[0]}x{found[1]} pixels, not {wanted[0]}x{wanted[1]} as the first: images must have one size, "
        "which --resize 256 --crop 224 give them"
    )


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


class _Looked:
    """What the headers of a set's images say: one size, and gray only if every one is."""

    def __init__(self, options: SetOptions) -> None:
        self.options = options
        self.size: tuple[int, int] | None = None
        self.channels = 1

    def at(self, blob: bytes, where: str) -> None:
        """Look at one image."""
        from PIL import Image

        try:
            with Image.open(io.BytesIO(blob)) as image:
                found, mode = image.size, image.mode
        except Exception as error:  # as in decoded
            raise damaged(where, f"it cannot be decoded ({one_line(error)})", REPLACE) from error
        if mode in ("I", "F") or mode.startswith("I;"):
            raise UserError(f"{where} has more than 8 bits a pixel: save it as 8-bit gray or RGB")
        made, cut = self.options.size(*found), self.options.cut
        if cut is not None and made != cut:
            what = f"{where} is {found[0]}x{found[1]} pixels, and {made[0]}x{made[1]} when it is to be cropped"
            raise UserError(f"{what} to {cut[0]}x{cut[1]}: --resize makes it larger")
        self.size = self.size or made
        if made != self.size:
            more = f" ({made[0]}x{made[1]} when resized)" if made != found else ""
            raise UserError(f"{where}{more} {_other(found, self.size)}")
        self.channels = self.channels if mode in ("1", "L", "LA", "La") else 3


def _user_set(
    kind: str,
    path: Path,
    digest: Any,
    folders: tuple[str, ...],
    train: Encoded,
    test: Encoded,
    looked: _Looked,
    outputs: class_maps.Outputs | None,
    notes: list[str],
) -> UserSet:
    """Give the set its name, and its shape by the headers of all images."""
    path = path.resolve()
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem if path.is_file() else path.name)
    classes = folders if outputs is None else outputs.names
    options = looked.options
    if looked.size is None or len(classes) < 2 or not len(test.blobs):
        found_now = f"{len(train.blobs) + len(test.blobs)} images of {len(classes)} classes"
        raise UserError(f"{path} holds {found_now}: {kind} sets need training and test images of two classes or more")
    if outputs is not None:
        digest.update(json.dumps([[*outputs.of.items()], outputs.names]).encode())
        these = sorted(set(outputs.of.values()))
        some = ", ".join(map(str, these[:5])) + (", ..." if len(these) > 5 else "")
        notes.append(
            f"the {len(folders)} classes of {path.name} are outputs {some} of {len(classes)}, all of which compete"
        )
    if not len(train.blobs):
        notes.append(
            f"{path.name} has no training part: attacks that learn from images learn from these, and transfers are "
            "left out"
        )
    name = f"{kind}:{base}{options.tag}@{digest.hexdigest()[:8]}"
    shape = (looked.channels, looked.size[1], looked.size[0])
    return UserSet(name, shape, classes, train, test, options, tuple(notes))
