"""``python -m tests_slow.chaos [KIND...]``: all kinds on two cores, and docs/reliability.md; or some, printed."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.environment import machine

from .common import BAD, Kind, Ledger, finish

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


def kinds() -> dict[str, Kind]:
    """Every kind of disturbance, the longest first."""
    from .damages import damages
    from .kills import kills, signals
    from .places import clocks, disks, paths, together, vanishing
    from .stores import stores

    every = (kills, damages, stores, signals, vanishing, paths, disks, clocks, together)
    return {kind.__name__: kind for kind in every}


WORDS = {
    "kills": "SIGKILL, then resumed",
    "signals": "SIGINT, SIGTERM, SIGHUP",
    "stores": "a tracking server that fails",
    "vanishing": "the home's own store goes away",
    "damages": "a file of the home is damaged",
    "paths": "names of homes, hostile homes",
    "disks": "full disks: bytes, inodes",
    "clocks": "the clock steps",
    "together": "commands at once",
}


def one(name: str, folder: Path) -> None:
    """Try one kind, and write what came of it."""
    ledger = Ledger(name, kept=folder / f"{name}.json")
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / name).mkdir()
    try:
        kinds()[name](folder / name, folder / "reference", ledger)
    except Exception as error:
        import traceback

        traceback.print_exc()
        ledger.counts.update(tried=1, lost=1)
        ledger.notes.append(f"{name}: the session itself failed: {error!r}")
        ledger.keep(whole=False)
    else:
        ledger.keep(whole=True)


def apart(name: str, folder: Path) -> dict[str, Any]:
    """:func:`one` in a process of its own, its output in a file; not again in a session that was cut off."""
    log, result = folder / f"{name}.log", folder / f"{name}.json"
    if not (result.exists() and json.loads(result.read_text())["whole"]):
        command = [sys.executable, "-m", "tests_slow.chaos", "--one", name, str(folder)]
        with log.open("w") as out:
            subprocess.run(command, stdout=out, stderr=out, check=False)
    if result.exists():
        found: dict[str, Any] = json.loads(result.read_text())
    else:
        found = {"kind": name, "counts": {"tried": 1, "lost": 1}, "of": {}, "skipped": [], "seconds": 0.0}
        found |= {"commit": "", "whole": False, "notes": [f"{name}: the session itself failed; see {log}"]}
    print(f"{name}: {found['counts']}, {found['seconds']:.0f} s", flush=True)
    return found


def page(found: list[dict[str, Any]]) -> str:
    """docs/reliability.md."""
    commits = sorted({each["commit"] or "unknown" for each in found})
    names = ("tried", "survived", *BAD)
    lines = [
        "# What it survives",
        "",
        "Written by `nox -s chaos`, which disturbs small but complete runs in every way below, with fixed seeds, and",
        "compares each afterwards with an undisturbed one: every number, every run in the tracking store.",
        "",
        f"{datetime.now(UTC).date()}, commit {' and '.join(commits)}, {machine()}, beside a load of "
        f"{os.getloadavg()[0]:.0f}; kinds run two or more at once.",
        "",
        f"| kind | {' | '.join(names)} |",
        f"|---|{'---:|' * len(names)}",
    ]
    total = dict.fromkeys(names, 0)
    for each in found:
        counts = {name: each["counts"].get(name, 0) for name in names}
        total = {name: total[name] + counts[name] for name in names}
        lines.append(f"| {WORDS[each['kind']]} | {' | '.join(str(counts[name]) for name in names)} |")
    lines += [f"| **all** | {' | '.join(f'**{total[name]}**' for name in names)} |", ""]
    lines += [
        "*Lost*: a result or a tracked run that is missing after the same command was given again. *Doubled*: one that",
        "is tracked twice. *Silent*: another number, or something missing, that nobody was told of. *Tracebacks*: in",
        "what a command said.",
        "",
        "## What was tried",
        "",
    ]
    for each in found:
        tried = ", ".join(f"{count} {name}" for name, count in sorted(each["of"].items()))
        lines.append(f"- {WORDS[each['kind']]} ({each['seconds']:.0f} s): {tried}.")
    if cut := [WORDS[each["kind"]] for each in found if not each["whole"]]:
        lines += ["", f"**Cut off before the end, so that less was tried than is due: {', '.join(cut)}.**"]
    if never := [words for name, words in WORDS.items() if name not in {each["kind"] for each in found}]:
        lines += ["", f"**Not tried: {', '.join(never)}.**"]
    if skipped := [line for each in found for line in each["skipped"]]:
        lines += ["", "## Not tried here", "", *(f"- {line}" for line in skipped)]
    if notes := [line for each in found for line in each["notes"]]:
        lines += ["", "## Notes", "", *(f"- {line}" for line in notes)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The whole session, or the kinds that are named. ``--folder DIR`` goes on with one that was cut off."""
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], Path(sys.argv[3]))
        return
    ask = argparse.ArgumentParser(prog="chaos")
    ask.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(kinds())}; all without")
    ask.add_argument("--folder", type=Path, help="work there, and go on with what lies there")
    ask.add_argument("--at-once", type=int, default=2, help="kinds at the same time")
    ask.add_argument("--page", action="store_true", help="try nothing more: the page of what --folder has")
    given = ask.parse_args()
    if unknown := set(given.kinds) - set(kinds()):
        ask.error(f"no kind {', '.join(sorted(unknown))}; there are {', '.join(kinds())}")
    if given.page:
        files = [given.folder / f"{name}.json" for name in kinds()]
        PAGE.write_text(page([{"whole": True, **json.loads(file.read_text())} for file in files if file.exists()]))
        return
    folder = given.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    print(f"in {folder}", flush=True)
    if not (folder / "reference" / "report").exists():
        said, lost = finish(folder / "reference")
        if lost["lost"]:
            sys.exit(f"the undisturbed run failed:\n{said}")
    with ThreadPoolExecutor(given.at_once) as pool:
        found = list(pool.map(lambda name: apart(name, folder), given.kinds or kinds()))
    text = page(found)
    if not given.kinds:
        PAGE.write_text(text)
    print(text)
    if any(each["counts"].get(name, 0) for each in found for name in BAD) or not all(each["whole"] for each in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
