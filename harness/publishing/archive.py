"""Bundles as folders and archives: the same bytes for the same files, and nothing of a stranger's but plain files."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Final

from ..errors import UserError, first_line
from ..records.files import check_plain, write_bytes
from ..schema.bundles import MANIFEST

Content = bytes | Path
"""Of a file: its bytes, or where they lie."""

FORMS: Final = "a folder, FILE.tar or FILE.zip"

_MOMENT: Final = (1980, 1, 1, 0, 0, 0)
_SECONDS: Final = 315532800  # the same, since 1970
_MOST_FILES: Final = 10**6
_HEADER: Final = 2**24
_TEXT: Final = 2**26


def write(out: Path, files: Mapping[str, Content]) -> None:
    """Write files, in the order of their names, as :data:`FORMS`; one that was published there before is replaced.

    Raises:
        UserError: Something else is there already.
    """
    if out.suffix in (".tar", ".zip"):
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_name(f".{out.name}.part")
        try:
            (_tar if out.suffix == ".tar" else _zip)(part, files)
            part.replace(out)
        finally:
            part.unlink(missing_ok=True)
        return
    if out.suffix in (".gz", ".tgz", ".xz", ".bz2", ".7z"):
        raise UserError(f"{out}: a bundle is {FORMS}; what it holds is compressed already")
    if out.exists():
        if not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST).is_file()):
            raise UserError(f"{out} is there, and is no bundle: choose another with --out")
        shutil.rmtree(out)
    for name in sorted(files, key=lambda name: (name == MANIFEST, name)):  # the manifest last: it makes the rest count
        write_bytes(out / name, _bytes(files[name]))


def _bytes(content: Content) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


def _tar(path: Path, files: Mapping[str, Content]) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(files):
            content = _bytes(files[name])
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.mode = len(content), _SECONDS, 0o644
            archive.addfile(member, io.BytesIO(content))


def _zip(path: Path, files: Mapping[str, Content]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            member = zipfile.ZipInfo(name, _MOMENT)
            member.create_system, member.external_attr = 3, 0o644 << 16  # wherever it is written
            archive.writestr(member, _bytes(files[name]))


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """A bundle as a folder of plain files: itself, or, of an archive, a copy that is gone after the block.

    Raises:
        UserError: It is none, or holds a link, a special file, a name that leads out of it, or more than its bytes.
    """
    if path.is_dir():
        check_folder(path)
        yield path
        return
    if not path.is_file():
        raise UserError(f"there is no bundle {path}: it is {FORMS}")
    with tempfile.TemporaryDirectory(prefix="gauntlet-") as folder:
        try:
            if zipfile.is_zipfile(path):
                _unzip(path, Path(folder))
            else:
                _untar(path, Path(folder))
        except (tarfile.TarError, zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError) as error:
            raise UserError(f"{path} cannot be read ({first_line(error)}): a bundle is {FORMS}") from None
        check_folder(Path(folder))
        yield Path(folder)


def _untar(path: Path, folder: Path) -> None:
    seen: set[str] = set()
    left = path.stat().st_size
    with tarfile.open(path, "r:") as archive:  # not compressed: no more comes out than is there
        for member in archive:
            if member.isdir():
                continue
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
                raise UserError(f"{path}: {member.name!r} is no plain file")
            left -= member.size
            source = archive.extractfile(member)
            assert source is not None
            _extract(path, member.name, source, member.size, left, seen, folder)


def _unzip(path: Path, folder: Path) -> None:
    seen: set[str] = set()
    left = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise UserError(f"{path}: {member.filename!r} is no plain file")
            if member.compress_type != zipfile.ZIP_STORED:
                raise UserError(f"{path}: {member.filename!r} is compressed, which no bundle's files are")
            left -= member.file_size
            with archive.open(member) as source:
                _extract(path, member.filename, source, member.file_size, left, seen, folder)


def _extract(path: Path, name: str, source: IO[bytes], size: int, left: int, seen: set[str], folder: Path) -> None:
    """Copy one file out of an archive."""
    inner = PurePosixPath(name)
    if inner.is_absolute() or ".." in inner.parts or not inner.parts or any(mark in name for mark in "\\\0:"):
        raise UserError(f"{path}: the name {name!r} leads out of the bundle")
    if str(inner) in seen:
        raise UserError(f"{path}: it holds {name!r} twice")
    if left < 0 or len(seen) >= _MOST_FILES:
        raise UserError(f"{path}: it claims to hold more than its own bytes")
    seen.add(str(inner))
    target = folder.joinpath(*inner.parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        shutil.copyfileobj(source, file)
    if target.stat().st_size != size:
        raise UserError(f"{path}: {name!r} is cut off")


def check_folder(folder: Path) -> None:
    """Make sure that a folder holds plain files alone, of headers that can be read.

    Raises:
        UserError: It holds a link or a special file, too many files, or a header too large.
    """
    for number, entry in enumerate(_entries(folder)):
        check_plain(entry)
        if number > _MOST_FILES:
            raise UserError(f"{folder} holds more than {_MOST_FILES} files")
        size = entry.stat(follow_symlinks=False).st_size
        if entry.name.endswith(".safetensors"):
            with Path(entry.path).open("rb") as file:
                header = int.from_bytes(file.read(8), "little")
            if header > min(_HEADER, size):
                raise UserError(f"{entry.path!r} is damaged (it claims a header of {header} bytes)")
        elif not entry.name.endswith(".parquet") and size > _TEXT:
            raise UserError(f"{entry.path!r} has {size} bytes, more than any record")


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Whatever lies in a folder and is no folder itself."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(Path(entry.path))
            else:
                yield entry


def names(folder: Path) -> list[str]:
    """Paths of all files below a folder, with ``/``."""
    return [Path(entry.path).relative_to(folder).as_posix() for entry in _entries(folder)]
