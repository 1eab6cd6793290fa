"""What a step of E networks side by side costs, as a multiple of E steps of one alone.

    python benchmarks/bench_ensemble.py [--members 8] [--models mlp-200-200,allconv] [--batch 64] [--rounds 5]
        [--device cpu] [--limit 0]

Untrained networks on random images (28x28 for dense ones, else 3x32x32), one thread. Both ways take turns; a ratio is
the median over rounds of the ratio within one. On a GPU the seconds are those of the processor, which waits for it and
does nothing else. Below 1, side by side is faster; with a limit above 0 the exit status is 1 if a ratio is above it.
"""

from __future__ import annotations

import sys

import torch
from torch import nn
from turns import Work, options, ratios, table

from defenses.generative_adversarial_trainer import GenerativeAdversarialTrainer
from defenses.standard import Standard
from harness.datasets.registry import DATASETS, DatasetInfo
from harness.models.registry import build_model
from harness.models.stages import Stages
from harness.training.trainer import Trainer
from harness.training.vmapped_seeds import Beside, Ensemble

TRAINERS: dict[str, Trainer] = {"plain": Standard(epochs=1), "GAT": GenerativeAdversarialTrainer(epochs=1)}


def stepper(
    trainer: Trainer, model: Stages, opponent: nn.Module | None, info: DatasetInfo, batch: int, device: str
) -> Work:
    """One update of a network, or of networks side by side, and of their opponents if there are any."""
    x = torch.rand(batch * model.members, *info.shape, device=device)
    y = torch.randint(10, (batch * model.members,), device=device)
    model.to(device).train()
    playing = trainer if opponent is None else trainer.against(opponent.to(device))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        playing.step(model, optimizer, x.clone(), y)
        if device != "cpu":
            torch.cuda.synchronize()

    return step


def main() -> None:
    """Print a table for each network and trainer."""
    parser = options(__doc__, models="mlp-200-200,allconv", batch=64, rounds=5)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=float, default=0.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    worst = 0.0
    for name in args.models.split(","):
        info = DATASETS["mnist" if name.startswith("mlp") else "cifar10"]
        for label, trainer in TRAINERS.items():
            networks = [build_model(name, info.shape, 10) for _ in range(args.members)]
            opponents = [trainer.opponent(info) for _ in networks]
            found = [opponent for opponent in opponents if opponent is not None]
            beside = Beside(found) if found else None

            one = stepper(
                trainer, build_model(name, info.shape, 10), trainer.opponent(info), info, args.batch, args.device
            )
            all_ = stepper(trainer, Ensemble(networks), beside, info, args.batch, args.device)

            def in_turn(one: Work = one) -> None:
                for _ in range(args.members):
                    one()

            works = {f"{args.members} steps of one": in_turn, "side by side": all_}
            seconds = table(f"{name}, {label}: batches of {args.batch}, {args.device}", works, args.rounds)
            worst = max(worst, ratios(seconds)["side by side"])
    sys.exit(bool(args.limit) and worst > args.limit)


if __name__ == "__main__":
    main()
