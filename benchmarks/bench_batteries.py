"""A battery against the reference AutoAttack, ART's, and a plain Foolbox script; one thread, process CPU seconds.

    python benchmarks/bench_batteries.py [--norm linf] [--eps 0.1,0.2] [--data-root DATA] [--images 1000] [--epochs 2]
        [--dataset mnist] [--defense standard | --victim MODEL] [--cache DIR] [--only ROWS]

A LeNet is trained on the data set (and its twin of another seed, that images are transferred from), or a model is taken
as ``gauntlet run --victim`` takes it. Then each battery of that norm (``linf``, ``l2`` or ``l1``) runs on the same
images at the data set's eps: ours as the runner runs it, with everything but the trust checks and the certificates of
the band. Whatever comes back is judged by the referee alone. A battery is better if it leaves less accuracy, and at
equal accuracy if it costs less. Ratios are within this one run.

The reference is its authors' code (``pyautoattack``, the standard version with its own numbers), asked at the largest
eps first and then at each for what stands. It runs under two seeds: the last lines count the images that it breaks and
the cascade leaves, beside those that one of its seeds misses of the other's. A model that draws at random is attacked
by all through the mean of as many draws, and judged by votes. ART's imitation (``--only art``) has a random search of
25,000 queries for every image that stands: a script is stopped at ``--patience`` times the cascade's cost, and its row
says where. Without a data folder (``--data-root`` or ``GAUNTLET_DATA``) nothing is measured.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import foolbox
import torch
from torch import Tensor, nn
from turns import passes

from defenses import defenses
from harness import determinism
from harness.attacks.transfer import inner
from harness.datasets.registry import DatasetInfo, DataSource
from harness.execution.jobs import Certify, Context, Craft, Examine, Judge, Plant, Prepare, Train
from harness.execution.memory import keep_freed
from harness.execution.scheduler import Scheduler
from harness.execution.worker import Worker
from harness.metrics.pairs import nearest
from harness.planning.plan import plan, specs
from harness.planning.specs import ModelSpec
from harness.planning.suite import Suite
from harness.records.boards import boards_from_home
from harness.records.checkpoints import has_model, load_model
from harness.records.home import Home
from harness.records.plans import plan_record, write_plan
from harness.records.provenance import declare
from harness.records.results import finish
from harness.schema.eps import limit
from harness.threat import Norm, Threat
from harness.training.trainer import Trainer
from harness.trust.admission import admit
from harness.victims.victim import Victim
from suites import suite

ROWS = {
    "cascade": "gauntlet, cascade",
    "sampled": "gauntlet, sampled cascade",
    "matrix": "gauntlet, full matrix",
    "reference": "AutoAttack",
    "again": "AutoAttack, another seed",
    "foolbox": "Foolbox alone",
    "art": "ART's AutoAttack",
}
BATCH = 250


@dataclass
class Tally:
    """What a battery costs, and at which of the eps values it lost each image."""

    grid: tuple[float, ...]
    reach: Tensor
    forwards: float = 0
    backwards: float = 0
    seconds: float = 0
    stopped: str = ""

    def left(self) -> list[float]:
        """Accuracy at each eps."""
        return [float(stands.float().mean()) for stands in self.standing()]

    def standing(self) -> list[Tensor]:
        """Which images are left at each eps, bool (N,)."""
        return [self.reach > eps * (1 + 1e-4) for eps in self.grid]

    def missed(self, other: Tally) -> list[Tensor]:
        """Which images another breaks and this leaves, positions at each eps."""
        return [(mine & ~its).nonzero() for mine, its in zip(self.standing(), other.standing(), strict=True)]


def gauntlet(
    cache: Path, spec: ModelSpec, source: DataSource, images: int, asked: Suite, *, cascade: bool, sampled: bool = False
) -> Tally:
    """A suite of one norm, as the runner runs it: results on disk, shard by shard, judged and certified.

    What decides whether a sampled one attacks the rest is looked at, and its cost left out like that of every check.
    """
    info = source.info()
    (norm,) = asked.attacks
    asked = asked.in_samples() if sampled else asked
    made = plan(asked, [spec], {info.name: info}, samples=images, cascade=cascade)
    for cell in made.cells:
        inner(cell.attack).warm_up()  # imports are no cost of anybody
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder)).create()
        (home.path / "models").symlink_to((cache / "models").resolve())
        write_plan(home, plan_record(made, "benchmark"))
        worker, graph = Worker(Context(home, {info.name: source})), Scheduler(made, home, print)
        seconds: Counter[str] = Counter()
        looks = (Train, Examine, Plant) if sampled else (Train,)
        while (task := graph.take()) is not None:
            job, start = task.payload, time.process_time()
            screening = isinstance(job, Certify) and job.certifications[0].intervals
            if screening or isinstance(job, (Prepare, Craft, Judge, *looks)):
                worker.run(job)
                if not isinstance(job, looks):
                    what = job.cell.attack.label if isinstance(job, Prepare | Craft | Judge) else "screen"
                    seconds[what] += time.process_time() - start
            graph.done(task.name)
        for cell in made.cells:
            finish(home.cell(cell.key), cell.shards, declare(home, cell, made))
        (board,) = boards_from_home(home)
    withheld = sum(pair.result.withheld for pair in board.pairs)
    print(f"  not shown to all attacks: {withheld} images, all eps together", file=sys.stderr, flush=True)
    grid = made.budgets[info.name][norm]
    distance = torch.from_numpy(nearest(board.pairs, norm)["distance"].to_numpy(copy=True))
    tally = Tally(grid, torch.full((images,), torch.inf), seconds=sum(seconds.values()))
    for eps in reversed(grid):
        tally.reach[distance <= limit(eps)] = eps
    tally.reach[distance == 0] = 0
    tally.forwards, tally.backwards = passes(board.pairs)
    for what, taken in seconds.most_common():
        print(f"  {what}: {taken:.1f} CPU s", file=sys.stderr, flush=True)
    return tally


class Enough(Exception):
    """A script has cost as much as anybody has patience for."""


Run = Callable[[Tensor, Tensor, float], Tensor]
"""An attack of a script: images, labels and eps to images."""


def script(
    victim: Victim,
    x: Tensor,
    y: Tensor,
    attacks: dict[str, Run],
    norm: Norm,
    grid: tuple[float, ...],
    limit: float,
    *,
    standing: bool,
) -> Tally:
    """Attacks one after another at each eps, the largest first, on images that the model gets right.

    All images are one batch: what a toolkit spends on each batch whatever its size, it spends once.

    Args:
        victim: The model.
        x: Images.
        y: Their labels.
        attacks: By name.
        norm: What they are judged in.
        grid: Values of eps.
        limit: CPU seconds after which it is stopped in the middle of an attack.
        standing: Whether an attack is shown only what none before it broke at that eps, or all.
    """
    tally = Tally(grid, torch.full((len(x),), torch.inf))
    right = torch.cat([victim.predict(part) for part in x.split(BATCH)]) == y
    tally.reach[~right] = 0
    for name, eps in ((name, eps) for name in attacks for eps in reversed(grid)):
        rows = (right & (tally.reach > eps) if standing else right).nonzero().squeeze(1)
        if not len(rows):
            continue
        determinism.seed_everything(0)
        start = time.process_time()
        x_adv = None
        with victim.counted() as cost, stopped_at(victim, start + limit - tally.seconds), suppress(Enough):
            x_adv = attacks[name](x[rows], y[rows], eps)
        seconds = time.process_time() - start
        tally.seconds += seconds
        tally.forwards += cost.forwards
        tally.backwards += cost.backwards
        print(f"  {name} at {eps}, {len(rows)} images: {seconds:.0f} CPU s", file=sys.stderr, flush=True)
        if x_adv is None:
            tally.stopped = f"stopped within {name} at {eps}"
            break
        good = Threat(norm, eps).within(x[rows], x_adv) & torch.isfinite(x_adv).flatten(1).all(1)
        lost = rows[good & (victim.predict(x_adv.clamp(0, 1)) != y[rows])]
        tally.reach[lost] = tally.reach[lost].clamp_max(eps)
    return tally


@contextmanager
def stopped_at(victim: Victim, deadline: float) -> Iterator[None]:
    """Let the victim raise :class:`Enough` from a moment of this process's CPU time on."""

    def look(*_: object) -> None:
        if time.process_time() > deadline:
            raise Enough

    hook = victim.register_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()


def reference(victim: Victim, norm: Norm, seed: int) -> dict[str, Run]:
    """AutoAttack of Croce & Hein 2020 as published: APGD on the cross-entropy, targeted APGD and FAB, Square."""
    from pyautoattack import AutoAttack

    def run(x: Tensor, y: Tensor, eps: float) -> Tensor:
        kind: Any = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
        attack = AutoAttack(victim, norm=kind, eps=eps, seed=seed)
        x_adv: Tensor = attack.run_standard_evaluation(x, y, batch_size=BATCH)[0]
        return x_adv

    return {"standard": run}


def autoattack(victim: Victim, norm: Norm, info: DatasetInfo) -> dict[str, Run]:
    """The parts of ART's AutoAttack, each by itself: so it can be seen how far it came."""
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    estimator = PyTorchClassifier(
        victim, nn.CrossEntropyLoss(), info.shape, len(info.classes), clip_values=(0.0, 1.0), device_type="cpu"
    )

    def part(number: int) -> Run:
        def run(x: Tensor, y: Tensor, eps: float) -> Tensor:
            p = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
            attack = evasion.AutoAttack(estimator, norm=p, eps=eps, eps_step=eps * 0.1, batch_size=len(x))
            attack.attacks = attack.attacks[number : number + 1]
            attack.attacks[0].verbose = False
            return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))

        return run

    return {name: part(number) for number, name in enumerate(("APGD-CE", "APGD-DLR", "DeepFool", "Square"))}


def foolbox_script(victim: Victim, norm: Norm) -> dict[str, Run]:
    """What Foolbox alone has of the battery's attacks, at its own defaults."""
    model = foolbox.PyTorchModel(victim, bounds=(0, 1), device="cpu")
    kinds = foolbox.attacks

    def plain(attack: foolbox.attacks.Attack) -> Run:
        return lambda x, y, eps: attack(model, x, y, epsilons=eps)[1]

    if norm == "l1":
        return {
            "one step": plain(kinds.L1FastGradientAttack()),
            "pgd": plain(kinds.L1PGD(steps=100)),
            "pgd again": plain(kinds.L1AdamPGD(steps=100)),
            "sparse descent": plain(kinds.SparseL1DescentAttack(steps=100)),
            "fmn": plain(kinds.L1FMNAttack()),
            "ead": plain(kinds.EADAttack(binary_search_steps=3, steps=300)),
        }
    if norm == "l2":
        return {
            "noise": plain(kinds.L2AdditiveGaussianNoiseAttack()),
            "one step": plain(kinds.L2FastGradientAttack()),
            "pgd": plain(kinds.L2PGD(steps=100)),
            "pgd again": plain(kinds.L2AdamPGD(steps=100)),
            "deepfool": plain(kinds.L2DeepFoolAttack()),
            "ddn": plain(kinds.DDNAttack()),
            "fmn": plain(kinds.L2FMNAttack()),
        }
    return {
        "noise": plain(kinds.LinfAdditiveUniformNoiseAttack()),
        "one step": plain(kinds.LinfFastGradientAttack()),
        "pgd": plain(kinds.LinfPGD(steps=100)),
        "pgd again": plain(kinds.LinfAdamPGD(steps=100)),
        "deepfool": plain(kinds.LinfDeepFoolAttack()),
        "fmn": plain(kinds.LInfFMNAttack()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--norm", choices=["linf", "l2", "l1"], default="linf")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-root", type=Path, default=os.environ.get("GAUNTLET_DATA"))
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--defense", default="standard")
    parser.add_argument("--victim", help="a model as gauntlet run names it, instead of a LeNet")
    parser.add_argument("--eps", help="others than the data set's, ascending, separated by commas")
    parser.add_argument(
        "--only", default="matrix,reference,again,foolbox", help="rows, beside the cascade that all are compared with"
    )
    parser.add_argument("--patience", type=float, default=10, help="stop a script at so many times the cascade's cost")
    options = parser.parse_args()
    if not options.data_root:
        print("no data folder: give --data-root or GAUNTLET_DATA")
        return
    torch.set_num_threads(1)
    keep_freed()  # as workers do, and all rows of this process alike
    source = DataSource(options.dataset, root=options.data_root)
    data, info = source.load(), source.info()
    trainers = {name: kind for name, kind in defenses().items() if issubclass(kind, Trainer)}
    if options.defense not in trainers:
        parser.error(f"no trainer {options.defense}; there are {', '.join(trainers)}")
    cache = options.cache or Path(tempfile.mkdtemp())
    if options.victim:
        guest = admit(options.victim, data, fetched=cache / "fetched", thorough=False)
        guest.register(Home(cache).create())
        spec = guest.spec
        what = Path(options.victim.partition("?")[0]).name
    else:
        (spec,) = specs([info], ["lenet"], [trainers[options.defense](epochs=options.epochs)], [0])
        what = f"LeNet ({options.defense}, {options.epochs} epochs)"
    norm: Norm = options.norm
    grid = tuple(float(Fraction(word)) for word in options.eps.split(",")) if options.eps else info.budgets[norm]
    battery = suite(norm).at({norm: grid})
    worker = Worker(Context(Home(cache).create(), {info.name: source}))
    for wanted in plan(battery, [spec], {info.name: info}).models:
        if not has_model(Home(cache), wanted):
            worker.run(Train(wanted))
    model = load_model(Home(cache), spec, info)
    _, (x, y) = data.test_sample(options.images)
    remedy = spec.defense.remedy
    victim = Victim(model, classes=len(info.classes), remedy=remedy, votes=remedy.calls)
    limits = [math.inf]
    ours = partial(gauntlet, cache, spec, source, options.images, battery)
    theirs = partial(script, victim, x, y)
    runs: dict[str, Callable[[], Tally]] = {
        "cascade": lambda: ours(cascade=True),
        "sampled": lambda: ours(cascade=True, sampled=True),
        "matrix": lambda: ours(cascade=False),
        "reference": lambda: theirs(reference(victim, norm, 0), norm, grid, math.inf, standing=True),
        "again": lambda: theirs(reference(victim, norm, 1), norm, grid, math.inf, standing=True),
        "foolbox": lambda: theirs(foolbox_script(victim, norm), norm, grid, limits[0], standing=False),
        "art": lambda: theirs(autoattack(victim, norm, info), norm, grid, limits[0], standing=True),
    }
    print(f"{what}, {len(x)} {info.name} images, {norm} eps {grid}")
    print(f"{'':28}{'left at each eps':>24}{'CPU s':>10}{'forwards/img':>14}{'backwards/img':>15}{'seconds':>9}")
    base = None
    tallies: dict[str, Tally] = {}
    for name in ("cascade", *(name for name in ROWS if name in options.only.split(",") and name != "cascade")):
        tally = tallies[name] = runs[name]()
        base = base or tally.seconds
        limits[0] = options.patience * base
        left = " ".join(f"{value:7.1%}" for value in tally.left())
        passes = f"{tally.forwards / len(x):14.0f}{tally.backwards / len(x):15.0f}"
        ratio = f"{tally.seconds / base:8.2f}x"
        print(f"{ROWS[name]:28}{left:>24}{tally.seconds:10.1f}{passes}{ratio} {tally.stopped}".rstrip(), flush=True)
    for one, other in (
        ("reference", "cascade"),
        ("cascade", "reference"),
        ("reference", "again"),
        ("again", "reference"),
    ):
        if one in tallies and other in tallies:
            missed = [len(images) for images in tallies[other].missed(tallies[one])]
            print(f"broken by {ROWS[one]}, left by {ROWS[other]}, at each eps: {missed}")


if __name__ == "__main__":
    main()
