"""What the harness costs: a cell against its bare attack call, and several worker processes against one.

    python benchmarks/bench_harness.py [--only overhead,scaling] [--rounds 3] [--models 2,6]

Everything is a ratio within one run, on the embedded digits. Scaling goes round by round: with one job, with two, and
with one per core where there are more; ratios are those within a round, so that a busy machine troubles all alike. What
every run has to do once (the last shard is waited for) weighs less the longer the run is: so runs of several numbers of
models, after one that is not counted, for which the process that workers are forked from imports its libraries.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from turns import spent

from defenses.standard import Standard
from harness import determinism
from harness.attacks.base import Attack
from harness.attacks.fast_gradient import Gradient
from harness.attacks.lbfgs import LBFGS
from harness.attacks.toolkits.foolbox import Foolbox
from harness.datasets.registry import DataSource
from harness.environment import cores
from harness.execution.jobs import Context, Judge, Train
from harness.execution.runner import run
from harness.execution.worker import Worker
from harness.planning.plan import Plan, plan, specs
from harness.planning.suite import Suite
from harness.records.checkpoints import load_model
from harness.records.home import Home
from harness.records.provenance import declare
from harness.records.results import finish
from harness.tracking.connection import default_uri
from harness.tracking.tracker import Tracker
from harness.victims.victim import Victim

SOURCE = DataSource("digits")


def make(attacks: Sequence[Attack], model: str, seeds: int = 1) -> Plan:
    """A plan of L2 attacks on models trained for a moment."""
    info = SOURCE.info()
    suite = Suite(name="bench", summary="", attacks={"l2": attacks}, samples=359, batch=60)
    return plan(suite, specs([info], [model], [Standard(epochs=5)], range(seeds)), {info.name: info})


def overhead(attack: Attack, model: str, repeats: int = 3) -> None:
    """Wall time of a cell (load, attack, judge, write) over that of the attack called on the same images."""
    made = make([attack], model)
    (cell,) = made.cells
    ratios, bare_seconds = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            home = Home(Path(folder))
            worker = Worker(Context(home, {"digits": SOURCE}))
            worker.run(Train(cell.victim))
            info = SOURCE.info()
            victim = Victim(load_model(home, cell.victim, info), device="cpu")
            _, (x, y) = SOURCE.load().test_sample(cell.n)
            correct = victim.predict(x) == y
            start = time.perf_counter()
            for shard in range(cell.shards):
                part = cell.shard_slice(shard)
                chosen = correct[part]
                determinism.seed_everything(cell.shard_seed(shard))
                attack(victim, x[part][chosen], y[part][chosen], cell.threat)
            bare = time.perf_counter() - start
            start = time.perf_counter()
            for shard in range(cell.shards):
                worker.run(Judge(cell, shard))
            finish(home.cell(cell.key), cell.shards, declare(home, cell, made))
            ratios.append((time.perf_counter() - start) / bare)
            bare_seconds.append(bare)
    ratios.sort()
    print(
        f"overhead  {model:12} {attack.label:24} bare {sorted(bare_seconds)[repeats // 2]:6.1f} s   "
        f"cell / bare: median {ratios[repeats // 2]:.3f} (min {ratios[0]:.3f}, max {ratios[-1]:.3f})"
    )


def scaling(rounds: int, models: int) -> None:
    """Wall time of a whole run, start-up and tracking included, with one job over that with more."""
    attacks = [Foolbox("DDNAttack", steps=1500), LBFGS(), Gradient(), Gradient(mode="minimal")]
    made = make(attacks, "lenet", seeds=models)
    choices = sorted({1, 2, max(cores(), 2)})
    whole(make(attacks, "lenet"), 1)
    costs = [{jobs: whole(made, jobs) for jobs in choices} for _ in range(rounds)]
    for jobs in choices:
        wall = sorted(one[jobs].wall for one in costs)
        faster = sorted(one[1].wall / one[jobs].wall for one in costs)
        own, theirs = (statistics.median(part) for part in zip(*(one[jobs].cpu for one in costs), strict=True))
        print(
            f"scaling   {models} models, --jobs {jobs}: "
            f"median {statistics.median(wall):.1f} s (min {wall[0]:.1f}, max {wall[-1]:.1f}); "
            f"times as fast as 1: median {statistics.median(faster):.2f} (min {faster[0]:.2f}, max {faster[-1]:.2f}); "
            f"CPU s: workers {theirs:.1f}, the command's own process {own:.1f}"
        )


PASSES = """
import torch, time
from harness.models.registry import build_model
torch.set_num_threads(1)
model, x = build_model("lenet", (1, 28, 28), 10), torch.rand(100, 1, 28, 28)
for _ in range(20):
    model(x).sum().backward()
input()
start = time.perf_counter()
for _ in range(400):
    model(x).sum().backward()
print(time.perf_counter() - start)
"""
"""Forward and backward passes, begun at a sign."""


def ceiling(rounds: int) -> None:
    """What a second process gives on this machine where nothing is shared: passes of a LeNet, alone and two at once."""
    factors = []
    for _ in range(rounds):
        walls = []
        for processes in (1, 2):
            started = [
                subprocess.Popen(
                    [sys.executable, "-c", PASSES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
                for _ in range(processes)
            ]
            time.sleep(8)  # all have imported torch
            for one in started:
                assert one.stdin is not None
                one.stdin.write("\n")
                one.stdin.flush()
            walls.append(statistics.mean(float(one.communicate()[0]) for one in started))
        factors.append(2 * walls[0] / walls[1])
    print(f"ceiling   two bare processes do {statistics.median(factors):.2f} times as much as one (passes of a LeNet)")


@dataclass(frozen=True)
class Whole:
    """What a run takes: seconds of the wall, and CPU seconds of this process and of its workers."""

    wall: float
    cpu: tuple[float, float]


def whole(made: Plan, jobs: int) -> Whole:
    """A run from nothing."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder))
        start, before = time.perf_counter(), spent()
        ended = run(
            made,
            Context(home, {"digits": SOURCE}),
            jobs=jobs,
            command="",
            tracker=Tracker(home.create(), default_uri(home)),
        )
        seconds, (own, theirs) = time.perf_counter() - start, np.subtract(spent(), before).tolist()
        assert not ended.failures, ended.failures
    return Whole(seconds, (own, theirs))


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="overhead,scaling")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", default="2,6")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if "overhead" in args.only:
        overhead(Foolbox("DDNAttack", steps=1500), "lenet")
        overhead(Foolbox("DDNAttack", steps=6000), "mlp-100-100")
    if "scaling" in args.only:
        ceiling(args.rounds)
        for models in args.models.split(","):
            scaling(args.rounds, int(models))


if __name__ == "__main__":
    main()
