"""What a step of gradient regularization costs, as a multiple of a plain one; one thread, process CPU seconds.

    python benchmarks/bench_lyu.py [--models mlp-sigmoid-600-600,maxout,conv-maxout] [--batch 128] [--rounds 15]

Untrained models on random 28x28 images: only the shapes matter here. The ways to a step take turns, and ratios are
medians over rounds of ratios within one, so that a busy machine troubles all of them alike.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from defenses.gradient_regularization import GradientRegularization
from defenses.standard import Standard
from harness.models import build_model
from harness.optim import limit_norms
from harness.training import Trainer

TRAINERS: dict[str, Trainer] = {
    "plain": Standard(epochs=1),
    "perturbed, p = 2": GradientRegularization(epochs=1),
    "perturbed, p = inf": GradientRegularization(epochs=1, p=math.inf, sigma=0.1),
    "perturbed, p = 1.5": GradientRegularization(epochs=1, p=1.5),
    "penalty, p = 2": GradientRegularization(epochs=1, form="penalty"),
}


def cpu(work: Callable[[], object]) -> float:
    """Process CPU seconds."""
    start = time.process_time()
    work()
    return time.process_time() - start


def stepper(name: str, trainer: Trainer, x: Tensor, y: Tensor) -> Callable[[], object]:
    """One update of a model of its own."""
    torch.manual_seed(0)
    model = build_model(name, (1, 28, 28), 10).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    return lambda: trainer.step(model, optimizer, x, y)


def compare(name: str, batch: int, rounds: int) -> None:
    """Print the table of one model."""
    x, y = torch.rand(batch, 1, 28, 28), torch.randint(10, (batch,))
    steps = {label: stepper(name, trainer, x, y) for label, trainer in TRAINERS.items()}
    model = build_model(name, (1, 28, 28), 10)
    steps["max-norm alone"] = lambda: limit_norms(model, 1.9365)
    seconds: dict[str, list[float]] = {label: [] for label in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for label, step in steps.items():
            seconds[label].append(cpu(step))
    print(f"\n{name}, batches of {batch}: a plain step takes {statistics.median(seconds['plain']) * 1e3:.2f} ms of CPU")
    for label, found in seconds.items():
        ratios = [mine / plain for mine, plain in zip(found, seconds["plain"], strict=True)]
        print(f"  {label:24}{statistics.median(ratios):8.2f} times the plain step")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mlp-sigmoid-600-600,maxout,conv-maxout")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.models.split(","):
        compare(name, args.batch, args.rounds)


if __name__ == "__main__":
    main()
