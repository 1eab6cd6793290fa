"""Every path that a GPU takes, and what it costs there: at most nine minutes on one card.

    python benchmarks/gpu.py [--device cuda] [--data-root DATA] [--small] [--minutes 9] [--page docs/performance-gpu.md]

In this order, until the time is up; what was not begun then is named, and the exit status is 1 if anything differs:

* every attack, a training step of every defense, and certificates, against the CPU's: the same images broken, losses
  and bounds the same up to rounding; and a batch that does not fit into the card's memory, shrunk for it;
* ``linf --cascade`` on a LeNet with 10,000 MNIST images, and on a ResNet-18 with 1,000 of CIFAR (the one that comes
  with ``pyautoattack``; without CIFAR on random images), with the share of the forward rate that the card reaches on
  full batches;
* L-BFGS against SciPy's, image by image.

``--small`` takes few images of small networks, and any device: what the tests run. Seconds are wall time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import networks
import torch
import torch.nn.functional as F
from bench_lbfgs import scipy_attack
from bench_passes import every_attack
from torch import Tensor, nn
from turns import passes

import gauntlet
from defenses import defenses
from defenses.standard import Standard
from harness import determinism
from harness.attacks._targeted import choose_target
from harness.attacks.lbfgs import LBFGS
from harness.attacks.transfer import inner
from harness.certify import certify
from harness.datasets.registry import Dataset, DatasetInfo, load_dataset
from harness.environment import git_commit
from harness.errors import UserError
from harness.models.registry import build_model
from harness.records.boards import boards_from_home
from harness.records.home import Home
from harness.schema.eps import eps_text
from harness.threat import Threat
from harness.training.trainer import Trainer
from harness.victims.victim import Victim

SLACK = 0.05
"""Share of the images on which device and CPU may differ: a path that rounds otherwise may end beside a boundary."""

CLOSE = 1e-3
"""Relative difference of a loss or a bound."""


@dataclass(frozen=True)
class Sizes:
    """How much of each."""

    compared: int
    images: int
    photographs: int
    batches: tuple[int, ...]
    scipy: int


FULL = Sizes(compared=64, images=10_000, photographs=1_000, batches=(256, 1024, 4096, 10_000), scipy=20)
SMALL = Sizes(compared=6, images=6, photographs=2, batches=(4, 8), scipy=2)


@dataclass
class Card:
    """The device under test, the data, and what was found.

    Attributes:
        differences: What is not as on the CPU, a line each.
    """

    device: torch.device
    sizes: Sizes
    root: Path | None
    small: bool
    differences: list[str]

    @property
    def digits(self) -> Dataset:
        """The embedded data."""
        return load_dataset("digits")

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object]) -> float:
        """Wall time."""
        self.synchronize()
        start = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - start

    def note(self, differs: bool, what: str) -> str:
        """A mark for a line of the output; what differs is kept."""
        if differs:
            self.differences.append(what)
        return "DIFFERS" if differs else ""


def trained(name: str, data: Dataset, epochs: int, device: str | torch.device) -> nn.Module:
    determinism.seed_everything(0)
    trainer = Standard(epochs=epochs).resolve(data.info)
    return trainer.fit(name, data, device=device).model.eval().requires_grad_(False)


def attacks(card: Card) -> Iterator[str]:
    """The same images broken, attack by attack."""
    data = card.digits
    model = trained("mlp-32" if card.small else "lenet", data, 3, "cpu")
    _, (x, y) = data.test_sample(card.sizes.compared)
    _, (x_train, y_train) = data.train_sample(card.sizes.compared)
    victims = {place: Victim(model, classes=10, device=place) for place in ("cpu", card.device)}
    yield f"{'':72}{'norm':>6}{'CPU':>8}{'device':>8}{'CPU s':>9}{'device s':>9}"
    for attack, threat in every_attack(data.info):
        found = []
        for place, victim in victims.items():
            own, (images, labels) = inner(attack), (part.to(place) for part in (x, y))
            determinism.seed_everything(0)
            if own.prepares:
                own = own.prepare(victim, x_train.to(place), y_train.to(place))
            own.warm_up()
            made: list[Tensor] = []
            seconds = card.seconds(lambda: made.append(own(victim, images, labels, threat)))  # noqa: B023
            found.append((int((victim.predict(made[0].clamp(0, 1)) != labels).sum()), seconds))
        (mine, slow), (its, fast) = found
        mark = card.note(abs(mine - its) > max(1, SLACK * len(x)), f"{attack.label} ({threat.norm})")
        yield f"  {attack.label[:69]:70}{threat.norm:>6}{mine:8}{its:8}{slow:9.2f}{fast:9.2f} {mark}"


def training(card: Card) -> Iterator[str]:
    """A step of every defense: the loss of the first, and the time of another."""
    name, shape = ("mlp-32", (1, 8, 8)) if card.small else ("lenet", (1, 28, 28))
    size = 8 if card.small else 256
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(size, *shape, generator=generator), torch.randint(10, (size,), generator=generator)
    info: DatasetInfo = card.digits.info
    yield f"{'a step on ' + str(size) + ' images':58}{'CPU loss':>12}{'device':>12}{'CPU s':>9}{'device s':>9}"
    for kind in defenses().values():
        trainer = kind().resolve(info)
        if not (isinstance(trainer, Trainer) and trainer.epochs):  # the others are made of trained ones
            continue
        found = []
        for place in ("cpu", card.device):
            determinism.seed_everything(0)
            model = build_model(name, shape, 10).to(place).train()
            images, labels = x.to(place), y.to(place)
            try:
                opponent = trainer.opponent(info)
                playing = trainer if opponent is None else trainer.against(opponent.to(place))
                optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
                playing.step(model, optimizer, images.clone(), labels)
            except UserError as error:
                yield f"  {trainer.name:56} {error}"
                break
            seconds = card.seconds(lambda: playing.step(model, optimizer, images.clone(), labels))  # noqa: B023
            with torch.no_grad():
                found.append((float(F.cross_entropy(model.eval()(images), labels)), seconds))
        else:
            (mine, slow), (its, fast) = found
            # random numbers are drawn on the device: a step that draws another noise ends a little elsewhere
            mark = card.note(abs(mine - its) > 0.05 * max(abs(mine), 1), f"a step of {trainer.name}")
            yield f"  {trainer.name:56}{mine:12.5f}{its:12.5f}{slow:9.3f}{fast:9.3f} {mark}"


def certificates(card: Card) -> Iterator[str]:
    """Bounds in either norm."""
    data = card.digits
    model = trained("mlp-32", data, 3, "cpu")
    _, (x, y) = data.test_sample(card.sizes.compared)
    for threat in (Threat("linf", 0.02), Threat("l2", 0.1)):
        mine, its = (
            certify(model.to(place), x.to(place), y.to(place), threat).margins.cpu() for place in ("cpu", card.device)
        )
        apart = float(((mine - its).abs() / mine.abs().clamp_min(1)).max())
        mark = card.note(not apart <= CLOSE, f"certificates in {threat.norm}")
        yield f"  {threat.norm}: margins apart by {apart:.1e} at most {mark}"


def memory(card: Card) -> Iterator[str]:
    """A batch that does not fit is done in parts, with the same logits."""
    if card.device.type != "cuda":
        yield "  out of memory: asked of a CUDA device alone"
        return
    model = build_model("allconv", (3, 32, 32), 10)
    victim, x = Victim(model, device=card.device), torch.rand(8192, 3, 32, 32)
    usual = torch.cat([victim.logits(part) for part in x.split(64)])
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(card.device)
    torch.cuda.set_per_process_memory_fraction((total - free + 2**29) / total, card.device)
    try:
        found = victim.logits(x)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, card.device)
    apart = float((usual - found).abs().max())
    mark = card.note(apart > 1e-2, "memory")
    yield f"  8,192 images in half a GiB: in parts of {victim.chunk}, logits apart by {apart:.1e} {mark}"


def rate(card: Card, model: nn.Module, shape: tuple[int, ...]) -> float:
    """Images a second in forward passes of the best batch, without gradients."""
    best, model = 0.0, model.to(card.device).eval()
    for size in card.sizes.batches:
        x = torch.rand(size, *shape, device=card.device)
        with torch.no_grad():
            model(x)
            times = max(1, min(20, 20_000 // size))
            taken = card.seconds(lambda: [model(x) for _ in range(times)])  # noqa: B023
        best = max(best, size * times / taken)
    return best


def battery(card: Card, model: nn.Module, data: Dataset, images: int, eps: str | None = None) -> Iterator[str]:
    """The strongest L-infinity battery, as a cascade."""
    x, y = data.test_sample(images)[1]
    peak = rate(card, model, tuple(x.shape[1:]))
    start = time.perf_counter()
    how = {"eps": eps, "cascade": True, "health": False, "progress": False, "device": card.device, "dataset": data}
    with tempfile.TemporaryDirectory() as folder:
        found = gauntlet.evaluate(model, x, y, "linf", home=folder, **how)
        seconds = time.perf_counter() - start
        (board,) = boards_from_home(Home(Path(folder)))
    left = ", ".join(f"{one['accuracy']:.1%} at {eps_text(one['eps'])}" for one in found.attrs["worst_case"])
    forwards, backwards = passes(board.pairs)
    busy = (forwards + 2 * backwards) / peak / seconds
    yield f"  {len(x)} images: {seconds:.0f} s, {len(x) / seconds:.1f} images a second; left {left}"
    each = f"{forwards / len(x):.0f} forward and {backwards / len(x):.0f} backward passes an image"
    yield f"  {each}; {peak:,.0f} forward passes a second at best, {busy:.0%} of which the battery reaches"
    if card.device.type == "cuda":
        yield f"  peak memory {torch.cuda.max_memory_allocated(card.device) / 2**30:.1f} GiB"


def digits_or_mnist(card: Card) -> Iterator[str]:
    data = load_dataset("mnist", root=card.root) if card.root and not card.small else card.digits
    name = "mlp-32" if card.small else "lenet"
    yield f"{name}, {data.info.name}, trained for 2 epochs"
    yield from battery(card, trained(name, data, 2, card.device).cpu(), data, card.sizes.images)


def resnet(card: Card) -> Iterator[str]:
    model, said = resnet18()
    if card.root:
        data = load_dataset("cifar10-jpeg", root=card.root)
    else:
        yield f"{said}: no CIFAR in --data-root"
        return
    yield f"{said}, {data.info.name}, L-infinity 8/255"
    yield from battery(card, model, data, card.sizes.photographs, "8/255")


def resnet18() -> tuple[nn.Module, str]:
    """The ResNet-18 that comes with pyautoattack; without it one with random weights."""
    try:
        return networks.pretrained().eval(), "ResNet-18 of pyautoattack"
    except ModuleNotFoundError as error:
        return networks.small().eval(), f"ResNet-18 with random weights ({error})"


def lbfgs(card: Card) -> Iterator[str]:
    """Ours in one batch on the device against SciPy's on the CPU, on the same objective."""
    data = load_dataset("mnist", root=card.root) if card.root and not card.small else card.digits
    model = trained("mlp-32" if card.small else "lenet", data, 1, card.device)
    victim = Victim(model, device=card.device)
    _, (x, y) = data.test_sample(card.sizes.images)
    x, y = x.to(card.device), y.to(card.device)
    keep = victim.predict(x) == y
    x, y = x[keep], y[keep]
    LBFGS(c=1.0)(victim, x[:2], y[:2], Threat("l2"))
    ours = card.seconds(lambda: LBFGS(c=1.0)(victim, x, y, Threat("l2"))) / len(x)
    few = x[: card.sizes.scipy].cpu()
    target = choose_target(victim(few.to(card.device)), y[: len(few)], "second").cpu()
    theirs = card.seconds(lambda: scipy_attack(model.cpu(), few, target, 1.0, {})) / len(few)
    ratio = f"SciPy {1e3 * theirs:.0f} ms: {theirs / ours:.0f} times"
    yield f"  {len(x)} images in one batch: {1e3 * ours:.2f} ms an image; {ratio}"


PARTS: dict[str, Callable[[Card], Iterator[str]]] = {
    "Attacks against the CPU's": attacks,
    "Training against the CPU's": training,
    "Certificates against the CPU's": certificates,
    "More than fits": memory,
    "The linf battery, as a cascade": digits_or_mnist,
    "The linf battery on a ResNet-18": resnet,
    "L-BFGS": lbfgs,
}


def main() -> None:
    """Run every part that there is time for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data-root", type=Path, default=os.environ.get("GAUNTLET_DATA"))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    card = Card(device, SMALL if options.small else FULL, options.data_root, options.small, [])
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    lines = [f"{name}; torch {torch.__version__}; commit {git_commit() or 'unknown'}"]
    print(lines[0], flush=True)
    start, left = time.perf_counter(), []
    for title, part in PARTS.items():
        if time.perf_counter() - start > 60 * options.minutes:
            left.append(title)
            continue
        for line in (f"\n{title}", *part(card)):
            lines.append(line.rstrip())
            print(lines[-1], flush=True)
    ends = [f"not begun for lack of time: {', '.join(left)}"] if left else []
    ends += [f"differs from the CPU: {what}" for what in card.differences]
    lines += ["", *(ends or ["nothing differs from the CPU"])]
    print("\n".join(lines[-len(ends or [""]) :]))
    if options.page:
        head = f"# Performance on a GPU\n\nWritten by `python {' '.join(sys.argv)}`. Seconds are wall time.\n\n"
        options.page.write_text(f"{head}```text\n" + "\n".join(lines) + "\n```\n")
    sys.exit(bool(card.differences))


if __name__ == "__main__":
    main()
