"""A small but complete run, to be killed: ``python small_run.py HOME JOBS [TRACKING_URI]``."""

from __future__ import annotations

import sys
from pathlib import Path

from defenses.gaussian_noise import GaussianNoise
from defenses.standard import Standard
from harness.attacks.fast_gradient import Gradient
from harness.attacks.noise import Noise
from harness.attacks.transfer import Transfer
from harness.datasets.registry import DataSource
from harness.execution.jobs import Context
from harness.execution.runner import run
from harness.planning.plan import Plan, plan, specs
from harness.planning.suite import Suite
from harness.records.home import Home
from harness.tracking.connection import store_uri
from harness.tracking.tracker import Tracker

SUITE = Suite(
    name="small",
    summary="for tests",
    attacks={
        "linf": (Noise(), Gradient(), Transfer(attack=Gradient(), defense=Standard(epochs=3), seed_offset=7)),
        "l2": (Noise(), Gradient(mode="minimal")),
    },
    samples=80,
    batch=20,
)


def small_plan() -> tuple[Plan, dict[str, DataSource]]:
    source = DataSource("digits")
    info = source.info()
    models = specs([info], ["mlp-16"], [Standard(epochs=3), GaussianNoise(epochs=3)], [0])
    return plan(SUITE, models, {info.name: info}), {info.name: source}


def main() -> None:
    home = Home(Path(sys.argv[1]))
    made, sources = small_plan()
    tracker = Tracker(home.create(), store_uri(home, sys.argv[3] if len(sys.argv) > 3 else None))
    ended = run(made, Context(home, sources), jobs=int(sys.argv[2]), command="small run", tracker=tracker)
    print(f"failures: {len(ended.failures)}, waiting: {ended.waiting}")
    for line in ended.failures:
        print(line)
    if ended.trouble:
        print(f"trouble: {ended.trouble}")


if __name__ == "__main__":
    main()
