"""What it costs to look at every point that an attack meets: a shard with a harvest against one without.

    python benchmarks/bench_harvest.py [--models lenet,mlp-200-200] [--norm linf] [--images 100] [--rounds 3]

Every attack of the suite of that norm that needs no other model, attack and judgement together, at the middle eps, on
briefly trained networks: the embedded digits, for LeNet enlarged to the 28 x 28 pixels of MNIST. Both ways take turns
under one seed, and attacks return the same images. What is left, in per cent, is that of the images as returned, and
with what was met on the way: never more. The last row is the whole battery: CPU seconds of all attacks together.

On a busy machine two equal shards differ by more than a harvest costs. So its own functions are timed as well, within
the same shard: ``inside`` is their CPU time, in per cent of the rest of that shard.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from turns import options, ratios, turns

from defenses.standard import Standard
from harness import determinism
from harness.attacks.transfer import Transfer
from harness.datasets.registry import Dataset, load_dataset
from harness.execution.memory import keep_freed
from harness.judging import shard as judged
from harness.judging.proposal import Bench
from harness.judging.shard import ShardOutcome, run_shard
from harness.metrics.pairs import broken
from harness.threat import Threat
from harness.victims.harvest import Harvest
from suites import suite

SIDE = 28


def enlarged(data: Dataset) -> Dataset:
    """The same images at another size."""

    def larger(images: Tensor) -> Tensor:
        wide = F.interpolate(images.float(), size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        return wide.round().to(torch.uint8)

    info = replace(data.info, shape=(1, SIDE, SIDE))
    return replace(data, info=info, x_train=larger(data.x_train), x_test=larger(data.x_test))


class Stopwatch:
    """CPU seconds spent in some functions since it was last set to nothing."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def over(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*args: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return work(*args, **options)
            finally:
                self.seconds += time.process_time() - start

        return timed


WATCH = Stopwatch()


def battery(name: str, norm: str, images: int, rounds: int) -> None:
    """Print what each attack of a suite costs with a harvest, as a multiple of its cost without."""
    data = load_dataset("digits")
    if name == "lenet":
        data = enlarged(data)
    determinism.seed_everything(0)
    bench = Bench.of(Standard(epochs=5).resolve(data.info).fit(name, data).model, 10, "cpu")
    _, (x, y) = data.test_sample(images)
    index, chosen = torch.arange(len(x)), suite(norm)
    eps = sorted(chosen.grid(load_dataset("digits").info)[norm])  # type: ignore[index]
    middle = eps[len(eps) // 2]
    total: dict[bool, list[float]] = {False: [0.0] * rounds, True: [0.0] * rounds}
    own = others = 0.0
    print(f"\n{name}, {norm}, {len(x)} images of {x.shape[2]} x {x.shape[3]}")
    print(f"{'':78}{'CPU s':>8}{'ratio':>8}{'inside':>8}{'left':>8}{'with':>8}{'nearer':>8}")
    for attack in chosen.attacks[norm]:  # type: ignore[index]
        if isinstance(attack, Transfer):
            continue
        threat = Threat(norm, middle if attack.kind == "budget" else None)  # type: ignore[arg-type]
        done: dict[bool, ShardOutcome] = {}

        def shard(harvest: bool, attack=attack, threat=threat, done=done) -> None:  # type: ignore[no-untyped-def]
            done[harvest] = run_shard(bench, attack, threat, index=index, x=x, y=y, seed=0, harvest=harvest)

        seconds = turns({"without": lambda: shard(False), "with": lambda: shard(True)}, rounds)
        WATCH.seconds, start = 0.0, time.process_time()
        shard(True)
        inside, rest = WATCH.seconds, time.process_time() - start - WATCH.seconds
        own, others = own + inside, others + rest
        for harvest, label in ((False, "without"), (True, "with")):
            total[harvest] = [old + new for old, new in zip(total[harvest], seconds[label], strict=True)]
        label = attack.label if len(attack.label) <= 74 else f"{attack.label[:71]}..."
        lost = {harvest: broken(one.samples, norm, middle) for harvest, one in done.items()}
        assert not (lost[False] & ~lost[True]).any(), f"{attack.label} left more"
        found = done[True].facts.harvest
        assert found is not None
        print(
            f"  {label:76}{statistics.median(seconds['without']):8.2f}{ratios(seconds)['with']:8.3f}"
            f"{100 * inside / rest:8.2f}{100 * (1 - lost[False].mean()):8.1f}{100 * (1 - lost[True].mean()):8.1f}"
            f"{found.nearer:8}",
            flush=True,
        )
    whole = ratios({"without": total[False], "with": total[True]})["with"]
    print(f"  {'all of them':76}{statistics.median(total[False]):8.2f}{whole:8.3f}{100 * own / others:8.2f}")


def main() -> None:
    parser = options(__doc__, models="lenet,mlp-200-200", rounds=3)
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--images", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed()  # as workers do, and all rows of this process alike
    Harvest.note = WATCH.over(Harvest.note)  # type: ignore[method-assign]
    judged._with_harvest = WATCH.over(judged._with_harvest)
    for name in args.models.split(","):
        battery(name, args.norm, args.images, args.rounds)


if __name__ == "__main__":
    main()
