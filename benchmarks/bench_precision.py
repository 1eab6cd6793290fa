"""Training in bfloat16 against float32: what a step costs, and whether the trained networks differ beyond the seed.

    python benchmarks/bench_precision.py --data-root DATA [--rounds 5] [--seeds 5] [--images 2000] [--epochs 3]

Forward and backward passes of training under autocast; weights, updates and every evaluation are float32. Each seed
trains one network in either precision from the same weights in the same batches; test errors, and errors under the
sign of the gradient, are compared seed by seed, with a 95 % t interval of the difference beside the spread over seeds.
The exit status is 1 if an interval excludes 0 and the mean difference exceeds the spread. One thread; process CPU
seconds. Only a processor that multiplies bfloat16 (avx512_bf16, amx_bf16) or a GPU gains by it.
"""

from __future__ import annotations

import math
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from turns import Work, options, stepper, table

from defenses.fast_gradient import FastGradient
from defenses.standard import Standard
from harness.attacks.fast_gradient import Gradient
from harness.datasets.registry import Dataset, load_dataset
from harness.determinism import seed_everything
from harness.threat import Threat
from harness.training.precision import Precision
from harness.training.trainer import Trainer
from harness.victims.victim import Victim

CASES: tuple[tuple[str, str, float], ...] = (("lenet", "mnist", 0.1), ("allconv", "cifar10-jpeg", 2 / 255))
"""Network, data set, and the eps of the sign step."""

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
TESTED = 1000


def errors(trainer: Trainer, network: str, data: Dataset, eps: float, seed: int) -> tuple[float, float]:
    """Errors in per cent of a freshly trained network: on test images, and under the sign of the gradient."""
    seed_everything(seed)
    victim = Victim(trainer.fit(network, data).model.eval(), own=True)
    _, (x, y) = data.test_sample(TESTED)
    moved = Gradient(p=math.inf)(victim, x, y, Threat("linf", eps))
    clean, signed = (100 * float((victim.predict(images) != y).double().mean()) for images in (x, moved))
    return clean, signed


def compare(label: str, plain: list[float], low: list[float]) -> bool:
    """Print one line; whether the two agree within seed noise."""
    differences = [b - a for a, b in zip(plain, low, strict=True)]
    mean, spread = statistics.mean(differences), statistics.stdev(plain)
    half = float(student.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / math.sqrt(len(differences))
    agree = abs(mean) <= max(half, spread)
    print(
        f"  {label:36}{statistics.mean(plain):8.2f}{statistics.mean(low):10.2f}{mean:+10.2f} ± {half:.2f}"
        f"{spread:10.2f}   {'agree' if agree else 'DIFFER'}",
        flush=True,
    )
    return agree


def main() -> None:
    """Print both tables."""
    parser = options(__doc__, batch=128, rounds=5)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    agreed = True
    for network, name, eps in CASES:
        data = load_dataset(name, root=args.data_root)
        common: dict[str, Any] = {"epochs": args.epochs, "subset": args.images}
        trainers: dict[str, Trainer] = {
            "standard": Standard(**common),
            "fast gradient": FastGradient(eps=eps, **common),
        }
        _, (x, y) = data.train_sample(args.batch)
        for label, trainer in trainers.items():
            steps: dict[str, Work] = {
                precision: stepper(network, trainer.resolve(data.info), x, y, precision=precision)
                for precision in PRECISIONS
            }
            table(f"{network}, {label}: a step, batch of {args.batch}", steps, args.rounds)
        print(
            f"\n{network} on {name}, {args.images} images, {args.epochs} epochs, {args.seeds} seeds: errors in %\n"
            f"{'':38}{'float32':>8}{'bfloat16':>10}  difference     over seeds"
        )
        for label, trainer in trainers.items():
            found = {
                precision: [
                    errors(replace(trainer, precision=precision), network, data, eps, s) for s in range(args.seeds)
                ]
                for precision in PRECISIONS
            }
            for position, what in enumerate(("test images", f"sign step, {eps:.3g}")):
                columns = [[pair[position] for pair in found[p]] for p in PRECISIONS]
                agreed &= compare(f"{label}, {what}", *columns)
    sys.exit(not agreed)


if __name__ == "__main__":
    main()
