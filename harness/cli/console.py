"""Console output: result tables, errors, report paths."""

from __future__ import annotations

import math
import sys
import unicodedata
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook, RenderResult
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ..errors import UserError, visible
from ..schema.counts import plural
from ..schema.eps import eps_text
from ..schema.goals import measured

if TYPE_CHECKING:
    import pandas as pd

    from ..metrics.pairs import Board
    from ..planning.plan import Plan
    from ..studies.record import StudyRecord
    from ..threat import Norm


UNDELIVERED = 3
"""Exit status where all is there, and the tracking store has not got all of it."""


class _Visible:
    """Something printed. What a terminal would take for a command is written out: records may be a stranger's."""

    def __init__(self, inner: RenderableType) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._inner, options):
            if segment.control or segment.text.replace("\n", "").isprintable():
                yield segment
            else:
                yield Segment("".join(map(_written_out, segment.text)), segment.style)


def _written_out(mark: str) -> str:
    return mark if mark == "\n" or unicodedata.category(mark)[0] != "C" else repr(mark)[1:-1]


class _WriteOut(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Visible(one) for one in renderables]


# where nobody measures the width (a pipe, a log) tables are wide rather than broken
console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
complaints = Console(stderr=True, highlight=False)
for each in (console, complaints):
    each.push_render_hook(_WriteOut())


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


def print_claims(record: StudyRecord) -> None:
    """Verdicts of claims, and how many printed values and clauses have which."""
    table = Table(title=f"{record.study.source}, profile {record.facts['profile']}", title_justify="left")
    mark = " (smoke)" if record.caveat else ""
    for column in ("claim", "verdict", "what it says"):
        table.add_column(column)
    for claim in record.study.claims:
        table.add_row(claim.name, record.verdict(claim) + mark, escape(claim.text))
    console.print(table)
    if record.caveat:
        console.print(record.caveat, style="yellow")
    values, apart, clauses = record.counts()
    for what, counts in (("printed values", values), *apart.items(), ("clauses of claims", clauses)):
        found = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        console.print(f"{what}: {found or 'none'}")


def complain(lines: Sequence[str]) -> None:
    """Failures, each once."""
    for line, times in Counter(lines).items():
        more = f" (and {times - 1} times more)" if times > 1 else ""
        complaints.print(f"gauntlet: {escape(visible(line))}{more}", style="red", soft_wrap=True)


class Spoils:
    """Names damaged files that a board has to leave out, each once; sets aside pairs that will be made again."""

    def __init__(self, again: Collection[str] = ()) -> None:
        self._again = again
        self._seen: set[Path] = set()

    @property
    def found(self) -> bool:
        """Whether there were any."""
        return bool(self._seen)

    def __call__(self, path: Path, error: UserError) -> None:
        """A file or folder cannot be read."""
        from ..records.files import set_aside
        from ..records.results import Damaged

        if path in self._seen:
            return
        self._seen.add(path)
        what = "left out"
        if path.name in self._again and isinstance(error, Damaged):
            what = f"kept as {set_aside(path).name}; the same command again computes it"
        complaints.print(f"gauntlet: {escape(visible(f'{error}; {what}'))}", style="red", soft_wrap=True)


def waiting(trouble: str, results: int, pending: Path) -> None:
    """Results that the tracking store has not got."""
    complaints.print(
        f"the tracking store is out of order ({escape(trouble)}): {results} results wait in {pending}; the next "
        "command delivers them",
        style="yellow",
        soft_wrap=True,
    )


def print_leaderboard(boards: Sequence[Board], made: Plan) -> None:
    """Worst-case accuracies with their intervals, a table a norm, ranked at the eps that defenses train at."""
    from ..leaderboard import leaderboard

    for board in boards:
        rows = leaderboard(board)
        rows = rows[rows["dataset"].isin(list(made.infos))]
        labels = {pair.result.attack for pair in board.pairs}
        for (dataset, norm, n), group in rows.groupby(["dataset", "norm", "n"], sort=False):
            grid = sorted(group["eps"].unique())
            eps = made.infos[str(dataset)].eps.get(cast("Norm", norm), grid[0])
            eps = eps if eps in grid else grid[0]
            left = f", {measured(board.goal)}," if board.targeted else ""
            what = f"worst case of all attacks{left} with its 95 % interval, ranked at eps {eps_text(eps)}"
            title = f"{dataset}, {norm}, {board.suite}, {n} images: {what}"
            # intervals beside accuracies where no line breaks, else below them, else at one eps, so that no word breaks
            for stacked, shown in ((False, grid), (True, grid), (True, [eps])):
                table = _ranking(title, group, eps, shown, labels, stacked=stacked)
                size = console.measure(table, options=console.options.update(max_width=10_000))
                if (size.minimum if stacked else size.maximum) <= console.width:
                    break
            console.print(table)
            if len(shown) < len(grid):
                console.print("other eps: in a wider terminal, and in the report", style="dim")
            _remarks(group[group["eps"] == eps].to_dict("records"))


def _ranking(
    title: str, group: pd.DataFrame, eps: float, grid: Sequence[float], labels: Collection[str], *, stacked: bool
) -> Table:
    """The models of one competition in their order at one eps, with what is left of them at some."""
    table = Table(title=title, title_justify="left")
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("model", overflow="fold", max_width=40)
    table.add_column("clean", justify="right", no_wrap=True, min_width=len("12.3 %"))
    for value in grid:
        style = "bold" if value == eps else None
        width = len("12.3 to 45.6")  # rich takes the longest word for the least width, also where no line may break
        table.add_column(f"eps {eps_text(value)}", justify="right", no_wrap=True, min_width=width, style=style)
    table.add_column("trust", no_wrap=True)
    table.add_column("strongest attack", overflow="fold", max_width=30)
    shown = group[group["eps"] == eps].to_dict("records")
    held = Counter(row["rank"] for row in shown if not row["note"])
    for row in shown:
        same = group[(group["architecture"] == row["architecture"]) & (group["defense"] == row["defense"])]
        same = same[same["eps"].isin(grid)]
        table.add_row(
            "-" if row["note"] else f"{row['rank']}{'=' if held[row['rank']] > 1 else ''}",
            escape(_name(row)),
            _percent(row["clean_accuracy"]),
            *(_left(one, stacked) for one in same.sort_values("eps").to_dict("records")),
            row["trust"] or "-",
            escape(_short(row["strongest_attack"], labels)) or "none broke any",
        )
    return table


def _remarks(rows: Sequence[Mapping[Hashable, Any]]) -> None:
    """What a shared rank means, why there is no rank or no better grade, and what was not shown: each once."""
    said: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        note, trust, reasons = row["note"], row["trust"], row["trust_reasons"]
        if note:
            said.setdefault(("no rank", note), []).append(_name(row))
        known = note.removeprefix(f"trust {trust}: ")
        further = reasons.removeprefix(known).removeprefix("; ") if known != note else reasons
        if further:
            said.setdefault((f"trust {trust}" + (" also" if further != reasons else ""), further), []).append(
                _name(row)
            )
        if row["withheld"]:
            said.setdefault(("sampled", row["withheld"]), []).append(_name(row))
    lines = [f"{head}, {', '.join(names)}: {text}" for (head, text), names in said.items()]
    held = Counter(row["rank"] for row in rows if not row["note"])
    if shared := [rank for rank, count in held.items() if count > 1]:
        lines.insert(0, f"{shared[0]}= shared rank: not told apart from the best of these on these images")
    lines += _bands(rows)
    for line in lines:
        console.print(escape(line), style="dim")


def _bands(rows: Sequence[Mapping[Hashable, Any]]) -> list[str]:
    """What is proved to stand and what no attack broke, in a line for each number of images; why nothing is proved."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if not math.isnan(row["certified"]):
            where = "" if row["certified_n"] == row["n"] else f" of the first {row['certified_n']} images"
            shown = f"{_percent(row['certified'])} ... {_percent(row['certified_attacked'])}"
            found.setdefault(f"certified ... attacked{where}", []).append(f"{_name(row)} {shown}")
        if row["certificate"] and row["certificate"] not in row["note"]:
            found.setdefault(f"certificate, {row['certificate']}", []).append(_name(row))
    return [f"{head}: {', '.join(names)}" for head, names in found.items()]


def _name(row: Mapping[Hashable, Any]) -> str:
    return f"{row['architecture']} {row['defense']}"


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def _left(row: Mapping[Hashable, Any], stacked: bool) -> Text:
    """Accuracy and its interval; of a model without a rank an upper bound."""
    accuracy = row["worst_case_accuracy"]
    if math.isnan(accuracy):
        return Text("-")
    interval = f"{100 * row['worst_case_low']:.1f} to {100 * row['worst_case_high']:.1f}"
    bound = "<= " if row["note"] else ""
    return Text.assemble(bound + _percent(accuracy), (f"\n{interval}" if stacked else f" ({interval})", "not bold dim"))


def _short(label: str, labels: Collection[str]) -> str:
    """An attack's label without its settings, unless others differ from it in these alone."""
    name = label.partition("(")[0]
    return label if sum(other.partition("(")[0] == name for other in labels) > 1 else name


@contextmanager
def step(words: str) -> Iterator[None]:
    """Name what a command does where that takes a while: on a terminal, as long as it lasts."""
    if console.is_terminal:
        with console.status(words):
            yield
    else:
        yield


def print_files(page: Path, others: Sequence[str]) -> None:
    """Say where a page lies, as a link that terminals open, and what lies beside it."""
    console.print(Text(f"report: {page.absolute().as_uri()}", style=f"link {page.absolute().as_uri()}"), soft_wrap=True)
    console.print(f"beside it: {', '.join(others)}", style="dim", markup=False, soft_wrap=True)


def write_report(boards: Sequence[Board], out: Path) -> None:
    """Write the pages and tables of boards to a folder, and name those that one begins with."""
    import reports

    with step("writing the report"):
        written = reports.write(boards, out)
    first = [file for file in written if file.parent == out]
    others = [file.name for file in first[:-1]]
    if more := len(written) - len(first):
        others.append(f"{plural(more, 'page')} of models and comparisons")
    print_files(first[-1], others)
