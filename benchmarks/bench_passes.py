"""Every attack and every trainer against the raw cost of its own forward and backward passes; one thread, CPU seconds.

    python benchmarks/bench_passes.py [--models mlp-200-200,lenet] [--images 100] [--rounds 5]
        [--only attacks,profile,trainers]

Attacks are those of every suite, at the middle eps of the embedded digits, on briefly trained networks: passes of the
dense one are so cheap that whatever an attack does beside them shows. Of studies, those of a name that no suite has and
those that prepare, one of each name, at the eps of the smoke profile. A transfer costs what crafting on its source
does; a preparation is a row of its own, an image a training image. Passes are those that the attack asked for, counted
by the victim, at the cost of bare passes on batches of the mean size it asked for. An attack that would take long is
shown fewer images.

Of four attacks a profile follows: how many of torch's operators they run for each forward pass, beside those of the
bare passes, and how long one of the others takes. Where that is a few microseconds, it is the price of calling it.

A trainer's step is compared with its own passes through the network, counted by hooks, and through its opponent where
it has one: the generative adversarial trainer's generator costs several times what a LeNet does. Beside them are the
optimizers' updates. Ratios near 1 leave nothing to gain but fewer passes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from turns import cpu, options

from defenses import defenses
from defenses.standard import Standard
from harness import determinism
from harness.attacks.apgd import APGD
from harness.attacks.base import Attack
from harness.attacks.fmn import MinimumNorm
from harness.attacks.lbfgs import LBFGS
from harness.attacks.square import Square
from harness.attacks.transfer import Transfer
from harness.datasets.registry import Dataset, DatasetInfo, load_dataset
from harness.execution.memory import keep_freed
from harness.models.registry import build_model
from harness.models.stages import Stages
from harness.studies.experiment import design
from harness.threat import Threat
from harness.training.optim import descend
from harness.training.trainer import Trainer
from harness.victims.victim import Victim
from suites import studies, suites

FEW = 10
"""Images that an attack is tried on before it is measured."""

LONG = 15.0
"""CPU seconds that an attack may take, to judge by those few; beyond that it gets fewer images than the others."""

SHORT = 0.1
"""CPU seconds on those few below which an attack is measured five times: the median counts."""


def every_attack(info: DatasetInfo) -> Iterator[tuple[Attack, Threat]]:
    """Every attack of a suite, each label and norm once; of studies, what has another name or prepares."""
    seen = set()
    for battery in suites().values():
        grid = battery.grid(info)
        for norm, attacks in battery.attacks.items():
            for attack in attacks:
                if (attack.label, norm) not in seen:
                    seen |= {(attack.label, norm), _sort(attack)}
                    middle = grid[norm][len(grid[norm]) // 2]
                    yield attack, Threat(norm, middle if attack.kind == "budget" else None)
    for study in studies().values():
        for cell in design(study, "smoke", info, suites()).plan.cells:
            if _sort(cell.attack) not in seen:
                seen.add(_sort(cell.attack))
                yield cell.attack, cell.threat


def _sort(attack: Attack) -> tuple[str, bool]:
    return attack.label.split("(")[0], attack.prepares


Cost = tuple[float, float, float, list[int]]


def measured(work: Callable[[], object], victim: Victim) -> Cost:
    """CPU seconds, forward and backward passes in images, and the sizes of the batches asked for."""
    sizes: list[int] = []
    hook = victim.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    determinism.seed_everything(0)
    with victim.counted() as cost:
        seconds = cpu(work)
    hook.remove()
    return seconds, cost.forwards, cost.backwards, sizes


def bare(model: nn.Module, x: Tensor, y: Tensor, repeats: int = 20) -> tuple[float, float]:
    """CPU seconds per image of a forward pass without gradients, and of a backward pass to the image."""

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
    @lru_cache
    def trained(defense: type[Trainer], seed: int) -> Victim:
        determinism.seed_everything(seed)
        model = defense(epochs=5).resolve(data.info).fit(name, data).model
        return Victim(model.requires_grad_(False), classes=10)

    victim = trained(Standard, 0)
    _, (x, y) = data.test_sample(min(images, data.info.test_size or images))
    _, (x_train, y_train) = data.train_sample(images)
    keep = victim.predict(x) == y
    x, y = x[keep], y[keep]
    print(f"\n{name}: attacks on digits")
    print(f"{'norm':>6}{'images':>8}{'CPU ms/img':>12}{'forwards':>10}{'backwards':>11}{'of bare':>9}  attack")
    for attack, threat in every_attack(data.info):
        crafter = trained(type(attack.defense), 1) if isinstance(attack, Transfer) else victim
        attack.warm_up()
        if attack.prepares:
            attack = prepared(attack, threat, crafter, x_train, y_train)
        one_attack(attack, threat, crafter, x, y)


def prepared(attack: Attack, threat: Threat, victim: Victim, x: Tensor, y: Tensor) -> Attack:
    made = []
    cost = measured(lambda: made.append(attack.prepare(victim, x, y)), victim)
    row("preparation of the next", threat, cost, victim, x, y)
    return made[0]


def one_attack(attack: Attack, threat: Threat, victim: Victim, x: Tensor, y: Tensor) -> None:
    few = measured(lambda: attack(victim, x[:FEW], y[:FEW], threat), victim)[0]
    n = min(len(x), max(FEW, int(FEW * LONG / max(few, 1e-9))))
    x, y = x[:n], y[:n]
    costs = [measured(lambda: attack(victim, x, y, threat), victim) for _ in range(5 if few < SHORT else 1)]
    row(attack.label, threat, sorted(costs)[len(costs) // 2], victim, x, y)


class Operators(TorchDispatchMode):
    """Counts the operators that torch runs in a block, in either direction."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def of_steps(name: str, data: Dataset) -> None:
    """Where the time goes beside the passes: operators of four attacks, the number and the CPU microseconds of each."""
    determinism.seed_everything(0)
    model = Standard(epochs=5).resolve(data.info).fit(name, data).model
    victim = Victim(model.requires_grad_(False), classes=10)
    _, (x, y) = data.test_sample(100)
    x, y = x[keep := victim.predict(x) == y], y[keep]
    middle = data.info.budgets["linf"][len(data.info.budgets["linf"]) // 2]
    print(f"\n{name}: operators for each forward pass of a batch")
    print(f"{'attack':40}{'all':>6}{'of the passes':>15}{'us of each other':>18}{'of bare':>9}")
    for attack, threat in (
        (APGD(), Threat("linf", middle)),
        (MinimumNorm(), Threat("linf")),
        (LBFGS(), Threat("l2")),
        (Square(queries=1000), Threat("linf", middle)),
    ):

        def work(attack: Attack = attack, threat: Threat = threat) -> None:
            attack(victim, x, y, threat)

        work()
        seconds, forwards, backwards, sizes = sorted(measured(work, victim) for _ in range(5))[2]
        determinism.seed_everything(0)
        with Operators() as operators:
            work()
        forward, backward = bare(victim, x[: round(statistics.mean(sizes))], y[: round(statistics.mean(sizes))])
        raw = forwards * forward + backwards * backward
        both = bare_operators(victim, x, y)
        own = both[0] + both[1] * backwards / forwards
        others = operators.count / len(sizes) - own
        each = 1e6 * (seconds - raw) / len(sizes) / others
        counts = f"{operators.count / len(sizes):6.0f}{own:15.0f}{each:18.1f}"
        print(f"  {attack.label:38}{counts}{seconds / raw:9.2f}", flush=True)


def bare_operators(model: nn.Module, x: Tensor, y: Tensor) -> tuple[int, int]:
    """Operators of a forward pass without gradients, and of a backward pass to the image."""
    with Operators() as forward, torch.no_grad():
        model(x)
    with Operators() as both:
        images = x.clone().requires_grad_(True)
        torch.autograd.grad(F.cross_entropy(model(images), y, reduction="sum"), images)
    return forward.count, both.count - forward.count


def row(label: str, threat: Threat, cost: Cost, victim: Victim, x: Tensor, y: Tensor) -> None:
    seconds, forwards, backwards, sizes = cost
    n = len(x)
    size = min(max(round(statistics.mean(sizes)), 1), n) if sizes else n
    forward, backward = bare(victim, x[:size], y[:size])
    raw = forwards * forward + backwards * backward
    ratio = f"{seconds / raw:9.2f}" if raw else f"{'-':>9}"
    passes = f"{forwards / n:10.1f}{backwards / n:11.1f}"
    print(f"{threat.norm:>6}{n:8}{1e3 * seconds / n:12.2f}{passes}{ratio}  {label}", flush=True)


class Counter:
    """Counts the passes through a network while it trains, in either direction, by its first layer."""

    def __init__(self, network: nn.Module) -> None:
        self.forwards = self.backwards = 0
        first = next(part for part in network.modules() if not any(part.children()))
        first.register_forward_hook(self._count)

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
    print(f"{'':52}{'CPU ms':>12}{'forwards':>10}{'backwards':>10}{'opponent':>12}{'of bare':>9}")
    for kind in defenses().values():
        trainer = kind().resolve(data.info)
        if isinstance(trainer, Trainer) and trainer.epochs:  # else the network itself is not trained
            one_trainer(trainer, name, x, y, rounds)


def one_trainer(trainer: Trainer, name: str, x: Tensor, y: Tensor, rounds: int) -> None:
    torch.manual_seed(0)
    model = build_model(name, (1, 28, 28), 10).train()
    assert isinstance(model, Stages)
    opponent = trainer.opponent(load_dataset("digits").info)
    playing = trainer if opponent is None else trainer.against(opponent)
    # the opponent answers with a perturbation: any loss of it costs a bare pass
    losses: dict[nn.Module, Callable[[Tensor], Tensor]] = {model: lambda logits: F.cross_entropy(logits, y)}
    if opponent is not None:
        losses[opponent] = lambda perturbation: perturbation.square().mean()
    updates = {network: torch.optim.Adam(network.parameters(), lr=1e-4) for network in losses}
    counters = {network: Counter(network) for network in losses}
    playing.step(model, updates[model], x.clone(), y)
    passes = {network: (counter.forwards, counter.backwards) for network, counter in counters.items()}

    seconds, raws, others = [], [], []
    for _ in range(rounds):
        raw = {network: bare_training(network, loss, updates[network], x) for network, loss in losses.items()}
        costs = {of: passes[of][0] * forward + passes[of][1] * backward for of, (forward, backward) in raw.items()}
        raws.append(sum(costs.values()))
        others.append(costs[opponent] if opponent is not None else 0.0)
        seconds.append(cpu(lambda: playing.step(model, updates[model], x.clone(), y)))
    ratio = statistics.median(mine / raw for mine, raw in zip(seconds, raws, strict=True))
    other = f"{1e3 * statistics.median(others):10.1f}" if opponent is not None else f"{'-':>10}"
    counts = f"{passes[model][0]:10}{passes[model][1]:10}"
    print(f"  {trainer.name:50}{1e3 * statistics.median(seconds):12.1f}{counts}{other:>12}{ratio:9.2f}", flush=True)


def bare_training(
    network: nn.Module, loss: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, x: Tensor
) -> tuple[float, float]:
    """CPU seconds of a forward pass of a batch while training, and of a backward pass with its update."""
    once = cpu(lambda: network(x))
    return once, max(cpu(lambda: descend(optimizer, loss(network(x)))) - once, 0.0)


def main() -> None:
    parser = options(__doc__, models="mlp-200-200,lenet", rounds=5)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--only", default="attacks,profile,trainers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed()  # as workers do, and all rows of this process alike
    data = load_dataset("digits")
    if "attacks" in args.only:
        for name in args.models.split(","):
            of_attacks(name, data, args.images)
    if "profile" in args.only:
        for name in args.models.split(","):
            of_steps(name, data)
    if "trainers" in args.only:
        of_trainers(data, args.rounds)


if __name__ == "__main__":
    main()
