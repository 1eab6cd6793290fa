"""What a step of gradient regularization costs, as a multiple of a plain one; one thread, process CPU seconds.

    python benchmarks/bench_lyu.py [--models mlp-sigmoid-600-600,maxout,conv-maxout] [--batch 128] [--rounds 15]

Wrapper models on random 28x28 images: only the shapes matter here. The ways to a step take turns, and ratios are
medians over rounds of ratios within one, so that a busy machine troubles all of them alike.
"""

from __future__ import annotations

import math

import torch
from turns import options, stepper, table

from defenses.gradient_regularization import GradientRegularization
from defenses.standard import Standard
from harness.models.registry import build_model
from harness.training.optim import limit_norms
from harness.training.trainer import Trainer

TRAINERS: dict[str, Trainer] = {
    "plain": Standard(epochs=1),
    "perturbed, p = 2": GradientRegularization(epochs=1),
    "perturbed, p = inf": GradientRegularization(epochs=1, p=math.inf, sigma=0.1),
    "perturbed, p = 1.5": GradientRegularization(epochs=1, p=1.5),
    "penalty, p = 2": GradientRegularization(epochs=1, form="penalty"),
}


def compare(name: str, batch: int, rounds: int) -> None:
    """Print the table of one model."""
    x, y = torch.rand(batch, 1, 28, 28), torch.randint(10, (batch,))
    steps = {label: stepper(name, trainer, x, y) for label, trainer in TRAINERS.items()}
    model = build_model(name, (1, 28, 28), 10)
    steps["max-norm alone"] = lambda: limit_norms(model, 1.9365)
    table(f"{name}: one step of training, batch of {batch}", steps, rounds)


def main() -> None:
    """Print the tables."""
    args = options(__doc__, models="mlp-sigmoid-600-600,maxout,conv-maxout", rounds=15).parse_args()
    torch.set_num_threads(1)
    for name in args.models.split(","):
        compare(name, args.batch, args.rounds)


if __name__ == "__main__":
    main()
