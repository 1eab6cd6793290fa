"""Search in bfloat16 against float32: what APGD costs, and how many images it no longer breaks.

    python benchmarks/bench_low_search.py --data-root DATA [--images 1000] [--eps 0.1,0.2] [--epochs 2] [--cache DIR]

The attacked copy of a LeNet computes in bfloat16 throughout, or but for the last quarter of the steps; weights, the
attack's own arithmetic and the judgement are float32. APGD runs on the log-odds and on the difference-of-logits ratio.
Under "again" float32 runs from another seed: what chance alone loses. One thread; process CPU seconds of interleaved
batches, as ratios. Only a processor that multiplies bfloat16 (avx512_bf16, amx_bf16) or a GPU gains by it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from defenses import defenses
from harness import determinism
from harness.attacks.apgd import APGD
from harness.attacks.line_search import CHUNK
from harness.datasets.registry import DataSource
from harness.execution.jobs import Context, Train
from harness.execution.worker import Worker
from harness.planning.plan import specs
from harness.records.checkpoints import has_model, load_model
from harness.records.home import Home
from harness.threat import Threat
from harness.training.trainer import Trainer
from harness.victims.victim import Victim

STEPS = 100
ATTACKS = (APGD(steps=STEPS), APGD(loss="dlr", steps=STEPS))
WAYS = {"float32": (0, 0), "again": (1, 0), "bfloat16": (0, STEPS + 1), "three quarters": (0, 3 * STEPS // 4)}
"""Seed of each way, and calls of a run that are made in bfloat16."""


class Low(nn.Module):
    """A network (N, C, H, W) to (N, K) whose first calls compute in bfloat16; logits are float32."""

    def __init__(self, model: nn.Module, calls: int) -> None:
        super().__init__()
        self.model, self.calls, self.made = model, calls, 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        self.made += 1
        with torch.autocast("cpu", torch.bfloat16, enabled=self.made <= self.calls):
            logits: Tensor = self.model(x)
        return logits.float()


def main() -> None:
    """Print a line for each network, eps and way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--eps", default="0.1,0.2")
    parser.add_argument("--defenses", default="standard,fast-gradient,pgd,interval-bound")
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = DataSource("mnist", root=options.data_root)
    data, info = source.load(), source.info()
    home = Home(options.cache or Path(tempfile.mkdtemp())).create()
    print(f"LeNets, {options.images} MNIST images, linf, APGD of {STEPS} steps with two losses")
    print(f"{'':16}{'eps':>6}  {'':16}{'left':>8}{'lost, points':>14}{'CPU time':>10}")
    for name in options.defenses.split(","):
        trainer = defenses()[name]
        assert issubclass(trainer, Trainer)
        (spec,) = specs([info], ["lenet"], [trainer(epochs=options.epochs)], [0])
        if not has_model(home, spec):
            Worker(Context(home, {info.name: source})).run(Train(spec))
        model = load_model(home, spec, info)
        referee = Victim(model, classes=10)
        _, (x, y) = data.test_sample(options.images)
        right = torch.cat([referee.predict(part) for part in x.split(CHUNK)]) == y
        clean, x, y = float(right.float().mean()), x[right], y[right]
        for eps in map(float, options.eps.split(",")):
            broken, seconds = dict.fromkeys(WAYS, 0), dict.fromkeys(WAYS, 0.0)
            for images, labels in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
                for way, (seed, calls) in WAYS.items():
                    lost = torch.zeros(len(images), dtype=torch.bool)
                    for attack in ATTACKS:
                        low = Low(model, calls)
                        victim = Victim(low, classes=10, own=True, fast=True)
                        victim(images[:1])  # it finds its layout
                        low.made = 0
                        determinism.seed_everything(seed)
                        start = time.process_time()
                        x_adv = attack(victim, images, labels, Threat("linf", eps))
                        seconds[way] += time.process_time() - start
                        lost |= referee.predict(x_adv) != labels
                    broken[way] += int(lost.sum())
            for way in WAYS:
                left = clean - broken[way] / options.images
                points = 100 * (broken["float32"] - broken[way]) / options.images
                cost = seconds[way] / seconds["float32"]
                print(f"{name:16}{eps:6g}  {way:16}{left:8.1%}{points:14.1f}{cost:9.2f}x", flush=True)


if __name__ == "__main__":
    main()
