"""How the harness bears many pairs: planning, going on, reporting and memory, over pairs in a home and images per pair.

    python benchmarks/bench_store.py [--pairs 1000,10000] [--images 100] [--tracked]

The pairs are real records of one attacked model, filed under other seeds: what is measured is all but attacking. With
``--tracked`` they are delivered to an MLflow store in SQLite first, which takes a while.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

import reports
from defenses.standard import Standard
from harness import determinism
from harness.attacks.fast_gradient import Gradient
from harness.attacks.noise import Noise
from harness.datasets.registry import DataSource
from harness.execution.jobs import Context, Examine
from harness.execution.runner import run
from harness.execution.scheduler import Scheduler
from harness.execution.worker import setup
from harness.judging.proposal import Bench
from harness.judging.shard import run_shard
from harness.metrics.pairs import DISTANCES
from harness.planning.plan import Plan, plan, specs
from harness.planning.suite import Suite
from harness.records import boards
from harness.records.checkpoints import digests, save_model
from harness.records.files import read_record, write_record
from harness.records.home import Home
from harness.records.provenance import provenance
from harness.records.results import write_shard
from harness.schema.models import Card
from harness.schema.probes import ProbeRecord
from harness.tracking.connection import default_uri
from harness.tracking.tracker import Tracker

SOURCE = DataSource("digits")
ATTACKS = (Noise(), Gradient(), *(Gradient(p=p) for p in (1.5, 2.0, 3.0, 4.0, 5.0, 8.0)))
"""At 3 eps: 24 pairs a model."""


def declare(pairs: int, images: int = 100) -> Plan:
    """A plan of at least so many pairs of so many images."""
    info = SOURCE.info()
    suite = Suite(name="bench", summary="", attacks={"linf": ATTACKS}, samples=images, batch=images)
    models = -(-pairs // 24)
    return plan(suite, specs([info], ["softmax"], [Standard(epochs=1)], range(models)), {info.name: info})


def fill(home: Home, made: Plan) -> None:
    """Attack one model, and file it and its records under every seed."""
    data = SOURCE.load()
    context = Context(home, {data.info.name: SOURCE})
    first = made.models[0]
    determinism.seed_everything(0)
    model = first.defense.fit("softmax", data).model
    for spec in made.models:
        card = Card(
            dataset="digits", architecture="softmax", defense="standard", seed=spec.seed, parameters=650, sha256="",
            epochs=1, seconds=0.0, train_accuracy=0.9, test_accuracy=0.9,
        )  # fmt: skip
        save_model(home, spec, model, card)
    bench = Bench.of(model, len(data.info.classes), "cpu")
    index, (x, y) = data.test_sample(made.cells[0].n)
    outcomes = {}
    for number, cell in enumerate(made.cells):
        kind = (cell.attack.label, cell.threat.eps)
        if kind not in outcomes:
            outcomes[kind] = run_shard(bench, cell.attack, cell.threat, index=index, x=x, y=y, seed=0)
        outcome = outcomes[kind]
        # no two pairs find the same distances, and equal ones would be kept once
        samples = outcome.samples.assign(**{name: outcome.samples[name] * (1 - 1e-9 * number) for name in DISTANCES})
        write_shard(home.cell(cell.key), 0, replace(outcome, samples=samples), provenance(home, cell))
    first_look = made.probes[0]
    setup(context)(Examine(first_look))
    facts = read_record(home.health(first_look.key), ProbeRecord)
    for look in made.probes:
        write_record(home.health(look.key), facts.model_copy(update={"weights": digests(home, [look.model])}))


def seconds(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def measure(pairs: int, images: int, *, tracked: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder)).create()
        made = declare(pairs, images)
        context = Context(home, {"digits": SOURCE})
        fill(home, made)
        tracker = Tracker(home, default_uri(home)) if tracked else None

        def go() -> None:
            ended = run(made, context, jobs=1, command="gauntlet run bench", tracker=tracker)
            assert not ended.failures, ended.failures

        took = {
            "record": seconds(go),  # what was attacked is merged, summed up and, if tracked, delivered
            "plan": seconds(lambda: Scheduler(declare(pairs, images), home, print)),
            "resume": seconds(go),
            "report": seconds(lambda: reports.write(boards.boards_from_home(home), Path(folder) / "report")),
        }
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        columns = "".join(f"{value:>10.1f}" for value in took.values())
        print(f"{len(made.cells):>8}{made.cells[0].n:>8}{columns}{memory:>10.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pairs", default="1000,10000")
    parser.add_argument("--images", default="100", help="of the 359 test images of the digits at most")
    parser.add_argument("--tracked", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("seconds, and the largest memory so far" + (", tracked" if options.tracked else ""))
    print(f"{'pairs':>8}{'images':>8}{'record':>10}{'plan':>10}{'resume':>10}{'report':>10}{'GB':>10}")
    for pairs in options.pairs.split(","):
        for images in options.images.split(","):
            measure(int(pairs), int(images), tracked=options.tracked)


if __name__ == "__main__":
    main()
