"""Certified ... attacked, of every defense of the papers on MNIST: the tables at the end of ``docs/bands.md``.

    python benchmarks/bands.py --home DIR --data-root DATA [--jobs 2] [--model lenet] [--defense pgd ...] [--page]

Trains, attacks and certifies what the home lacks, so that a run that was stopped goes on; ``--page`` runs nothing.
Bands of the home replace those of the same network and defense in ``records/bands.csv``, which the page is written
from: parts may come from several machines. Two networks, the canonical budgets of MNIST, 100 images for the attacks of
``quick``, the first 32 for the certificates; randomised smoothing once more at radii that its noise can prove.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd

from harness.records.boards import boards_from_home
from harness.records.home import Home
from harness.schema.eps import eps_text

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "bands.md"
RECORD = ROOT / "records" / "bands.csv"
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


KINDS = ["table", "architecture", "defense"]
COLUMNS = [*KINDS, "norm", "eps", "clean", "certified", "attacked", "images", "commit"]
"""A row of the record: shares of 1, certified and attacked of the same first images (certified empty: no bounds)."""


def commands(home: Path, data: Path, jobs: int, models: list[str], chosen: list[str]) -> list[list[str]]:
    """What is run, each in a home of its own below ``home``."""
    common = ["quick", "--cascade", "--dataset", "mnist", "--data-root", str(data), "--jobs", str(jobs)]
    common += ["--samples", "100", "--certify", "32", "--no-surrogate"]
    common += [word for model in models for word in ("--model", model)]
    found = [[*common, "--home", str(home), *(word for one in chosen for word in ("--defense", one))]]
    if "randomized-smoothing" in chosen:
        provable = ["--home", str(home / "provable"), "--eps", PROVABLE, "--defense", "randomized-smoothing"]
        found.append([*common, *provable])
    return found


def board(home: Path, table: str) -> pd.DataFrame:
    """The leaderboard of a home as rows of the record."""
    file = home / "report" / "leaderboard.csv"
    if not file.exists():
        return pd.DataFrame(columns=COLUMNS)
    rows = pd.read_csv(file, keep_default_na=False)
    (found,) = (one for one in boards_from_home(Home(home)) if one.suite == "quick")
    made = {(pair.result.architecture, pair.result.defense): pair.result.git_commit[:7] for pair in found.pairs}
    # what some attack has not met yet stands too high
    short = {(found.models[key].architecture, found.models[key].defense) for key in (*found.missing, *found.unasked)}
    names = pd.Series(list(zip(rows.architecture, rows.defense, strict=True)), index=rows.index)
    whole = (rows.worst_case_accuracy != "") & (rows.suite == "quick") & ~names.isin(short)
    rows = rows[whole].assign(commit=names.map(made))
    attacked = rows.certified_attacked.where(rows.certified != "", rows.worst_case_accuracy)
    renamed = {"clean_accuracy": "clean", "certified_n": "images"}
    return rows.rename(columns=renamed).assign(table=table, attacked=attacked)[COLUMNS]


def recorded(home: Path) -> pd.DataFrame:
    """The record with what a home has in the place of what it had of the same networks and defenses; as written."""
    old = pd.read_csv(RECORD, keep_default_na=False, dtype=str)
    new = pd.concat([board(home, "canonical"), board(home / "provable", "provable")]).astype(str)
    measured = set(new[KINDS].itertuples(index=False, name=None))
    kept = old[[kind not in measured for kind in old[KINDS].itertuples(index=False, name=None)]]
    rows = pd.concat([kept, new], ignore_index=True)
    order = rows.assign(
        network=rows.architecture.map(MODELS.index), eps=rows.eps.astype(float), left=-rows.attacked.astype(float)
    ).sort_values(["table", "norm", "network", "eps", "left"])
    rows.loc[order.index].to_csv(RECORD, index=False)
    return pd.read_csv(RECORD, keep_default_na=False)


def band(row: pd.Series) -> str:
    """One cell: certified ... attacked in percent, or why nothing is certified."""
    certified = "-" if row.certified == "" else f"{100 * float(row.certified):.1f}"
    return f"{certified} ... {100 * float(row.attacked):.1f}"


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
        clean = 100 * float(group.clean.iloc[0])
        lines.append(f"| {network} | {defense} | {clean:.1f} | {' | '.join(cells.get(eps, '') for eps in budgets)} |")
    return lines


def gaps(rows: pd.DataFrame, defense: str) -> str:
    """The gap between both numbers of a defense: the median over networks and budgets, and its range, in points."""
    mine = rows[(rows.defense == defense) & (rows.certified != "")]
    gap = 100 * (mine.attacked.astype(float) - mine.certified.astype(float))
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


def page(rows: pd.DataFrame) -> str:
    """The part of the page that is written by this script."""
    canonical, provable = (rows[rows.table == name] for name in ("canonical", "provable"))
    images = ", ".join(str(n) for n in sorted({n for n in canonical.images if n != ""}))
    commits = ", ".join(f"`{commit}`" for commit in sorted(set(rows.commit)))
    lines = [
        MARK,
        "",
        "## The papers' defenses",
        "",
        "MNIST at its canonical budgets, seed 0, trained as declared by default (`gauntlet list defenses`).",
        f"Certified and attacked are shares of the same first {images} images in percent;",
        "attacked: by the suite `quick`.",
        f"Measured at {commits}; `records/bands.csv` says which at which.",
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
    parser.add_argument("--model", action="append", choices=MODELS, help="one of the networks; repeatable")
    parser.add_argument("--defense", action="append", choices=DEFENSES, help="one of the defenses; repeatable")
    parser.add_argument("--page", action="store_true", help="run nothing")
    asked = parser.parse_args()
    models, chosen = asked.model or list(MODELS), asked.defense or list(DEFENSES)
    for command in [] if asked.page else commands(asked.home, asked.data_root, asked.jobs, models, chosen):
        subprocess.run([sys.executable, "-m", "gauntlet", "run", *command], check=True)
        trained = asked.home / "provable" / "models"
        if "randomized-smoothing" in chosen and not trained.exists():  # the same networks are not trained twice
            trained.parent.mkdir(exist_ok=True)
            trained.symlink_to((asked.home / "models").resolve())
    head = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(head + page(recorded(asked.home)), encoding="utf-8")


if __name__ == "__main__":
    main()
