"""A run with every kind of job, good and bad: ``python ray_run.py local|ray HOME``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from defenses.gaussian_blur import GaussianBlur
from defenses.standard import Standard
from harness.attacks.fast_gradient import Gradient
from harness.attacks.lbfgs import LBFGS
from harness.attacks.learned_generator import Generator
from harness.attacks.noise import Noise
from harness.attacks.transfer import Transfer
from harness.datasets.registry import DataSource
from harness.execution.jobs import Context
from harness.execution.ray.engine import Cluster, RayEngine
from harness.execution.runner import Report, run
from harness.planning.plan import Plan, plan, specs
from harness.planning.suite import Suite
from harness.records.home import Home
from harness.training.trainer import Trainer

PLAIN = Standard(epochs=2)


@dataclass(frozen=True, kw_only=True)
class Raises(Trainer):
    """Fails as no user is to blame for."""

    name: ClassVar[str] = "raises"

    def fit(self, *arguments: Any, **named: Any) -> Any:
        raise RuntimeError("first line\nsecond line")


SUITE = Suite(
    name="small",
    summary="for tests",
    attacks={
        "linf": (Noise(), Gradient(), Transfer(attack=Gradient(), defense=PLAIN, seed_offset=7)),
        "l2": (
            LBFGS(c="dataset", search_images=30, searches=3, max_evaluations=30),
            Generator(images=60, epochs=1),
        ),
    },
    budgets={"linf": (0.1,), "l2": (0.5,)},
    samples=40,
    batch=20,
)


def every_job(folder: Path) -> tuple[Plan, dict[str, DataSource]]:
    sources = {name: DataSource(name, root=folder / "no-data") for name in ("digits", "mnist")}
    digits, mnist = (source.info() for source in sources.values())
    defenses = [(PLAIN,), (PLAIN, GaussianBlur()), (Raises(),), (Standard(epochs=2, optimizer="sgd", lr=1e30),)]
    models = specs([digits], ["mlp-16"], defenses, [0]) + specs([mnist], ["mlp-16"], [(PLAIN,)], [0])
    return plan(SUITE, models, {info.name: info for info in (digits, mnist)}, cascade=True), sources


def carry_out(engine: str, home: Home) -> Report:
    made, sources = every_job(home.path)
    context = Context(home, sources)
    if engine == "local":
        return run(made, context, jobs=2, command="small run")
    with RayEngine(Cluster(cpus=0.5, jobs=2), context) as workers:
        return run(made, context, jobs=2, command="small run", engine=workers)


def main() -> None:
    ended = carry_out(sys.argv[1], Home(Path(sys.argv[2])).create())
    for line in sorted(ended.failures):
        print(f"failed: {line}")


if __name__ == "__main__":
    main()
