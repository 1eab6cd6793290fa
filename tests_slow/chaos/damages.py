"""One file of a home changed, cut, emptied, deleted or swapped: named or harmless, repaired by the next command."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
from click.testing import Result

from tests.helpers.commands import call

from .common import LINE, Ledger, alarm, compare, examine, numbers

READ, REPAIRED = 170, 30
LEFT_OUT = ("report/", "progress/", ".lock", "mlflow-artifacts/", "mlflow.log")


def files(home: Path) -> list[Path]:
    """What a home consists of, below it, but for what is written anew by every command."""
    every = (file.relative_to(home) for file in sorted(home.rglob("*")) if file.is_file())
    return [file for file in every if not str(file).startswith(LEFT_OUT)]


def damage(file: Path, moment: random.Random, others: list[Path]) -> str:
    """Do one thing to a file; returns what."""
    content = file.read_bytes()
    way = moment.choice(["flip", "cut", "empty", "noise", "insert", "swap", "delete"])
    at = moment.randrange(max(len(content), 1))
    match way:
        case "flip" if content:
            content = content[:at] + bytes([content[at] ^ (1 << moment.randrange(8))]) + content[at + 1 :]
        case "cut":
            content = content[:at]
        case "noise":
            content = moment.randbytes(200)
        case "insert":
            content = content[:at] + moment.randbytes(5) + content[at:]
        case "swap" if others:
            content = moment.choice(others).read_bytes()
        case "delete":
            file.unlink()
            return way
        case _:
            content, way = b"", "empty"
    file.write_bytes(content)
    return way


def tracebacks(*results: Result) -> str:
    """What commands said; an exception that came through is a traceback."""
    said = "".join(result.output for result in results)
    for result in results:
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            said += f"Traceback (most recent call last) {result.exception!r}"
    return said


def damages(folder: Path, reference: Path, ledger: Ledger) -> None:
    """Read damaged homes by a report of their files, and repair others by the command that made them."""
    moment = random.Random(5)
    every = files(reference)
    kinds: dict[str, list[Path]] = {}
    for file in every:
        kinds.setdefault(f"{file.parts[0]} {file.name if len(file.parts) > 1 else ''}".strip()[:40], []).append(file)
    for group in ("plans", "health", "planted", "witnesses", "certificates"):  # names that are keys
        names = [name for name in kinds if name.startswith(group)]
        merged = [file for name in names for file in kinds.pop(name)]
        kinds[group] = merged
    order = sorted(name for name in kinds if kinds[name])
    for number in range(READ + REPAIRED):
        home = Path(shutil.copytree(reference, folder / f"damage-{number}"))
        kind = order[number % len(order)]
        file = moment.choice(kinds[kind])
        others = [home / one for one in kinds[kind] if one != file]
        before = (home / file).read_bytes()
        way = damage(home / file, moment, others)
        changed = not (home / file).exists() or (home / file).read_bytes() != before
        name = f"{kind}: {way}"
        if number < READ:
            with alarm():
                result = call("report", "--from", "home", "--home", home, "--out", home / "out")
            found: Counter[str] = Counter()
            if (home / "out" / "pairs.csv").exists():
                shown = pd.read_csv(home / "out" / "pairs.csv")
                whole = pd.read_csv(reference / "report" / "pairs.csv")
                told = result.exit_code != 0
                both = compare(shown[list(whole.columns)].drop(columns=["run_id"]), whole.drop(columns=["run_id"]))
                # what is named may be left out; a plan or a result that was deleted is not there to be missed
                gone = told or way == "delete"
                found = Counter(silent=both["silent"] + (0 if gone else both["lost"]))
            elif result.exit_code == 0:
                found = Counter(silent=1)
            ledger.book("read", found, tracebacks(result))
            if found["silent"]:
                print(f"  {name} {file}: status {result.exit_code}\n{result.output[-800:]}", flush=True)
        else:
            line = [*LINE, "--jobs", "1", "--home", home]
            with alarm(600):
                first, second = call(*line), call(*line)
            clean = second.exit_code == 0 and not second.stderr.strip()
            found = examine(home, reference) + Counter(lost=int(not clean))
            ledger.book("repaired by the same command", found, f"{name} {file} {changed}\n" + tracebacks(first, second))
        shutil.rmtree(home)
        if number % 20 == 0:
            print(f"  {number + 1} of {READ + REPAIRED}", flush=True)
    numbers.cache_clear()
