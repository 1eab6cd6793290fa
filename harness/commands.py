"""What the commands do: a command line becomes a plan, the plan is run, and its end is shown."""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .errors import UserError

if TYPE_CHECKING:
    from .data import DataSource
    from .findings import Findings
    from .guests import Guest
    from .metrics import Board
    from .plan import Plan
    from .pool import Engine
    from .ray_engine import Cluster
    from .threat import Norm
    from .work import Context

# where nobody measures the width (a pipe, a log) tables are wide rather than broken
console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
complaints = Console(stderr=True, highlight=False)

DEFAULT_DEFENSES = ("standard", "dropout", "gaussian-noise", "fast-gradient", "pgd")


def make_plan(
    suite: str | None,
    *,
    datasets: Sequence[str],
    models: Sequence[str],
    defenses: Sequence[str],
    seeds: str,
    samples: int | None,
    attacks: Sequence[str],
    cascade: bool,
    data_root: Path | None,
    download: bool,
    part: str | None = None,
    **guests: Any,
) -> tuple[Plan, dict[str, DataSource], list[Guest]]:
    """The plan of a command line, where its data sets come from, and the models that the user brings."""
    from defenses import defenses as kinds
    from suites import suite as find

    from .data import DataSource
    from .options import parse_chain, parse_seeds
    from .part import parse_part
    from .part import part as take
    from .plan import Suite, specs
    from .plan import plan as make

    share = parse_part(part) if part is not None else None
    battery = find(suite) if suite is not None else Suite(name="train", summary="", attacks={}, budgets={})
    sources = {}
    for name in datasets or ("digits",):
        source = DataSource(name, root=data_root, download=download)
        sources[source.info().name] = source
    infos = {name: source.info() for name, source in sources.items()}
    brought = _guests(list(sources.values()), **guests)
    # who brings a model asks for the others by name
    chosen = defenses or (() if brought and not models else DEFAULT_DEFENSES)
    trainers = [parse_chain(text, kinds()) for text in chosen]
    wanted = [guest.spec for guest in brought]
    for info in infos.values():
        wanted += specs([info], models or (default_model(info.shape),), trainers, parse_seeds(seeds))
    arguments = {info: source.name for info, source in sources.items() if source.name != info}
    made = make(battery, wanted, infos, samples=samples, only=attacks, cascade=cascade, arguments=arguments)
    return take(made, *share) if share is not None else made, sources, brought


def _guests(
    sources: Sequence[DataSource],
    *,
    victims: Sequence[str],
    mean: str | None,
    std: str | None,
    remedies: Sequence[str],
    stand_ins: Sequence[str],
    home: Path,
    device: str,
    tracking_uri: str | None,
) -> list[Guest]:
    """Models that the user brings, each looked at on every data set."""
    given = {"--mean": mean, "--std": std, "--remedy": remedies, "--stand-in": stand_ins}
    if not victims:
        if alone := [name for name, value in given.items() if value]:
            raise UserError(f"{alone[0]} says something about a --victim, and none is given")
        return []
    from .guests import admit
    from .options import parse_channels, parse_remedy, parse_stand_ins
    from .store import Home
    from .tracking import tracking_uri as choose

    channels = {"mean": parse_channels(mean, "--mean"), "std": parse_channels(std, "--std")}
    return [
        admit(
            text,
            source.load(),
            **channels,
            remedy=parse_remedy(remedies, stand_ins),
            stand_ins=parse_stand_ins(stand_ins),
            device=device,
            fetched=home / "fetched",
            tracking_uri=choose(Home(home), tracking_uri),
        )
        for text in dict.fromkeys(victims)
        for source in sources
    ]


def default_model(shape: tuple[int, int, int]) -> str:
    """Architecture for a data set when none is asked for: an MLP for gray images, a ResNet for colour."""
    return "mlp-100-100" if shape[0] == 1 else "resnet"


def execute(
    suite: str | None,
    *,
    jobs: int | None,
    device: str,
    home: Path,
    tracking_uri: str | None,
    engine: Cluster | None = None,
    dry_run: bool = False,
    **options: Any,
) -> None:
    """Run what is missing of a command line (training alone, without a suite), and show how it ended.

    A dry run lists it instead.

    Raises:
        UserError: Something in it is wrong, or the home cannot be used.
        SystemExit: A model or a pair failed.
    """
    from .campaign import boards_from_home
    from .live import Display
    from .runner import run
    from .store import Home
    from .tracking import Tracker
    from .tracking import tracking_uri as choose
    from .work import Context

    here = check_device(device, engine)
    made, sources, guests = make_plan(suite, home=home, device=here, tracking_uri=tracking_uri, **options)
    if dry_run:
        foresee([made], home, here)
        return
    place = Home(home).create()
    for guest in guests:
        guest.register(place)
        for note in guest.notes:
            console.print(note, style="yellow", markup=False, soft_wrap=True)
    if options["download"]:
        for source in sources.values():
            source.load()  # once, here: workers would all fetch at the same time
    tracker = Tracker(place, choose(place, tracking_uri)) if suite is not None else None
    context = Context(place, sources, device)
    command = shlex.join(["gauntlet", *sys.argv[1:]])
    with _workers(engine, context) as workers, Display(made, place, console) as display:
        ended = run(
            made, context, jobs=jobs or cores(), command=command, tracker=tracker, observe=display, engine=workers
        )
    _complain(ended.failures)
    spoiled = False
    if suite is not None:
        if any(c.exists() for c in [place.cell(cell.key) / "result.json" for cell in made.cells]):
            spoils = Spoils({cell.key for cell in made.cells})
            boards = boards_from_home(place, tracker.store if tracker is not None else None, spoils)
            spoiled = spoils.found
            _print_leaderboard([board for board in boards if board.suite == suite], made)
            write_report(boards, home / "report")
        if ended.trouble:
            _waiting(ended.trouble, ended.waiting, place.pending)
    else:
        from .listing import trained_table

        console.print(trained_table(made, place))
    if ended.failures or spoiled:
        sys.exit(1)


def reproduce(
    name: str,
    *,
    profile: str,
    only: Sequence[str],
    seeds: str | None,
    out: Path | None,
    dry_run: bool,
    jobs: int | None,
    device: str,
    home: Path,
    data_root: Path | None,
    download: bool,
    tracking_uri: str | None,
    engine: Cluster | None = None,
) -> None:
    """Run what a study lacks, and write what came of it.

    Raises:
        UserError: Unknown study, profile or item; the home or the data cannot be used.
        SystemExit: A model or a pair failed.
    """
    import reports
    from suites import study as find
    from suites import suites

    from .blueprint import blueprint
    from .data import DataSource
    from .live import Display
    from .options import parse_seeds
    from .reproduce import execute as carry_out
    from .reproduce import gather
    from .store import Home
    from .tracking import Tracker
    from .tracking import tracking_uri as choose
    from .work import Context

    here = check_device(device, engine)
    study = find(name)
    source = DataSource(study.profile(profile).dataset, root=data_root, download=download)
    chosen = parse_seeds(seeds) if seeds is not None else None
    print_ = blueprint(study, profile, source.info(), suites(), only=only, seeds=chosen)
    if dry_run:
        foresee([print_.plan, *print_.judgements], home, here, titles=True)
        return
    if download:
        source.load()  # once, here: workers would all fetch at the same time
    place = Home(home).create()
    context = Context(place, {source.info().name: source}, device)
    tracker = Tracker(place, choose(place, tracking_uri))
    with _workers(engine, context) as workers:
        ended = carry_out(
            print_,
            context,
            jobs=jobs or cores(),
            tracker=tracker,
            display=lambda plan: Display(plan, place, console),
            engine=workers,
        )
    outcome = gather(print_, place)
    _print_claims(outcome.findings)
    for file in reports.write_study(outcome, out or home / f"study-{name}"):
        if file.suffix in (".md", ".csv", ".html"):
            console.print(f"wrote {file}", style="dim", markup=False, soft_wrap=True)
    _complain([line for report in ended for line in report.failures])
    if trouble := next((report for report in ended if report.trouble), None):
        _waiting(trouble.trouble, ended[-1].waiting, place.pending)
    if any(report.failures for report in ended):
        sys.exit(1)


def sync(given: Sequence[Path], *, home: Path, tracking_uri: str | None) -> None:
    """Merge homes into one, and bring its tracking store up to date.

    Raises:
        UserError: One of them is no home, or the one merged into cannot be written.
        SystemExit: Something was refused, damaged or not delivered.
    """
    from .runner import exclusive
    from .store import Home
    from .sync import homes, merge
    from .tracking import Tracker, Unreachable
    from .tracking import tracking_uri as choose

    sources = homes(given, home)
    into = Home(home).create()
    tracker = Tracker(into, choose(into, tracking_uri))
    spoils, whole, trouble = Spoils(), True, ""
    with exclusive(into, lambda line: console.print(line, markup=False, soft_wrap=True)):
        for source in sources:
            done = merge(source, into)
            whole = whole and done.whole
            found = [f"{count} {kind} new" for kind, count in done.new.items() if count]
            found += [f"{count} {kind} there already" for kind, count in done.same.items() if count]
            console.print(f"{source.path}: {', '.join(found) or 'nothing'}", markup=False, soft_wrap=True)
            _complain([f"damaged: {line}" for line in done.damaged] + [f"refused: {line}" for line in done.refused])
        try:
            delivered = tracker.rebuild(spoils)
            console.print(f"{delivered} results tracked in {tracker.uri}", style="dim", markup=False, soft_wrap=True)
        except Unreachable as error:
            trouble = str(error)
    if trouble:
        _waiting(trouble, len(tracker.waiting()), into.pending)
    if trouble or spoils.found or not whole:
        sys.exit(1)


def diff(before: Path, after: Path, csv: Path | None) -> None:
    """Show which numbers moved between two homes.

    Raises:
        UserError: One of them is no home.
    """
    from .differences import counts, differences, write
    from .listing import moved_table
    from .store import Home

    spoils = Spoils()
    frame = differences(Home(before), Home(after), spoils)
    moved = frame[frame["state"].isin(["beyond noise", "within noise"])]
    if len(moved):
        console.print(moved_table(moved))
    console.print(f"A is {before}, B is {after}: ", end="", markup=False, soft_wrap=True)
    console.print(", ".join(f"{count} {state}" for state, count in counts(frame).items()), soft_wrap=True)
    if csv is not None:
        write(frame, csv)
        console.print(f"wrote {csv}", style="dim", markup=False, soft_wrap=True)


def foresee(plans: Sequence[Plan], home: Path, device: str, *, titles: bool = False) -> None:
    """Show the pairs of plans, what of them is done, and a line with what the rest may cost."""
    from .estimate import estimate
    from .listing import plan_table
    from .store import Home

    for plan in plans:
        table = plan_table(plan, Home(home))
        if titles:
            table.title = f"{plan.suite.name}: {plan.suite.summary}"
        console.print(table)
    console.print(str(estimate(plans, Home(home), device)), style="dim", markup=False, soft_wrap=True)


def _print_claims(findings: Findings) -> None:
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


def _complain(lines: Sequence[str]) -> None:
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


def _waiting(trouble: str, waiting: int, pending: Path) -> None:
    complaints.print(
        f"the tracking store is out of order ({escape(trouble)}): {waiting} results wait in {pending}; the next "
        "command delivers them",
        style="yellow",
        soft_wrap=True,
    )


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _workers(engine: Cluster | None, context: Context) -> AbstractContextManager[Engine | None]:
    """What spreads the work, if it is not the processes of this machine."""
    if engine is None:
        return nullcontext()
    from .ray_engine import RayEngine

    return RayEngine(engine, context)


def check_device(device: str, engine: Cluster | None = None) -> str:
    """The device that this process itself may use: a cluster's nodes may have one where this machine has none."""
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        if engine is not None and engine.gpus:
            return "cpu"
        choices = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        reason = str(error).splitlines()[0]
        raise UserError(f"no device {device!r} here ({reason}); choose from {', '.join(choices)}") from None
    return device


def _print_leaderboard(boards: Sequence[Board], made: Plan) -> None:
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
