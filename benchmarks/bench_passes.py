"""Every attack and every trainer against the raw cost of its own forward and backward passes; one thread, CPU seconds.

    python benchmarks/bench_passes.py [--models mlp-200-200,lenet] [--images 100] [--rounds 5] [--only attacks,trainers]

Attacks are those of the suites ``linf``, ``l2`` and ``black-box``, at the middle eps of the embedded digits, on briefly
trained networks: passes of the dense one are so cheap that whatever an attack does beside them shows. Passes are those
that the attack asked for, counted by the victim, at the cost of bare passes on batches of the mean size it asked for.
A trainer's step is compared with its own passes through the network, counted by hooks; beside them are the optimizer's
update and, of the generative adversarial trainer, the generator. Ratios near 1 leave nothing to gain but fewer passes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from turns import cpu, options

from defenses import defenses
from defenses.standard import Standard
from harness import identity
from harness.attack import Attack
from harness.attacks.transfer import Transfer
from harness.data import Dataset, load_dataset
from harness.models import Stages, build_model
from harness.optim import descend
from harness.threat import Threat
from harness.training import Trainer
from harness.victim import Victim
from suites import suite

SUITES = ("linf", "l2", "black-box")


def passes(work: Callable[[], object], victim: Victim) -> tuple[float, float, list[int]]:
    """Forward and backward passes in images, and the sizes of the batches asked for."""
    sizes: list[int] = []
    hook = victim.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    with victim.counted() as cost:
        work()
    hook.remove()
    return cost.forwards, cost.backwards, sizes


def bare(model: nn.Module, x: Tensor, y: Tensor, repeats: int = 20) -> tuple[float, float]:
    """CPU seconds an image of a forward pass without gradients, and of a backward pass to the image."""

    def forward() -> None:
        with torch.no_grad():
            model(x)

    def both() -> None:
        images = x.clone().requires_grad_(True)
        torch.autograd.grad(F.cross_entropy(model(images), y, reduction="sum"), images)

    each = []
    for work in (forward, both):
        work()
        each.append(statistics.median(cpu(work) for _ in range(repeats)) / len(x))
    return each[0], max(each[1] - each[0], 0.0)


def of_attacks(name: str, data: Dataset, images: int) -> None:
    identity.seed_everything(0)
    model = Standard(epochs=5).resolve(data.info).fit(name, data).model
    victim = Victim(model, classes=10)
    _, (x, y) = data.test_sample(min(images, data.info.test_size or images))
    keep = victim.predict(x) == y
    x, y = x[keep], y[keep]
    model.requires_grad_(False)
    print(f"\n{name}: attacks on {len(x)} digits")
    print(f"{'':78}{'norm':>6}{'CPU ms/img':>12}{'forwards':>10}{'backwards':>10}{'of bare':>9}")
    seen = set()
    for battery in map(suite, SUITES):
        grid = battery.grid(data.info)
        for norm, attacks in battery.attacks.items():
            for attack in attacks:
                if isinstance(attack, Transfer) or attack.prepares or (attack, norm) in seen:
                    continue
                seen.add((attack, norm))
                one_attack(attack, Threat(norm, grid[norm][1] if attack.kind == "budget" else None), victim, x, y)


def one_attack(attack: Attack, threat: Threat, victim: Victim, x: Tensor, y: Tensor) -> None:
    def work() -> None:
        identity.seed_everything(0)
        attack(victim, x, y, threat)

    attack.warm_up()
    forwards, backwards, sizes = passes(work, victim)
    seconds = cpu(work)
    size = min(max(round(statistics.mean(sizes)), 1), len(x)) if sizes else len(x)
    forward, backward = bare(victim, x[:size], y[:size])
    raw = forwards * forward + backwards * backward
    ratio = f"{seconds / raw:9.2f}" if raw else f"{'-':>9}"
    n = len(x)
    print(
        f"  {attack.label:76}{threat.norm:>6}{1e3 * seconds / n:12.2f}{forwards / n:10.1f}{backwards / n:10.1f}{ratio}",
        flush=True,
    )


class Counter:
    """Counts the passes through a network while it trains, in either direction, by its first stage."""

    def __init__(self, model: Stages) -> None:
        self.forwards = self.backwards = 0
        next(iter(model.stages.values())).register_forward_hook(self._count)

    def _count(self, _: nn.Module, __: object, out: Tensor) -> None:
        self.forwards += 1
        if out.requires_grad:
            out.register_hook(self._back)

    def _back(self, _: Tensor) -> None:
        self.backwards += 1


def of_trainers(data: Dataset, rounds: int) -> None:
    x, y = torch.rand(128, 1, 28, 28), torch.randint(10, (128,))
    name = "lenet"
    print(f"\ntrainers: a step of {name} on 128 images of 28x28")
    print(f"{'':58}{'CPU ms':>18}{'forwards':>10}{'backwards':>10}{'of bare':>9}")
    for kind in defenses().values():
        trainer = kind().resolve(data.info)
        if trainer.epochs:  # else nothing is trained
            one_trainer(trainer, name, x, y, rounds)


def one_trainer(trainer: Trainer, name: str, x: Tensor, y: Tensor, rounds: int) -> None:
    torch.manual_seed(0)
    model = build_model(name, (1, 28, 28), 10).train()
    assert isinstance(model, Stages)
    opponent = trainer.opponent(load_dataset("digits").info)
    playing = trainer if opponent is None else trainer.against(opponent)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    counter = Counter(model)
    playing.step(model, optimizer, x.clone(), y)
    forwards, backwards = counter.forwards, counter.backwards

    def forward() -> None:
        model(x)

    def plain() -> None:
        descend(optimizer, F.cross_entropy(model(x), y))

    seconds, raws = [], []
    for _ in range(rounds):
        once, step = cpu(forward), cpu(plain)
        raws.append(forwards * once + backwards * max(step - once, 0.0))
        seconds.append(cpu(lambda: playing.step(model, optimizer, x.clone(), y)))
    ratio = statistics.median(mine / raw for mine, raw in zip(seconds, raws, strict=True))
    label = f"  {trainer.name:56}"
    print(f"{label}{1e3 * statistics.median(seconds):18.1f}{forwards:10}{backwards:10}{ratio:9.2f}", flush=True)


def main() -> None:
    parser = options(__doc__, models="mlp-200-200,lenet", rounds=5)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--only", default="attacks,trainers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = load_dataset("digits")
    if "attacks" in args.only:
        for name in args.models.split(","):
            of_attacks(name, data, args.images)
    if "trainers" in args.only:
        of_trainers(data, args.rounds)


if __name__ == "__main__":
    main()
