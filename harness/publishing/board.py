"""What many bundles say: each held against its manifest, its numbers made of its tables. Nothing is judged or run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final
from urllib.parse import quote

from ..errors import UserError, describe
from ..leaderboard import leaderboard
from ..records.boards import boards_from_home
from ..records.home import Home
from ..schema.board import BundleEntry, Claimed
from ..schema.bundles import MANIFEST
from .archive import opened
from .verification import Verification, check_manifest

ENDINGS: Final = (".tar", ".zip")

UNGRADED: Final = "no attack of its suite searches for the worst case"
"""Why a number has no place that stands beside those of other suites, and none in its own that could."""


def bundles(folder: Path, site: Path) -> list[BundleEntry]:
    """Bundles that lie in a folder, by name; what is none is left alone, what is damaged says so.

    Args:
        folder: Looked at one level deep: folders with a manifest, ``.tar`` and ``.zip`` files. Links are not followed.
        site: Where the board's pages will lie, which links start from.

    Raises:
        UserError: There is no such folder, or no bundle in it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    found = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        plain = entry.is_file(follow_symlinks=False) and path.suffix in ENDINGS
        if plain or (entry.is_dir(follow_symlinks=False) and os.path.lexists(path / MANIFEST)):
            link = quote(Path(os.path.relpath(path, site)).as_posix()) + ("" if plain else "/")
            found.append(_read(path, link))
    if not found:
        raise UserError(f"no bundle in {folder}: make some with gauntlet publish HOME --out {folder / 'NAME.tar'}")
    return found


def _read(path: Path, link: str) -> BundleEntry:
    try:
        with opened(path) as folder:
            return _entry(path.name, link, folder)
    except UserError as error:
        return BundleEntry(name=path.name, link=link, trouble=(str(error),))
    except Exception as error:  # a stranger's records can be wrong in ways that nobody thought of
        return BundleEntry(name=path.name, link=link, trouble=(f"the bundle cannot be read ({describe(error)})",))


def _entry(name: str, link: str, folder: Path) -> BundleEntry:
    done = Verification()
    manifest = check_manifest(folder, done, "")
    if manifest is None or done.problems:
        return BundleEntry(name=name, link=link, manifest=done.manifest, trouble=tuple(done.problems))
    boards = boards_from_home(Home(folder))
    pairs = {pair.result.cell: pair for board in boards for pair in board.pairs}
    claims = []
    for board in boards:
        if board.targeted:
            continue  # a threat's standings are of any wrong label
        for row in leaderboard(board).to_dict("records"):
            keys = [
                key
                for key in board.by_model
                if (board.models[key].architecture, board.models[key].defense) == (row["architecture"], row["defense"])
            ]
            if not row["seeds"]:
                continue
            weights = {pair.result.weights.get(key, key) for key in keys for pair in board.by_model[key]}
            claims.append(
                Claimed(
                    bundle=name,
                    suite=board.suite,
                    weights=tuple(sorted(weights)),
                    norm=str(row["norm"]),
                    eps=float(row["eps"]),
                    n=int(row["n"]),
                    seeds=int(row["seeds"]),
                    clean=float(row["clean_accuracy"]),
                    accuracy=float(row["worst_case_accuracy"]),
                    low=float(row["worst_case_low"]),
                    high=float(row["worst_case_high"]),
                    certified=float(row["certified"]),
                    trust=str(row["trust"]),
                    strongest=str(row["strongest_attack"]),
                    note=str(row["note"]) or ("" if row["trust"] else UNGRADED),
                    **{name: str(row[name]) for name in ("dataset", "architecture", "defense")},
                )
            )
    return BundleEntry(
        name=name,
        link=link,
        by=manifest.evaluated_by,
        licence=manifest.licence,
        date=max((pair.result.made for pair in pairs.values()), default=""),
        manifest=done.manifest,
        models=len({key for board in boards for key in board.by_model}),
        pairs=len(pairs),
        claims=tuple(claims),
    )
