"""SIGKILL to the process group, the driver or a worker, in every phase; and signals that ask a command to end."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

from .common import Ledger, ended, examine, finish, phase, start, workers

KILLS = 60
PHASES = ("start", "training", "probes", "attacks", "delivery", "report")
WHOM = ("driver", "group", "worker")


def kills(folder: Path, reference: Path, ledger: Ledger) -> None:
    """Each home is killed twice, the first time in a phase that is waited for, resumed, and compared."""
    moment = random.Random(20261128)
    orphans = watched = done = chain = 0
    reached: Counter[str] = Counter()
    while done < KILLS:
        home, chain = folder / f"kill-{chain}", chain + 1
        said, planned = "", []
        for turn in range(2):
            whom, wanted = WHOM[(chain + turn) % 3], PHASES[chain % len(PHASES)]
            process = start(home)
            begun = time.monotonic()
            while turn == 0 and process.poll() is None and phase(home) != wanted and time.monotonic() < begun + 300:
                time.sleep(0.02)
            while whom == "worker" and process.poll() is None and not workers(process.pid):
                time.sleep(0.02)
            time.sleep(moment.uniform(0, 1.0 if turn == 0 else 6.0))
            hit = process.poll() is None
            with contextlib.suppress(ProcessLookupError, IndexError):
                at = phase(home)
                if whom == "group":
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    hit_ = process.pid if whom == "driver" else moment.choice(workers(process.pid))
                    os.kill(hit_, signal.SIGKILL)
                if hit:
                    planned.append((whom, at))
                    reached[at] += 1
            if hit and whom == "driver":
                watched += 1
                time.sleep(2)
                orphans += bool(workers(process.pid))
            said += ended(process)
        more, lost = finish(home)
        found = lost + examine(home, reference)
        for whom, at in planned:
            ledger.book(f"{whom}, {at}", found, said + more)
            found, said, more = Counter(), "", ""
        done += len(planned)
        print(f"  {done} of {KILLS} kills", flush=True)
    ledger.of.clear()
    ledger.of.update({f"in {name}": count for name, count in reached.items()})
    ledger.notes.append(f"kills: of {watched} killed drivers {orphans} had a worker that lived 2 s longer")
    if orphans:
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
