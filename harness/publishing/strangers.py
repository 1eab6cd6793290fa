"""A home that may be a stranger's is data: nothing in it leads out of it, and nothing but plain files is opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ..errors import UserError
from ..records.merge import KEPT
from .archive import check_folder

ELSEWHERE: Final = ("mlflow-artifacts", "fetched")
"""Folders of MLflow's, which are looked at run by run (:mod:`harness.tracking.connection`)."""


def check_home(path: Path) -> None:
    """Look at every entry of a home, its records' headers and sizes too, before anything is read or written there.

    The home itself may be named by a link. One that is not there is left to whoever reads it.

    Raises:
        UserError: It holds a link, a special file, or a record that claims to be larger than any.
    """
    if not path.is_dir():
        return
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        _check(entry)
        if not entry.is_dir() or entry.name in ELSEWHERE:
            continue
        if entry.name in KEPT:
            check_folder(Path(entry.path))
            continue
        folders = [entry.path]
        while folders:
            with os.scandir(folders.pop()) as entries:
                for inner in entries:
                    _check(inner)
                    if inner.is_dir():
                        folders.append(inner.path)


def _check(entry: os.DirEntry[str]) -> None:
    if not entry.is_file(follow_symlinks=False) and not entry.is_dir(follow_symlinks=False):
        raise UserError(f"{entry.path!r} is no plain file: links and special files are not followed")
