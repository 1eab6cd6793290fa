"""What every kind of disturbance needs: the run that is disturbed, and what became of it against an undisturbed one."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pandas as pd

from harness.environment import git_commit
from harness.metrics.pairs import pair_rows
from harness.records.boards import boards_from_home
from harness.records.files import write_json
from harness.records.home import Home
from harness.tracking.database import Tracked, tracked

ROOT = Path(__file__).parents[2]
LINE = ["run", "quick", "--model", "softmax", "--defense", "standard:epochs=1", "--samples", "20"]
LINE += ["--attack", "noise*", "--attack", "gradient", "--no-surrogate"]
"""The command that is disturbed: it trains, looks at the model, attacks, records, tracks and writes its report."""

HANGS = 600.0
"""Seconds after which a command counts as hanging: these machines are busy."""

BAD = ("lost", "doubled", "silent", "tracebacks")
"""What must not happen: a result that is gone, one that is tracked twice, another number, a traceback."""


@dataclass
class Ledger:
    """What was tried of one kind, and what became of it."""

    kind: str
    counts: Counter[str] = field(default_factory=Counter)
    of: Counter[str] = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kept: Path | None = None
    begun: float = field(default_factory=time.monotonic)

    def keep(self, *, whole: bool) -> None:
        """Write what was booked: a session may be cut off."""
        if self.kept is not None:
            facts = {name: getattr(self, name) for name in ("kind", "counts", "of", "skipped", "notes")}
            facts |= {"seconds": time.monotonic() - self.begun, "commit": git_commit()[:12], "whole": whole}
            write_json(self.kept, facts)

    def book(self, what: str, found: Counter[str], said: str = "") -> None:
        """One disturbance, with what was found afterwards: none of :data:`BAD` is survival."""
        found = found + Counter(tracebacks=int("Traceback (most recent call last)" in said))
        bad = {name: count for name, count in found.items() if count}
        self.counts.update(bad, tried=1, survived=int(not bad))
        self.of[what] += 1
        if bad:
            self.notes.append(f"{self.kind}: {what}: {dict(bad)}")
            at = max(said.find("Traceback"), 0)
            print(f"  {self.notes[-1]}\n{said[at:][:1500]}\n...\n{said[-1500:]}", flush=True)
        self.keep(whole=False)

    def skip(self, what: str, why: str) -> None:
        """Something that cannot be tried here."""
        self.skipped.append(f"{self.kind}: {what}: {why}")


def start(home: Path, *more: str, line: list[str] | None = None, **env: str) -> subprocess.Popen[str]:
    """The command, in a process group of its own, with what it says on one pipe."""
    command = [sys.executable, "-m", "gauntlet", *(LINE if line is None else line), "--home", str(home), *more]
    if line is None and "--jobs" not in more:
        command += ["--jobs", "2"]
    quiet = {"PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true", **env}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
        start_new_session=True,
        env={**os.environ, **quiet},
        preexec_fn=_hearing,
    )


def _hearing() -> None:
    """Whoever started this session may have it ignore signals."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def ended(process: subprocess.Popen[str], seconds: float = HANGS) -> str:
    """What a command said; one that hangs is killed, and says so."""
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said = process.communicate()[0] + "\nhung"
    return said


def finish(home: Path, *more: str, **env: str) -> tuple[str, Counter[str]]:
    """The command to its end, after whatever happened; what it said, and a lost run if it did not end well."""
    process = start(home, *more, **env)
    said = ended(process)
    return said, Counter(lost=int(process.returncode != 0))


@cache
def numbers(home: Path) -> pd.DataFrame:
    """Every number of a home, but for times and run ids."""
    rows = [pair_rows(board).drop(columns=["seconds", "run_id"]) for board in boards_from_home(Home(home))]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


KEY = ["attack", "norm", "eps"]


def compare(found: pd.DataFrame, expected: pd.DataFrame) -> Counter[str]:
    """Rows that are missing, and numbers that differ."""
    if not len(found):
        return Counter(lost=len(expected))
    theirs = expected.set_index(KEY)
    ours = found.set_index(KEY).reindex(theirs.index)
    missing = ours["n"].isna()
    same = (ours.eq(theirs) | (ours.isna() & theirs.isna())).all(axis=1)
    return Counter(lost=int(missing.sum()), silent=int((~same & ~missing).sum()))


def in_store(place: Path, origin: str, home: Path) -> Counter[str]:
    """Results that a store lacks, or has more than once."""
    runs: list[Tracked] = tracked(place, origin) or []
    found = Counter((one.kind, one.key) for one in runs)
    wanted = [("pair", file.parent.name) for file in home.glob("cells/*/result.json") if "damaged" not in str(file)]
    wanted += [("plan", file.stem) for file in home.glob("plans/*.json") if "damaged" not in str(file)]
    wanted += [("model", file.parent.name) for file in home.glob("models/*/card.json") if "damaged" not in str(file)]
    return Counter(lost=sum(not found[one] for one in wanted), doubled=sum(max(0, found[one] - 1) for one in found))


def examine(home: Path, reference: Path) -> Counter[str]:
    """A home and its own store against the undisturbed: numbers, runs, nothing half written, nothing that waits."""
    found = compare(numbers.__wrapped__(home), numbers(reference))
    found += in_store(home / "mlflow.db", (home / "origin").read_text(), home)
    left = [*home.rglob(".*.part"), *(home / "pending").glob("*")]
    return found + Counter(lost=len(left))


def phase(home: Path) -> str:
    """How far a run had come, by what is on disk."""
    if any(home.glob("report/*")):
        return "report"
    results, cells = len(list(home.glob("cells/*/result.json"))), len(list(home.glob("cells/*")))
    if results and results >= max(cells, 4):
        return "delivery"
    if any(home.glob("cells/*")):
        return "attacks"
    if any(home.glob("models/*/card.json")):
        return "probes"
    return "training" if any(home.glob("plans/*.json")) else "start"


@contextlib.contextmanager
def alarm(seconds: int = 300) -> Iterator[None]:
    """A call within this process that hangs is an error."""

    def rang(*_: object) -> None:
        raise TimeoutError("hung")

    before = signal.signal(signal.SIGALRM, rang)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


Kind = Callable[[Path, Path, Ledger], None]
"""Tries one kind: in a folder, against a reference home, booked in a ledger."""


def plain(text: str) -> str:
    """A text on one line."""
    return re.sub(r"\s+", " ", text)
