"""What commands print: tables at their end, complaints, and where the pages are."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from .findings import Findings
    from .metrics import Board
    from .plan import Plan
    from .threat import Norm

# where nobody measures the width (a pipe, a log) tables are wide rather than broken
console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
complaints = Console(stderr=True, highlight=False)


def print_search(scores: pd.DataFrame) -> None:
    """What a search found, the best of each setting in bold."""
    table = Table(title_justify="left")
    for column in ("setting", "of", "value", "held-out accuracy", "95 % interval", "images", ""):
        table.add_column(column)
    for row in scores.to_dict("records"):
        words = ", ".join(word for word, so in (("best", row["best"]), ("in use", row["used"])) if so)
        table.add_row(
            row["setting"],
            escape(row["model"]),
            f"{row['value']:g}",
            f"{100 * row['accuracy']:.1f} %",
            f"{100 * row['low']:.1f} to {100 * row['high']:.1f}",
            str(row["n"]),
            words,
            style="bold" if row["best"] else None,
        )
    console.print(table)


def print_claims(findings: Findings) -> None:
    """Verdicts of claims, and how many printed values have which."""
    table = Table(title=f"{findings.study.source}, profile {findings.profile}", title_justify="left")
    for column in ("claim", "verdict", "what it says"):
        table.add_column(column)
    for claim in findings.study.claims:
        table.add_row(claim.name, findings.holds(claim), escape(claim.text))
    console.print(table)
    frame = findings.frame()
    items = {item.name for item in findings.study.items}
    printed = frame[frame["item"].isin(items) & frame["printed"].notna()]
    counts = printed["verdict"].value_counts()
    console.print("printed values: " + (", ".join(f"{count} {name}" for name, count in counts.items()) or "none"))


def complain(lines: Sequence[str]) -> None:
    """Failures, each once."""
    for line, times in Counter(lines).items():
        more = f" (and {times - 1} times more)" if times > 1 else ""
        complaints.print(f"gauntlet: {escape(line)}{more}", style="red", soft_wrap=True)


class Spoils:
    """Names damaged files that a board has to leave out, each once, and sets aside results that are to be made again.

    Args:
        again: Keys of the pairs that the same command would make again.
    """

    def __init__(self, again: Collection[str] = ()) -> None:
        self._again = again
        self._seen: set[Path] = set()

    @property
    def found(self) -> bool:
        """Whether there were any."""
        return bool(self._seen)

    def __call__(self, path: Path, error: UserError) -> None:
        """A file or folder cannot be read."""
        from .results import Damaged
        from .store import set_aside

        if path in self._seen:
            return
        self._seen.add(path)
        what = "left out"
        if path.name in self._again and isinstance(error, Damaged):
            what = f"kept as {set_aside(path).name}; the same command again computes it"
        complaints.print(f"gauntlet: {escape(f'{error}; {what}')}", style="red", soft_wrap=True)


def waiting(trouble: str, results: int, pending: Path) -> None:
    """Results that the tracking store has not got."""
    complaints.print(
        f"the tracking store is out of order ({escape(trouble)}): {results} results wait in {pending}; the next "
        "command delivers them",
        style="yellow",
        soft_wrap=True,
    )


def print_leaderboard(boards: Sequence[Board], made: Plan) -> None:
    """Worst-case accuracies, a table a norm: models in the order of the eps that defenses train at."""
    from .leaderboard import leaderboard

    for board in boards:
        rows = leaderboard(board)
        rows = rows[rows["dataset"].isin(list(made.infos))]
        for (dataset, norm, n), group in rows.groupby(["dataset", "norm", "n"], sort=False):
            grid = sorted(group["eps"].unique())
            reference = made.infos[str(dataset)].eps.get(cast("Norm", norm), grid[0])
            shown = group[group["eps"] == (reference if reference in grid else grid[0])]
            table = Table(
                title=f"{dataset}, {norm}: accuracy left by the worst case of all attacks ({board.suite}, {n} images)",
                title_justify="left",
            )
            table.add_column("rank", justify="right")
            table.add_column("model")
            table.add_column("clean", justify="right")
            for eps in grid:
                table.add_column(f"eps {eps:.3g}", justify="right", style="bold" if eps == reference else None)
            table.add_column("trust")
            table.add_column("strongest attack, or why there is no rank")
            for row in shown.to_dict("records"):
                same = group[(group["architecture"] == row["architecture"]) & (group["defense"] == row["defense"])]
                left = [f"{value:.1%}" for value in same.sort_values("eps")["worst_case_accuracy"]]
                table.add_row(
                    "-" if row["note"] else str(row["rank"]),
                    escape(f"{row['architecture']} {row['defense']}"),
                    f"{row['clean_accuracy']:.1%}",
                    *left,
                    row["trust"] or "-",
                    escape(row["note"] or row["strongest_attack"]),
                )
            console.print(table)
            for row in shown.to_dict("records"):
                if row["trust_reasons"]:
                    name = f"{row['architecture']} {row['defense']}"
                    console.print(escape(f"trust {row['trust']}, {name}: {row['trust_reasons']}"), style="dim")


def write_report(boards: Sequence[Board], out: Path) -> None:
    """Write the pages and tables of boards to a folder, and name those that one begins with."""
    import reports

    written = reports.write(boards, out)
    first = [file for file in written if file.parent == out]
    for file in first:
        console.print(f"wrote {file}", style="dim", markup=False, soft_wrap=True)
    if more := len(written) - len(first):
        console.print(f"and {more} pages of models and comparisons, which the first leads to", style="dim")
