"""Homes of any name, hostile homes, full disks, clocks that step, and commands at once."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.helpers.commands import call

from .common import LINE, Ledger, ended, examine, finish, in_store, start

NAMES = ["q?x", "h%20x", "100%", "a b", "h#1", "é:;&+=@x", "-x", "'\"`$(x)", "x" * 200, "a\nb", "[red]x", "~"]
ODD = os.fsdecode(b"caf\xe9")


def paths(folder: Path, reference: Path, ledger: Ledger) -> None:
    """A home moved to a name that means something elsewhere, reported from its store and gone on with."""
    for number, name in enumerate([*NAMES, ODD]):
        place = folder / "names" / str(number)
        place.mkdir(parents=True)
        home = Path(shutil.copytree(reference, place / name))
        more = () if name != ODD else ("--tracking-uri", f"sqlite:///{folder / 'odd.db'}")
        locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"} if name in ("a b", ODD) else {}
        process = start(home, *more, **locale)
        said = ended(process)
        found = Counter(lost=int(process.returncode != 0))
        if name != ODD:
            found += examine(home, reference)
        found += Counter(silent=len([path for path in place.iterdir() if path != home]))  # written beside it
        ledger.book("a name", found, said)
    for name, spoil in HOSTILE.items():
        home = Path(shutil.copytree(reference, folder / f"hostile-{name.replace(' ', '-')}"))
        spoil(home)
        process = start(home, line=["report"])
        said = ended(process, 120)
        one = sum(text.startswith("gauntlet: ") for text in said.splitlines()) == 1
        ledger.book("a hostile home", Counter(silent=int(process.returncode == 0 or not one)), said)


def _link(home: Path) -> None:
    file = next(home.glob("cells/*/result.json"))
    file.unlink()
    file.symlink_to("/etc/passwd")


def _pipe(home: Path) -> None:
    file = next(home.glob("cells/*/result.json"))
    file.unlink()
    os.mkfifo(file)


def _folder(home: Path) -> None:
    file = next(home.glob("plans/*.json"))
    file.unlink()
    (home / "models-link").symlink_to(home)


def _file(home: Path) -> None:
    shutil.rmtree(home)
    home.write_text("no folder")


def _huge(home: Path) -> None:
    with next(home.glob("cells/*/result.json")).open("r+b") as file:
        file.truncate(10**11)


HOSTILE: dict[str, Callable[[Path], None]] = {
    "a link for a result": _link,
    "a pipe for a result": _pipe,
    "a link to itself": _folder,
    "a file": _file,
    "a record of 100 GB": _huge,
}


def disks(folder: Path, reference: Path, ledger: Ledger) -> None:
    """A file system of its own that has too few bytes, or too few inodes; then more, and the command again."""
    for limit in ("size=200k", "size=600k", "size=1500k", "nr_inodes=30", "nr_inodes=90", "nr_inodes=150"):
        place = folder / limit
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", limit, "none", str(place)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            ledger.skip(limit, "no file system can be mounted here")
            continue
        try:
            process = start(place / "home")
            said = ended(process)
            silent = int(process.returncode == 0 and bool(examine(place / "home", reference)["lost"]))
            subprocess.run(["mount", "-o", "remount,size=200m,nr_inodes=100000", str(place)], check=True)
            more, found = finish(place / "home")
            found += examine(place / "home", reference) + Counter(silent=silent)
            ledger.book(limit.partition("=")[0], found, said + more)
        finally:
            subprocess.run(["umount", "-l", str(place)], check=False)


CLOCK = """
import os, time
_real, _real_ns, _begun = time.time, time.time_ns, time.monotonic()
_step, _after = float(os.environ["CHAOS_STEP"]), float(os.environ["CHAOS_AFTER"])
def _offset():
    return _step if time.monotonic() > _begun + _after else 0.0
time.time = lambda: _real() + _offset()
time.time_ns = lambda: _real_ns() + int(_offset() * 1e9)
"""


def clocks(folder: Path, reference: Path, ledger: Ledger) -> None:
    """The clock of every process steps in mid-run; then the command again with a right one."""
    (folder / "clock").mkdir()
    (folder / "clock" / "sitecustomize.py").write_text(CLOCK)
    root = Path(__file__).parents[2]
    for number, (step, after) in enumerate([(-86400, 4), (86400, 4), (-3600, 0), (-4e8, 6), (4e8, 6), (-60, 8)]):
        home = folder / f"clock-{number}"
        env = {"PYTHONPATH": f"{folder / 'clock'}:{root}", "CHAOS_STEP": str(step), "CHAOS_AFTER": str(after)}
        said, found = finish(home, **env)
        more, again = finish(home)
        ledger.book("forwards" if step > 0 else "backwards", found + again + examine(home, reference), said + more)


def together(folder: Path, reference: Path, ledger: Ledger) -> None:
    """Commands at once: on one home, and two homes on one new SQLite file."""
    for number in range(3):
        home = folder / f"both-{number}"
        others: list[list[str] | None] = [None, ["report", "--from", "home"], ["explain", "0"]]
        each = [start(home), start(home, line=others[number])]
        said = [ended(process) for process in each]
        found = Counter(lost=int(each[0].returncode != 0)) + examine(home, reference)
        ledger.book("one home", found, "".join(said))
    for number in range(3):
        store = folder / f"shared-{number}.db"
        homes = [folder / f"share-{number}-{one}" for one in range(2)]
        each = [start(home, "--tracking-uri", f"sqlite:///{store}", "--jobs", "1") for home in homes]
        said = [ended(process) for process in each]
        found = Counter(lost=sum(process.returncode != 0 for process in each))
        for home in homes:
            found += in_store(store, (home / "origin").read_text(), home)
            found += Counter(lost=len(list((home / "pending").glob("*"))))
        ledger.book("one new store", found, "".join(said))


def vanishing(folder: Path, reference: Path, ledger: Ledger) -> None:
    """The home's own store deleted, broken or of another version between two commands, and lost records of it."""
    import sqlite3
    from contextlib import closing

    def execute(home: Path, change: str) -> None:
        with closing(sqlite3.connect(home / "mlflow.db")) as database:
            database.execute(change)
            database.commit()

    ways: dict[str, Callable[[Path], object]] = {
        "deleted": lambda home: [file.unlink() for file in home.glob("mlflow.db*")],
        "emptied": lambda home: (home / "mlflow.db").write_bytes(b""),
        "broken": lambda home: (home / "mlflow.db").write_bytes(b"no database" * 1000),
        "of another version": lambda home: execute(home, "UPDATE alembic_version SET version_num = '97727af70f4d'"),
        "a run deleted": lambda home: execute(home, "UPDATE runs SET lifecycle_stage = 'deleted'"),
        "the experiment deleted": lambda home: execute(home, "UPDATE experiments SET lifecycle_stage = 'deleted'"),
        "runs.json lost": lambda home: [file.unlink() for file in home.rglob("runs.json")],
        "origin lost": lambda home: (home / "origin").unlink(),
    }
    for number, (name, spoil) in enumerate(ways.items()):
        for command in (["report"], LINE):
            home = Path(shutil.copytree(reference, folder / f"vanish-{number}-{command[0]}"))
            spoil(home)
            result = call(*command, *(["--jobs", "1"] if command is LINE else []), "--home", home)
            again = call(*command, *(["--jobs", "1"] if command is LINE else []), "--home", home)
            found = examine(home, reference) + Counter(lost=int(result.exit_code != 0 or again.exit_code != 0))
            said = result.output + again.output
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                said += f"Traceback (most recent call last) {result.exception!r}"
            ledger.book(name, found, said)
