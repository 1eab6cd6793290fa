"""Run every benchmark at a size that suits a page, and write ``docs/performance.md`` from what they print.

    python benchmarks/write.py [--data-root DATA] [--only NAMES] [--title WORDS] [--out docs/performance.md]

What ``nox -s benchmarks`` does. Sections of benchmarks that were not run keep what they were, with the commit and the
machine they name. A benchmark that fails fails the command, and its section says so.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.environment import cores, git_commit

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Section:
    """A benchmark on the page."""

    title: str
    name: str
    arguments: str = ""
    needs_data: bool = False
    figure: str = ""


SECTIONS = (
    Section("What attacks and trainers cost beside their own passes", "bench_passes"),
    Section(
        "The linf battery against reference AutoAttack under two seeds, and a script of Foolbox",
        "bench_batteries",
        "--images 200 --only sampled,reference,again,foolbox",
        True,
    ),
    Section(
        "The linf battery on an interval-trained LeNet",
        "bench_batteries",
        "--images 200 --defense interval-bound --only sampled,reference",
        True,
    ),
    Section(
        "The linf battery on a LeNet trained on fast-gradient images",
        "bench_batteries",
        "--images 200 --defense fast-gradient --only sampled,reference,again",
        True,
    ),
    Section(
        "The linf battery on a LeNet trained with PGD",
        "bench_batteries",
        "--images 200 --defense pgd --only sampled,reference,again",
        True,
    ),
    Section(
        "The l2 battery against reference AutoAttack and a script of Foolbox",
        "bench_batteries",
        "--norm l2 --images 200 --only sampled,reference,foolbox",
        True,
    ),
    Section(
        "The l2 battery on a LeNet trained on fast-gradient images",
        "bench_batteries",
        "--norm l2 --images 200 --defense fast-gradient --only sampled,reference",
        True,
    ),
    Section(
        "The l2 battery on a LeNet trained with PGD",
        "bench_batteries",
        "--norm l2 --images 200 --defense pgd --only sampled,reference",
        True,
    ),
    Section(
        "The l2 battery on a smoothed LeNet, at an eps that its votes can prove",
        "bench_batteries",
        "--norm l2 --eps 1/2 --images 10 --defense randomized-smoothing --only reference",
        True,
    ),
    Section(
        "The linf battery on the ResNet-18 that comes with AutoAttack",
        "bench_batteries",
        "--dataset cifar10-jpeg --eps 8/255 --images 50 --victim benchmarks/networks.py:pretrained "
        "--only sampled,reference",
        True,
    ),
    Section("The linf battery as a user runs it, on real networks", "bench_networks", "", True),
    Section(
        "The l1 battery against reference AutoAttack and a script of Foolbox",
        "bench_batteries",
        "--norm l1 --images 200 --only sampled,reference,foolbox",
        True,
    ),
    Section("What the harness adds, and what a second job gives", "bench_harness"),
    Section("What the README's command spends its time on", "bench_quick"),
    Section("What it costs to keep what attacks meet", "bench_harvest", "--models lenet --images 40"),
    Section("What it costs to keep and to judge witnesses again", "bench_witnesses", "--model mlp-32 --images 60"),
    Section("How the cost of a run grows", "bench_growth", "", True, "growth.svg"),
    Section("Growth with pairs in a home", "bench_store", "--pairs 1000,10000"),
    Section("Growth with images per pair", "bench_store", "--pairs 1000 --images 50,359"),
    Section("Growth with pairs, tracked", "bench_store", "--pairs 240,480 --tracked"),
    Section("L-BFGS in batches against SciPy's, image by image", "bench_lbfgs", "--images 50", True),
    Section("Gradients of all classes, and an alpha step", "bench_alpha"),
    Section("Contractive training", "bench_contractive"),
    Section("Adv_Alpha, and learning with an adversary", "bench_huang"),
    Section("Gradient regularization", "bench_lyu"),
    Section("The generative adversarial trainer", "bench_lee"),
    Section("Search in bfloat16 against float32", "bench_low_search", "", True),
    Section("Training in bfloat16 against float32", "bench_precision", "--images 3000 --epochs 4", True),
)

HEAD = """# Performance

Written by `nox -s benchmarks`. Ratios are within one run and mean more than seconds, which are those of the machine
named in each section. Each script's own help says what is compared and how.
"""


SHORT = """## In short

CPU seconds of the batteries as a share of reference AutoAttack's on the same images, in one process. What was aimed
at: 0.2, sampled 0.12, and 1/30 where most is proved. Then the images at each eps that it breaks and the cascade leaves.

| battery | cascade | sampled | left | measured at |
| --- | ---: | ---: | --- | --- |
"""

ROW = re.compile(r"^(gauntlet, cascade|gauntlet, sampled cascade|AutoAttack)(?: +[0-9.]+%)+ +([0-9.]+) ", re.MULTILINE)


def in_short(sections: dict[str, str]) -> str:
    """The table of the batteries' costs, read off their sections."""
    rows = []
    for title, text in sections.items():
        cost = {name: float(seconds) for name, seconds in ROW.findall(text)}
        if {"gauntlet, cascade", "AutoAttack"} <= cost.keys():
            ours, sampled = (
                f"{cost[name] / cost['AutoAttack']:.3f}" if name in cost else "-"
                for name in ("gauntlet, cascade", "gauntlet, sampled cascade")
            )
            left = re.findall(r"broken by AutoAttack, left by gauntlet, cascade, at each eps: \[(.*)\]", text)[-1]
            commit = re.findall(r"at `([0-9a-f]{7})[0-9a-f]*`", text)[-1]
            battery = re.sub(" against.*", " on a plainly trained LeNet", title.removeprefix("The ")).partition(",")[0]
            rows.append(f"| {battery} | {ours} | {sampled} | {left} | `{commit}` |\n")
    return SHORT + "".join(rows)


def machine() -> str:
    """Processor, cores and versions, as found here."""
    name = platform.processor() or platform.machine()
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        name = found[1] if found else name
    except OSError:
        pass
    return f"{name}, {cores()} cores; Python {platform.python_version()}, torch {torch.__version__}"


def measured(section: Section, data_root: str | None, folder: Path) -> tuple[str, bool]:
    """A section's text, and whether its benchmark came to a good end; its figure goes into ``folder``."""
    words = section.arguments.split()
    if section.needs_data and data_root:
        words += ["--data-root", data_root]
    if section.figure:
        words += ["--figure", str(folder / section.figure)]
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{section.name}.py"), *words],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    print(done.stdout, flush=True)
    shown = " ".join(["python", f"benchmarks/{section.name}.py", section.arguments]).strip()
    end = "" if done.returncode == 0 else f"\nended with status {done.returncode}"
    shows = f"\n![{section.title}]({section.figure})\n" if section.figure else ""
    return (
        f"## {section.title}\n\n`{shown}`, {time.monotonic() - start:.0f} s at `{git_commit()[:12]}` on {machine()}\n\n"
        f"```text\n{done.stdout.strip()}{end}\n```\n{shows}",
        done.returncode == 0,
    )


def known(page: str) -> dict[str, str]:
    """Sections of a page by title."""
    parts = re.split(r"(?m)^(?=## )", page)
    return {part.splitlines()[0].removeprefix("## "): part.rstrip() + "\n" for part in parts if part.startswith("## ")}


def write(page: Path, sections: dict[str, str]) -> None:
    """Put the page together."""
    there = {one.title: sections[one.title] for one in SECTIONS if one.title in sections}
    page.write_text("\n".join([HEAD, in_short(there), *there.values()]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default=os.environ.get("GAUNTLET_DATA"))
    parser.add_argument("--only", default="", help="names of benchmarks, separated by commas")
    parser.add_argument("--title", default="", help="of these, sections alone whose title has these words")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "performance.md")
    args = parser.parse_args()
    chosen = args.only.split(",") if args.only else [section.name for section in SECTIONS]
    if unknown := [name for name in chosen if name not in {section.name for section in SECTIONS}]:
        sys.exit(f"no section for {', '.join(unknown)}; there are {', '.join(s.name for s in SECTIONS)}")
    sections = known(args.out.read_text()) if args.out.exists() else {}
    good = True
    for section in SECTIONS:
        out = section.name not in chosen or args.title not in section.title
        if out or (section.needs_data and not args.data_root):
            continue
        print(f"-- {section.title}", flush=True)
        sections[section.title], fine = measured(section, args.data_root, args.out.parent)
        good &= fine
        write(args.out, sections)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
