"""What the benchmarks of steps share: the ways to do something take turns, and are compared round by round.

A ratio is the median over rounds of the ratio within a round, so that a busy machine troubles all of them alike. All
seconds are process CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from harness.metrics.pairs import Pair
from harness.models.registry import build_model
from harness.training.precision import Precision, computing
from harness.training.trainer import Trainer

Work = Callable[[], object]


def options(doc: str | None, *, models: str = "", batch: int = 128, rounds: int) -> argparse.ArgumentParser:
    """``--models`` (where there is a choice), ``--batch`` and ``--rounds``."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if models:
        parser.add_argument("--models", default=models)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--rounds", type=int, default=rounds)
    return parser


def passes(pairs: Iterable[Pair]) -> tuple[float, float]:
    """Images that attacks sent forward and backward through a model, all pairs together."""
    met = [(pair.result, int(pair.columns["attacked"].sum())) for pair in pairs]
    return sum(one.forwards * n for one, n in met), sum(one.backwards * n for one, n in met)


def spent() -> tuple[float, float]:
    """CPU seconds of this process, and of all processes below it: those it has waited for, and (Linux) living ones."""
    own, theirs = (
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
    return own, theirs + _living(os.getpid()) / os.sysconf("SC_CLK_TCK")


def _living(parent: int) -> int:
    """Clock ticks of the living processes below one, and of those they waited for: a fork server for its workers."""
    ticks = 0
    for listed in Path(f"/proc/{parent}/task").glob("*/children"):
        for child in map(int, listed.read_text().split()):
            with suppress(OSError):  # it ended just now
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(map(int, fields[11:15])) + _living(child)
    return ticks


def cpu(work: Work) -> float:
    """Process CPU seconds."""
    start = time.process_time()
    work()
    return time.process_time() - start


def turns(works: Mapping[str, Work], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each, a value a round, after one round that does not count."""
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {label: [] for label in works}
    for _ in range(rounds):
        for label, work in works.items():
            seconds[label].append(cpu(work))
    return seconds


def ratios(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Cost of each as a multiple of the first's."""
    first = next(iter(seconds.values()))
    return {
        label: statistics.median(mine / base for mine, base in zip(own, first, strict=True))
        for label, own in seconds.items()
    }


def table(title: str, works: Mapping[str, Work], rounds: int) -> dict[str, list[float]]:
    """Print what each costs, next to the first; the seconds behind it."""
    seconds = turns(works, rounds)
    print(f"\n{title}{'CPU ms':>{66 - len(title)}}   times the first")
    for label, ratio in ratios(seconds).items():
        print(f"  {label:48}{statistics.median(seconds[label]) * 1e3:16.1f}{ratio:10.2f}", flush=True)
    return seconds


def stepper(name: str, trainer: Trainer, x: Tensor, y: Tensor, *, precision: Precision = "float32") -> Work:
    """One update of a fresh model of its own, on images (N, C, H, W) of ten classes."""
    torch.manual_seed(0)
    model = build_model(name, tuple(x.shape[1:]), 10).train()  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        with computing([model], precision, compiled=False):
            trainer.step(model, optimizer, x.clone(), y)

    return step
