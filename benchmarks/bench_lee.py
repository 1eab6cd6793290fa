"""What a step of the generative adversarial trainer costs, as a multiple of a fast-gradient one; process CPU seconds.

    python benchmarks/bench_lee.py [--batch 64] [--rounds 5] [--limit 3]

Wrapper networks of the paper's table 1 on random 32x32 images, one thread: only the shapes matter here. The ways to a
step take turns, and ratios are medians over rounds of ratios within one, so that a busy machine troubles all of them
alike. The exit status is 1 if a step with k = 1 costs more than the limit (the paper: 3 to 4 times as long to train).
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from turns import Work, options, ratios, stepper, table

from defenses.fast_gradient import FastGradient
from defenses.generative_adversarial_trainer import GenerativeAdversarialTrainer
from defenses.random_perturbation import RandomPerturbation
from defenses.standard import Standard
from harness.models.perturbation_generator import PerturbationGenerator
from harness.training.trainer import Trainer

FAST, TRAINER = "fast gradient, L2", "GAT, k = 1"
TRAINERS: dict[str, Trainer] = {
    FAST: FastGradient(epochs=1, norm="l2", eps=0.5),
    "plain": Standard(epochs=1),
    "random perturbation": RandomPerturbation(epochs=1, eps=0.5),
    TRAINER: GenerativeAdversarialTrainer(epochs=1),
    "GAT, k = 2": GenerativeAdversarialTrainer(epochs=1, k=2),
    "GAT, k = 1, dropout": GenerativeAdversarialTrainer(epochs=1, p=0.1),
}


def step(trainer: Trainer, x: Tensor, y: Tensor) -> Work:
    """One update, by the player of the trainer that has one."""
    if not isinstance(trainer, GenerativeAdversarialTrainer):
        return stepper("allconv", trainer, x, y)
    return stepper("allconv", trainer.against(PerturbationGenerator(x.shape[1])), x, y)  # type: ignore[arg-type]


def main() -> None:
    """Print the table."""
    parser = options(__doc__, batch=64, rounds=5)
    parser.add_argument("--limit", type=float, default=3.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    x, y = torch.rand(args.batch, 3, 32, 32), torch.randint(10, (args.batch,))
    steps = {label: step(trainer, x, y) for label, trainer in TRAINERS.items()}
    seconds = table(f"allconv: one step of training, batch of {args.batch}", steps, args.rounds)
    sys.exit(ratios(seconds)[TRAINER] > args.limit)


if __name__ == "__main__":
    main()
