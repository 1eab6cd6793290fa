"""A home that may be a stranger's is data: nothing in it leads out of it, and nothing but plain files is opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ..records.files import check_plain
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
        check_plain(entry)
        if not entry.is_dir() or entry.name in ELSEWHERE:
            continue
        if entry.name in KEPT:
            check_folder(Path(entry.path))
            continue
        folders = [entry.path]
        while folders:
            with os.scandir(folders.pop()) as entries:
                for inner in entries:
                    check_plain(inner)
                    if inner.is_dir():
                        folders.append(inner.path)
