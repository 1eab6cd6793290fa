"""Certified ... attacked, of every defense of the papers on MNIST: the tables at the end of ``docs/bands.md``.

    python benchmarks/bands.py --home DIR --data-root DATA [--jobs 2] [--page]

Trains, attacks and certifies what the home lacks, so that a run that was stopped goes on; ``--page`` runs nothing and
writes the page from what is there. Two networks, the canonical budgets of MNIST, 100 images for the attacks of
``quick``, the first 32 for the certificates; randomised smoothing once more at radii that its noise can prove.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd

from harness.environment import git_commit
from harness.schema.eps import eps_text

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "bands.md"
MARK = "<!-- written by benchmarks/bands.py -->"

DEFENSES = (
    "standard",
    "dropout",
    "contractive",
    "gaussian-noise",
    "standard+denoising-autoencoder",
    "standard+adversarial-autoencoder",
    "standard+gaussian-blur",
    "fast-gradient",
    "gradient-regularization",
    "learning-with-adversary",
    "learning-with-adversary-representation",
    "generative-adversarial-trainer",
    "random-perturbation",
    "pgd",
    "randomized-smoothing",
    "interval-bound",
)
MODELS = ("mlp-200-200", "lenet")
PROVABLE = "l2=1/4,1/2,3/4"
"""Radii that randomised smoothing with its default sigma of 0.25 can prove; the canonical ones of MNIST are larger."""


def commands(home: Path, data: Path, jobs: int) -> list[list[str]]:
    """What is run, each in a home of its own below ``home``."""
    common = ["quick", "--cascade", "--dataset", "mnist", "--data-root", str(data), "--jobs", str(jobs)]
    common += ["--samples", "100", "--certify", "32", "--no-surrogate"]
    common += [word for model in MODELS for word in ("--model", model)]
    asked = [word for defense in DEFENSES for word in ("--defense", defense)]
    return [
        [*common, "--home", str(home), *asked],
        [*common, "--home", str(home / "provable"), "--eps", PROVABLE, "--defense", "randomized-smoothing"],
    ]


def board(home: Path) -> pd.DataFrame:
    """The leaderboard of a home, one row a defense and eps."""
    rows = pd.read_csv(home / "report" / "leaderboard.csv", keep_default_na=False)
    return rows[rows.worst_case_accuracy != ""]


def band(row: pd.Series) -> str:
    """One cell: certified ... attacked in percent, or why nothing is certified."""
    if row.certified == "":
        return f"- ... {100 * float(row.worst_case_accuracy):.1f}"
    return f"{100 * float(row.certified):.1f} ... {100 * float(row.certified_attacked):.1f}"


def table(rows: pd.DataFrame, norm: str) -> list[str]:
    """Lines of a norm's table: a row for each network and defense, a column for each eps."""
    mine = rows[rows.norm == norm]
    budgets = sorted(set(mine.eps))
    lines = [
        f"| network | defense | clean | {' | '.join(f'{norm} {eps_text(eps)}' for eps in budgets)} |",
        f"| --- | --- | ---: | {' | '.join('---:' for _ in budgets)} |",
    ]
    for (network, defense), group in mine.groupby(["architecture", "defense"], sort=False):
        cells = {row.eps: band(row) for row in group.itertuples()}
        clean = 100 * float(group.clean_accuracy.iloc[0])
        lines.append(f"| {network} | {defense} | {clean:.1f} | {' | '.join(cells.get(eps, '') for eps in budgets)} |")
    return lines


def gaps(rows: pd.DataFrame, defense: str) -> str:
    """The gap between both numbers of a defense: the median over networks and budgets, and its range, in points."""
    mine = rows[(rows.defense == defense) & (rows.certified != "")]
    gap = 100 * (mine.certified_attacked.astype(float) - mine.certified.astype(float))
    return f"{defense}: median {gap.median():.1f} points ({gap.min():.1f} to {gap.max():.1f}, {len(gap)} bands)"


def lacking(rows: pd.DataFrame) -> list[str]:
    """Lines that say which networks and defenses were not run yet."""
    there = {(row.architecture, row.defense) for row in rows.itertuples()}
    shown = {defense: defense.replace("+", " > ") for defense in DEFENSES}
    lines = []
    for network in MODELS:
        out = [name for name, label in shown.items() if (network, label) not in there]
        if out:
            lines.append(f"- {network}: {'none of them' if len(out) == len(DEFENSES) else ', '.join(out)}")
    return ["", "Not run yet (`benchmarks/bands.py` goes on where it was stopped):", "", *lines] if lines else []


def page(home: Path) -> str:
    """The part of the page that is written by this script."""
    canonical, provable = board(home), board(home / "provable")
    images = ", ".join(str(n) for n in sorted({n for n in canonical.certified_n if n != ""}))
    lines = [
        MARK,
        "",
        "## The papers' defenses",
        "",
        "MNIST at its canonical budgets, seed 0, trained as declared by default (`gauntlet list defenses`); written at",
        f"`{git_commit()[:7]}`. Certified and attacked are shares of the same first {images} images in percent;",
        "attacked: by the suite `quick`.",
        "",
        *table(canonical, "linf"),
        "",
        *table(canonical, "l2"),
        "",
        "With noise of sigma 0.25 randomised smoothing proves no radius as large as those of MNIST in L2. Smaller:",
        "",
        *table(provable, "l2"),
        "",
        "The gap between both numbers:",
        "",
        f"- {gaps(canonical[canonical.norm == 'linf'], 'interval-bound')} at the canonical budgets in L-infinity;",
        f"- {gaps(provable, 'randomized-smoothing')} at the radii above.",
        *lacking(canonical),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--page", action="store_true", help="run nothing")
    asked = parser.parse_args()
    for command in [] if asked.page else commands(asked.home, asked.data_root, asked.jobs):
        subprocess.run([sys.executable, "-m", "gauntlet", "run", *command], check=True)
    head = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(head + page(asked.home), encoding="utf-8")


if __name__ == "__main__":
    main()
