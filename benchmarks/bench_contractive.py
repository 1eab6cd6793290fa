"""What a contractive training step costs, as a multiple of a plain one; one thread, process CPU seconds.

    python benchmarks/bench_contractive.py [--models mlp-200-200,convnet-gu,lenet] [--batch 128] [--rounds 15]

Wrapper models on random 28x28 images: only the shapes matter here. The ways to a step take turns, and ratios are
medians over rounds of ratios within one, so that a busy machine troubles all of them alike.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from turns import cpu, options, stepper, table

from defenses.contractive import Contractive
from defenses.standard import Standard
from harness.models.registry import build_model
from harness.models.stages import Stages
from harness.training.defense import Loss
from harness.training.jacobian_penalty import Layer, estimate, trace
from harness.training.trainer import Trainer

WEIGHT = 1e-3


@dataclass(frozen=True, kw_only=True)
class ByRows(Trainer):
    """Eq. 6 with every layer's whole Jacobian from autograd, a row at a time over the batch, and its norm."""

    name = "by-rows"

    def loss(self, model: Stages, x: Tensor, y: Tensor) -> Loss:
        """Cross-entropy and penalty."""
        logits, layers = trace(model, x, leaf=True)
        value = F.cross_entropy(logits, y)
        for layer in layers:
            value = value + WEIGHT * by_rows(layer, softmax=layer is layers[-1]).mean()
        return Loss(value, logits)


@dataclass(frozen=True, kw_only=True)
class Estimated(Trainer):
    """Eq. 6 with every layer estimated by one projection."""

    name = "estimated"

    def loss(self, model: Stages, x: Tensor, y: Tensor) -> Loss:
        """Cross-entropy and penalty."""
        logits, layers = trace(model, x, leaf=True)
        value = F.cross_entropy(logits, y)
        for layer in layers:
            after = layer.after.softmax(1) if layer is layers[-1] else layer.after
            value = value + WEIGHT * estimate(layer.before, after).mean()
        return Loss(value, logits)


def by_rows(layer: Layer, *, softmax: bool) -> Tensor:
    """Squared Frobenius norms (N,) of the Jacobian that autograd builds."""
    after = (layer.after.softmax(1) if softmax else layer.after).flatten(1)
    rows = [torch.autograd.grad(unit.sum(), layer.before, create_graph=True)[0] for unit in after.unbind(1)]
    return torch.stack(rows, 1).flatten(1).square().sum(1)


def compare(name: str, batch: int, rounds: int) -> None:
    """Print the table of one model."""
    trainers: dict[str, Trainer] = {
        "plain": Standard(epochs=1),
        "contractive, closed forms": Contractive(epochs=1, weight=WEIGHT),
        "contractive, unsquared": Contractive(epochs=1, weight=WEIGHT, squared=False),
        "contractive, estimated": Estimated(epochs=1),
        "contractive, exact (eq. 5)": Contractive(epochs=1, weight=WEIGHT, penalty="exact"),
    }
    x, y = torch.rand(batch, 1, 28, 28), torch.randint(10, (batch,))
    steps = {label: stepper(name, trainer, x, y) for label, trainer in trainers.items()}
    seconds = table(f"{name}: one step of training, batch of {batch}", steps, rounds)
    rows = sum(layer.after[0].numel() for layer in trace(build_model(name, (1, 28, 28), 10), x[:1])[1])
    if rows > 2000:
        print(f"  contractive, autograd Jacobian: not measured, {rows} backward passes per step")
        return
    slow = cpu(stepper(name, ByRows(epochs=1), x, y)) / statistics.median(seconds["plain"])
    print(f"  {'contractive, autograd Jacobian':32}{slow:8.0f} times the plain step ({rows} rows)")


def main() -> None:
    """Print the tables."""
    args = options(__doc__, models="mlp-200-200,convnet-gu,lenet", rounds=15).parse_args()
    torch.set_num_threads(1)
    for name in args.models.split(","):
        compare(name, args.batch, args.rounds)


if __name__ == "__main__":
    main()
