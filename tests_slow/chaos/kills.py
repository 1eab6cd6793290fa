"""SIGKILL to the process group, the driver or a worker, in every phase; and signals that ask a command to end."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from harness.execution.fork_server import SERVER, WORKER
from tests.helpers.processes import workers

from .common import Ledger, ended, examine, finish, phase, start

KILLS = 60
AT_ONCE = 4
PHASES = ("start", "training", "probes", "attacks", "delivery", "report")
PARTS = {"worker": WORKER, "fork server": SERVER}
WHOM = ("driver", "group", *PARTS)


@dataclass
class Chain:
    """A home that was killed twice, and what became of it."""

    killed: list[str]
    reached: list[str]
    orphans: int
    watched: int
    found: Counter[str]
    said: str


def chain(number: int, folder: Path, reference: Path) -> Chain:
    """Kill a home's runs twice, the first in a phase that is waited for; then resume, and compare."""
    moment = random.Random(20261128 + number)
    home = folder / f"kill-{number}"
    done = Chain([], [], 0, 0, Counter(), "")
    for turn in range(2):
        whom, wanted = WHOM[(number + turn) % len(WHOM)], PHASES[number % len(PHASES)]
        process = start(home)
        begun = time.monotonic()
        while turn == 0 and process.poll() is None and phase(home) != wanted and time.monotonic() < begun + 300:
            time.sleep(0.02)
        while whom in PARTS and process.poll() is None and not workers(process.pid, PARTS[whom]):
            time.sleep(0.02)
        time.sleep(moment.uniform(0, 1.0 if turn == 0 else 6.0))
        there, at = workers(process.pid, PARTS.get(whom, WORKER)), phase(home)
        if process.poll() is None and (whom not in PARTS or there):
            with contextlib.suppress(ProcessLookupError):
                if whom == "group":
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    os.kill(process.pid if whom == "driver" else moment.choice(there), signal.SIGKILL)
                done.killed.append(whom)
                done.reached.append(at)
            if whom == "driver":
                done.watched += bool(there)
                time.sleep(2)
                done.orphans += bool(workers(process.pid))
        done.said += ended(process)
    more, lost = finish(home)
    done.said += more
    done.found = lost + examine(home, reference)
    return done


def kills(folder: Path, reference: Path, ledger: Ledger) -> None:
    """Chains of kills, some at once, until there were enough."""
    reached: Counter[str] = Counter()
    orphans = watched = number = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while ledger.counts["tried"] < KILLS:
            numbers = range(number, number + AT_ONCE)
            number += AT_ONCE
            for done in pool.map(lambda one: chain(one, folder, reference), numbers):
                orphans, watched = orphans + done.orphans, watched + done.watched
                for whom in done.killed:
                    ledger.book(whom, done.found, done.said)
                    done.found, done.said = Counter(), ""
                reached.update(done.reached)
            print(f"  {ledger.counts['tried']} of {KILLS} kills", flush=True)
    ledger.of.update({f"in the phase {name}": count for name, count in reached.items()})
    ledger.notes.append(f"kills: of {watched} killed drivers with workers {orphans} had one that lived 2 s longer")
    ledger.counts["lost"] += orphans


SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


def signals(folder: Path, reference: Path, ledger: Ledger) -> None:
    """One signal to the whole group, as a terminal does, from the first moment on; then the command again."""
    moment = random.Random(7)
    for number in range(15):
        home = folder / f"signal-{number % 3}"
        name = SIGNALS[number % 3]
        process = start(home)
        time.sleep(moment.uniform(0.05, 0.4) if number < 6 else moment.uniform(0.4, 8))
        early = process.poll() is None
        began = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, getattr(signal, name))
            if number >= 12:
                time.sleep(0.05)
                os.killpg(process.pid, getattr(signal, name))
        said = ended(process, 120)
        took, code = time.monotonic() - began, process.returncode
        fits = code in (0, 128 + getattr(signal, name), -getattr(signal, name))
        # before Python has come to our first line it ends as any program does
        python = code == -getattr(signal, name) or (code == 1 and "<frozen" in said)
        time.sleep(1)
        found = Counter(lost=int(not fits and not python) + len(workers(process.pid)))
        if python:
            said = ""
        ledger.book(f"{name}{' twice' if number >= 12 else ''}", found if early else Counter(), said)
        print(f"  {name}: status {code} after {took:.1f} s", flush=True)
    for number in range(3):
        said, lost = finish(folder / f"signal-{number}")
        ledger.book("then the same command", lost + examine(folder / f"signal-{number}", reference), said)
