"""How the cost of a run grows: with images, models, parameters, jobs and, where Ray is installed, with nodes.

    python benchmarks/bench_growth.py --data-root DATA [--only images,models,parameters,jobs,nodes] [--figure FILE]

A run is everything from an empty home to records: workers started, models trained for a moment, attacked, judged and
tracked, on MNIST. Along jobs and nodes the seconds are those of the wall, else of all processes' CPUs. The exponent is
the slope of a line through the logarithms of the larger half of the sizes, where what a run costs at least no longer
counts. Growth with pairs alone is what bench_store measures.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from turns import spent

from defenses.standard import Standard
from harness.attacks.apgd import APGD
from harness.attacks.fast_gradient import Gradient
from harness.datasets.registry import DataSource
from harness.execution.jobs import Context
from harness.execution.ray.engine import Cluster, RayEngine
from harness.execution.runner import run
from harness.models.registry import build_model
from harness.planning.plan import Plan, plan, specs
from harness.planning.suite import Suite
from harness.records.home import Home
from harness.tracking.connection import default_uri
from harness.tracking.tracker import Tracker

MODELS = {"10^4": "mlp-12", "10^5": "mlp-124", "10^6": "mlp-662-662", "10^7": "mlp-2700-2700"}
"""Dense networks on 28x28 pixels by their parameters."""


@dataclass(frozen=True)
class Cost:
    """Seconds of the wall, and of the CPUs of all processes that this one waits for: not of Ray's."""

    wall: float
    cpu: float


def made(source: DataSource, models: Sequence[str], seeds: int, images: int, steps: int) -> Plan:
    """A battery of APGD and one fast-gradient step, at one eps."""
    info = source.info()
    suite = Suite(
        name="growth",
        summary="",
        attacks={"linf": (APGD(steps=steps), Gradient())},
        budgets={"linf": (0.1,)},
        samples=images,
    )
    return plan(suite, specs([info], models, [Standard(epochs=1, subset=2000)], range(seeds)), {info.name: info})


def cost(one: Plan, source: DataSource, *, jobs: int = 1, cluster: Cluster | None = None) -> Cost:
    """What a run from nothing takes."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder)).create()
        wall, cpu = time.perf_counter(), sum(spent())
        context = Context(home, {source.info().name: source})
        with nullcontext() if cluster is None else RayEngine(cluster, context) as engine:
            ended = run(one, context, jobs=jobs, engine=engine, command="", tracker=Tracker(home, default_uri(home)))
        assert not ended.failures, ended.failures
        return Cost(time.perf_counter() - wall, sum(spent()) - cpu)


def over_images(source: DataSource) -> dict[float, Cost]:
    """One dense network of 32 units, 40 steps."""
    sizes = (100, 300, 1000, 3000, 10_000)
    return {images: cost(made(source, ["mlp-32"], 1, images, 40), source) for images in sizes}


def over_models(source: DataSource) -> dict[float, Cost]:
    """A hundred images, two pairs a model."""
    return {models: cost(made(source, ["mlp-32"], models, 100, 10), source) for models in (1, 4, 16, 64)}


def over_parameters(source: DataSource) -> dict[float, Cost]:
    """Two hundred images, 20 steps."""
    found: dict[float, Cost] = {}
    for name in MODELS.values():
        parameters = sum(
            p.numel() for p in build_model(name, source.info().shape, len(source.info().classes)).parameters()
        )
        found[parameters] = cost(made(source, [name], 1, 200, 20), source)
    return found


def over_jobs(source: DataSource) -> dict[float, Cost]:
    """Eight models, a thousand images."""
    return {jobs: cost(made(source, ["mlp-32"], 8, 1000, 100), source, jobs=jobs) for jobs in (1, 2)}


def over_nodes(source: DataSource) -> dict[float, Cost]:
    """The same on Ray, in nodes of one CPU each on this machine."""
    try:
        from ray.cluster_utils import Cluster as Nodes
    except ImportError:
        return {}
    found: dict[float, Cost] = {}
    for nodes in (1, 2):
        cluster = Nodes()
        for _ in range(nodes):
            cluster.add_node(num_cpus=1)
        try:
            there = Cluster(address=cluster.address)
            found[float(nodes)] = cost(made(source, ["mlp-32"], 8, 1000, 100), source, cluster=there)
        finally:
            cluster.shutdown()
    return found


AXES: Mapping[str, Callable[[DataSource], dict[float, Cost]]] = {
    "images": over_images,
    "models": over_models,
    "parameters": over_parameters,
    "jobs": over_jobs,
    "nodes": over_nodes,
}
OF_THE_WALL = ("jobs", "nodes")


def seconds(axis: str, found: Mapping[float, Cost]) -> list[float]:
    return [one.wall if axis in OF_THE_WALL else one.cpu for one in found.values()]


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Of the larger half of the sizes."""
    from_here = min(len(sizes) // 2, len(sizes) - 2)
    slope, _ = np.polyfit(np.log(sizes[from_here:]), np.log(values[from_here:]), 1)
    return float(slope)


def draw(measured: Mapping[str, Mapping[float, Cost]], path: Path) -> None:
    """A panel an axis, both scales logarithmic."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "growth", "font.size": 9})
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator

    figure, panels = plt.subplots(1, len(measured), figsize=(3 * len(measured), 2.8), layout="constrained")
    for panel, (axis, found) in zip(np.atleast_1d(panels), measured.items(), strict=True):
        values = seconds(axis, found)
        panel.loglog(list(found), values, "o-", color="#2463b4", markersize=4)
        panel.set(title=f"{axis}: exponent {exponent(list(found), values):.2f}", xlabel=axis)
        panel.set_ylabel("seconds of the wall" if axis in OF_THE_WALL else "CPU seconds")
        panel.grid(visible=True, which="major", alpha=0.3)
        panel.set_xticks(list(found), [f"{size:,.0f}" for size in found], rotation=30, minor=False)
        panel.minorticks_off()
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(AXES))
    parser.add_argument("--figure", type=Path, help="SVG file of the log-log pictures")
    parser.add_argument("--data-root", type=Path, default=os.environ.get("GAUNTLET_DATA"))
    args = parser.parse_args()
    source = DataSource("mnist", root=args.data_root)
    torch.set_num_threads(1)
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    logging.disable(logging.WARNING)
    print(f"{'':12}{'size':>12}{'wall s':>10}{'CPU s':>10}{'exponent':>10}")
    measured = {}
    for axis in args.only.split(","):
        found = AXES[axis](source)
        if not found:
            print(f"{axis:12}{'not measured: Ray is not installed':>40}", flush=True)
            continue
        measured[axis] = found
        for number, (size, one) in enumerate(found.items()):
            last = number == len(found) - 1
            slope = f"{exponent(list(found), seconds(axis, found)):>10.2f}" if last else ""
            print(f"{axis:12}{size:>12,.0f}{one.wall:>10.1f}{one.cpu:>10.1f}{slope}", flush=True)
    if args.figure and measured:
        draw(measured, args.figure)


if __name__ == "__main__":
    main()
