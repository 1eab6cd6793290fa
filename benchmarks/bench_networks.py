"""What a real network costs: the linf battery as a cascade on ResNet-18, from the command to the report.

    python benchmarks/bench_networks.py --data-root DATA [--rows plain,robust,large] [--jobs 2] [--cache DIR]

* ``plain``: the ResNet-18 that comes with pyautoattack, trained on nothing but images; 500 of CIFAR-10 at 8/255.
* ``robust``: a ResNet-18 trained here on 50,000 images, one fast-gradient step from a random start each (Wong et al.
  2020, arXiv:2001.03994), in bfloat16; the same 500 images and eps.
* ``large``: torchvision's resnet18, trained so on 6,000 of CIFAR's images enlarged to 224x224; 200 of them at 4/255,
  read from a folder of files.

Training takes a quarter of an hour each on one core and is not counted; ``--cache`` keeps it. Everything else is: the
command is run as a user runs it, with all checks. Memory is what all its processes have at one time, shared pages
shared out among them, looked at once a second; on Linux alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import networks
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image
from turns import passes, spent

from defenses.pgd import Pgd
from harness.datasets.registry import Dataset, DataSource
from harness.execution.memory import keep_freed
from harness.metrics.pairs import worst_case
from harness.records.boards import boards_from_home
from harness.records.home import Home
from harness.training.optim import set_lr
from harness.training.precision import computing

LARGE = 224
BATCH = 128
LR = 0.1


@dataclass(frozen=True)
class Row:
    """A network, and what is asked of it."""

    title: str
    images: int
    eps: str
    trained_on: int = 0


ROWS = {
    "plain": Row("ResNet-18 of pyautoattack, 32x32", 500, "8/255"),
    "robust": Row("ResNet-18 trained with fast-gradient steps, 32x32", 500, "8/255", trained_on=50_000),
    "large": Row("resnet18 trained with fast-gradient steps, 224x224", 200, "4/255", trained_on=6_000),
}


def enlarged(x: Tensor) -> Tensor:
    """Images at 224x224 pixels, as ``--resize 224`` makes them up to rounding."""
    return F.interpolate(x, (LARGE, LARGE), mode="bilinear", antialias=True)


def train(model: Any, data: Dataset, images: int, eps: float, *, large: bool) -> None:
    """One pass over so many images, mirrored by chance; the learning rate rises for three tenths, then falls to 0."""
    torch.manual_seed(0)
    trainer = Pgd(eps=eps, steps=1, rel_step_size=1.25)
    batch = BATCH // 4 if large else BATCH
    order = torch.randperm(len(data.x_train))[:images].split(batch)  # type: ignore[no-untyped-call]
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    model.to(memory_format=torch.channels_last).train()
    with computing([model], "bfloat16", compiled=False):
        for n, rows in enumerate(order):
            set_lr(optimizer, LR * min(n / (0.3 * len(order)), (len(order) - n) / (0.7 * len(order))))
            x, y = data.to_float(data.x_train[rows]), data.y_train[rows]
            x = torch.where((torch.rand(len(x)) < 0.5).view(-1, 1, 1, 1), x.flip(3), x)
            x = (enlarged(x) if large else x).contiguous(memory_format=torch.channels_last)
            trainer.step(model, optimizer, x, y)


def victim(name: str, data: Dataset, cache: Path) -> str:
    """What ``--victim`` is given, trained where it was not yet."""
    row = ROWS[name]
    if not row.trained_on:
        return f"{networks.__file__}:pretrained"
    weights = cache / f"{name}.pt"
    built = "large" if name == "large" else "small"
    if not weights.exists():
        model: nn.Module = getattr(networks, built)()
        start = time.perf_counter()
        train(model, data, row.trained_on, float(Fraction(row.eps)), large=built == "large")
        print(f"{row.title}: trained for {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        torch.save({key: value.contiguous() for key, value in model.state_dict().items()}, weights)
    return f"{networks.__file__}:{built}?state_dict={weights}"


def folder_of(data: Dataset, images: int, path: Path) -> Path:
    """A folder of test images by class, as many files as are asked for."""
    _, (x, y) = data.test_sample(images)
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        place = path / "test" / data.info.classes[int(label)]
        place.mkdir(parents=True, exist_ok=True)
        to_pil_image(image).save(place / f"{i:04}.png")
    return path


def held(root: int) -> int:
    """Bytes of memory of a process and all below it."""
    total = 0
    try:
        total = 1024 * int(Path(f"/proc/{root}/smaps_rollup").read_text().split("Pss:")[1].split()[0])
        below = [
            word for task in Path(f"/proc/{root}/task").iterdir() for word in (task / "children").read_text().split()
        ]
    except (OSError, IndexError):  # it has just ended, or the system has no such files
        return total
    return total + sum(held(int(child)) for child in below)


def measured(command: list[str]) -> tuple[float, float, int]:
    """Seconds of the wall, CPU seconds and peak bytes of a command."""
    wall, cpu, peak = time.perf_counter(), spent()[1], 0
    process = subprocess.Popen(command, stdout=sys.stderr)
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(1.0):
            peak = max(peak, held(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    ended.set()
    watcher.join()
    if code:
        sys.exit(f"{' '.join(command)} ended with status {code}")
    return time.perf_counter() - wall, spent()[1] - cpu, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=os.environ.get("GAUNTLET_DATA"))
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--images", type=int, help="of every row, in place of its own number")
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    if not options.data_root:
        print("no data folder: give --data-root or GAUNTLET_DATA")
        return
    if unknown := set(options.rows.split(",")) - set(ROWS):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    torch.set_num_threads(1)
    keep_freed()
    data = DataSource("cifar10-jpeg", root=options.data_root).load()
    with tempfile.TemporaryDirectory() as scratch:
        cache = options.cache or Path(scratch)
        cache.mkdir(parents=True, exist_ok=True)
        print(f"gauntlet run linf --cascade --jobs {options.jobs}, cifar10-jpeg")
        for name in options.rows.split(","):
            row, home = ROWS[name], Path(scratch) / f"home-{name}"
            row = replace(row, images=options.images or row.images)
            command = [sys.executable, "-m", "gauntlet", "run", "linf", "--cascade", "--samples", str(row.images)]
            command += ["--victim", victim(name, data, cache), "--eps", row.eps, "--jobs", str(options.jobs)]
            command += ["--home", str(home), "--data-root", str(options.data_root)]
            if name == "large":
                files = folder_of(data, row.images, Path(scratch) / "images")
                command += ["--dataset", f"images:{files}", "--resize", str(LARGE)]
            else:
                command += ["--dataset", "cifar10-jpeg"]
            wall, cpu, peak = measured(command)
            report(row, Home(home), wall, cpu, peak)


def report(row: Row, home: Home, wall: float, cpu: float, peak: int) -> None:
    """What a run took, and what its attacks did."""
    (board,) = (one for one in boards_from_home(home) if one.pairs)
    found = worst_case(board.pairs, "linf", float(Fraction(row.eps)))
    clean = float(board.pairs[0].columns["clean_correct"].mean())
    attacks = sum(pair.result.seconds for pair in board.pairs)
    looks = [facts.planted for norms in board.health.values() for facts in norms.values()]
    planting = sum(look.seconds for look in looks if look is not None)
    forwards, backwards = passes(board.pairs)
    print(f"{row.title}, {row.images} images at {row.eps}: {found.accuracy:.1%} left of {clean:.1%}")
    shares = f"attacks {attacks / 60:.1f}, planted adversarials {planting / 60:.1f}"
    print(
        f"  {wall / 60:.0f} minutes, {cpu / 60:.0f} CPU minutes ({shares}; the rest judges, probes, trains a stand-in)"
    )
    print(f"  {forwards / row.images:.0f} forward and {backwards / row.images:.0f} backward passes an image")
    print(f"  {peak / 2**30:.1f} GiB of memory at most", flush=True)


if __name__ == "__main__":
    main()
