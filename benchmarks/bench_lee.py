"""What a step of the generative adversarial trainer costs, as a multiple of a fast-gradient one; process CPU seconds.

    python benchmarks/bench_lee.py [--batch 64] [--rounds 5] [--limit 3]

Untrained networks of the paper's table 1 on random 32x32 images, one thread: only the shapes matter here. The ways to a
step take turns, and ratios are medians over rounds of ratios within one, so that a busy machine troubles all of them
alike. The exit status is 1 if a step with k = 1 costs more than the limit (the paper: 3 to 4 times as long to train).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from defenses.fast_gradient import FastGradient
from defenses.generative_adversarial_trainer import GenerativeAdversarialTrainer
from defenses.random_perturbation import RandomPerturbation
from defenses.standard import Standard
from harness.models import build_model
from harness.training import Trainer

FAST, TRAINER = "fast gradient, L2", "GAT, k = 1"
TRAINERS: dict[str, Trainer] = {
    FAST: FastGradient(epochs=1, norm="l2", eps=0.5),
    "plain": Standard(epochs=1),
    "random perturbation": RandomPerturbation(epochs=1, eps=0.5),
    TRAINER: GenerativeAdversarialTrainer(epochs=1),
    "GAT, k = 2": GenerativeAdversarialTrainer(epochs=1, k=2),
    "GAT, k = 1, dropout": GenerativeAdversarialTrainer(epochs=1, p=0.1),
}


def stepper(trainer: Trainer, x: Tensor, y: Tensor) -> Callable[[], object]:
    """One update of a model of its own."""
    torch.manual_seed(0)
    model = build_model("allconv", (3, 32, 32), 10).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    player = trainer.play(3, "cpu") if isinstance(trainer, GenerativeAdversarialTrainer) else trainer
    return lambda: player.step(model, optimizer, x.clone(), y)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=3.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    x, y = torch.rand(args.batch, 3, 32, 32), torch.randint(10, (args.batch,))
    steps = {label: stepper(trainer, x, y) for label, trainer in TRAINERS.items()}
    seconds: dict[str, list[float]] = {label: [] for label in steps}
    for step in steps.values():
        step()
    for _ in range(args.rounds):
        for label, step in steps.items():
            start = time.process_time()
            step()
            seconds[label].append(time.process_time() - start)
    print(f"batches of {args.batch}: a fast-gradient step takes {statistics.median(seconds[FAST]) * 1e3:.0f} ms of CPU")
    ratios = {
        label: statistics.median(mine / fast for mine, fast in zip(found, seconds[FAST], strict=True))
        for label, found in seconds.items()
    }
    for label, ratio in ratios.items():
        print(f"  {label:24}{ratio:8.2f} times the fast-gradient step")
    sys.exit(ratios[TRAINER] > args.limit)


if __name__ == "__main__":
    main()
