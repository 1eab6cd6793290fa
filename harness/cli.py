"""The ``gauntlet`` command. Thin: every command parses, calls, and prints."""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .errors import UserError

if TYPE_CHECKING:
    from .data import DataSource
    from .guests import Guest
    from .metrics import Board
    from .plan import Plan
    from .threat import Norm

# where nobody measures the width (a pipe, a log) tables are wide rather than broken
console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
complaints = Console(stderr=True, highlight=False)

DEFAULT_DEFENSES = ("standard", "dropout", "gaussian-noise", "fast-gradient", "pgd")


class Cli(click.Group):
    """Turns whatever the user got wrong into one line and a non-zero exit."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            complaints.print(f"gauntlet: {escape(str(error))}", style="red", soft_wrap=True)
            ctx.exit(2)
        except OSError as error:
            what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            complaints.print(f"gauntlet: {escape(what)}", style="red", soft_wrap=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            complaints.print("gauntlet: interrupted; the same command again goes on from here", style="yellow")
            ctx.exit(130)


def _options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(names):
            function = OPTIONS[name](function)
        return function

    return decorate


OPTIONS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "dataset": click.option("--dataset", "datasets", multiple=True, help="Data set; repeatable. Default: digits."),
    "model": click.option("--model", "models", multiple=True, help="Architecture; repeatable. Default: by data set."),
    "defense": click.option(
        "--defense", "defenses", multiple=True, metavar="NAME[:key=value,...]", help="Repeatable. Default: all basics."
    ),
    "seeds": click.option("--seeds", default="0", show_default=True, help="Training seeds, e.g. 0,1,2 or 0-4."),
    "samples": click.option("--samples", type=click.IntRange(min=1), help="Test images a pair. Default: the suite's."),
    "attack": click.option("--attack", "attacks", multiple=True, metavar="LABEL", help="Only these; * and ? match."),
    "jobs": click.option("--jobs", type=click.IntRange(min=1), help="Worker processes. Default: one a core."),
    "device": click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ..."),
    "home": click.option(
        "--home",
        type=click.Path(path_type=Path),
        envvar="GAUNTLET_HOME",
        default=Path("gauntlet-runs"),
        show_default=True,
        help="Where everything is kept (GAUNTLET_HOME).",
    ),
    "data": click.option(
        "--data-root",
        type=click.Path(path_type=Path),
        envvar="GAUNTLET_DATA",
        help="Data sets' folder (GAUNTLET_DATA).",
    ),
    "download": click.option("--download", is_flag=True, help="Fetch missing data sets with torchvision."),
    "victim": click.option(
        "--victim",
        "victims",
        multiple=True,
        metavar="MODEL",
        help="A model of your own: FILE.py:FACTORY[?key=value&...], FILE.pt2, models:/NAME/VERSION or runs:/ID/PATH; "
        "repeatable. Its code is run.",
    ),
    "mean": click.option("--mean", metavar="NUMBERS", help="Per channel, subtracted before a --victim sees an image."),
    "std": click.option("--std", metavar="NUMBERS", help="Per channel, divided by afterwards."),
    "remedy": click.option(
        "--remedy",
        "remedies",
        multiple=True,
        metavar="KIND",
        help="How attacks see a --victim: probabilities, temperature=20, draws=16, none. Default: found out.",
    ),
    "stand-in": click.option(
        "--stand-in",
        "stand_ins",
        multiple=True,
        metavar="MODULE=FUNCTION",
        help="Gradient for a part of a --victim that has none: identity, or FILE.py:FUNCTION.",
    ),
    "cascade": click.option(
        "--cascade", is_flag=True, help="Attack only what still stands; the worst case is the same."
    ),
    "tracking": click.option("--tracking-uri", help="MLflow store (MLFLOW_TRACKING_URI). Default: SQLite in the home."),
}


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="gauntlet-bench")
def cli() -> None:
    """Measure how robust image classifiers are, with attacks of our own, of ART and of Foolbox."""


@cli.command("list")
@click.argument("what", type=click.Choice(["datasets", "models", "defenses", "attacks", "suites"]))
def list_(what: str) -> None:
    """List what there is."""
    from . import listing

    console.print(getattr(listing, what)())


@cli.command()
@click.argument("suite")
@_options("dataset", "model", "defense", "seeds", "samples", "attack", "cascade", "home", "data", "download")
@_options("victim", "mean", "std", "remedy", "stand-in", "tracking")
def plan(suite: str, home: Path, **options: Any) -> None:
    """List the model-attack pairs of SUITE, and which of them are done."""
    from .listing import plan_table
    from .store import Home

    made, _, _ = _plan(suite, home=home, device="cpu", **options)
    console.print(plan_table(made, Home(home)))


@cli.command()
@_options("dataset", "model", "defense", "seeds", "jobs", "device", "home", "data", "download")
def train(**options: Any) -> None:
    """Train models without attacking them."""
    options |= {"samples": None, "attacks": (), "tracking_uri": None, "cascade": False}
    options |= {"victims": (), "mean": None, "std": None, "remedies": (), "stand_ins": ()}
    _run(None, **options)


@cli.command("run")
@click.argument("suite")
@_options("dataset", "model", "defense", "seeds", "samples", "attack", "cascade", "jobs", "device", "home", "data")
@_options("download", "victim", "mean", "std", "remedy", "stand-in", "tracking")
def run_(suite: str, **options: Any) -> None:
    """Train what is missing, attack it with SUITE, judge, track, and write the report.

    The same command again does only what is missing.
    """
    _run(suite, **options)


@cli.command()
@_options("home", "tracking")
@click.option("--from", "source", type=click.Choice(["mlflow", "home"]), default="mlflow", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to. Default: HOME/report.")
def report(home: Path, tracking_uri: str | None, source: str, out: Path | None) -> None:
    """Write leaderboard.csv, pairs.csv, leaderboard.md and index.html."""
    from .campaign import boards_from_home
    from .runner import deliver
    from .store import Home
    from .tracking import Tracker, Unreachable
    from .tracking import tracking_uri as choose

    place = Home(home)
    if not home.exists():
        raise UserError(f"no runs in {home}; make some with: gauntlet run quick --home {home}")
    if source == "home":
        boards = boards_from_home(place)
    else:
        tracker = Tracker(place, choose(place, tracking_uri))
        try:
            deliver(tracker)
            boards = tracker.read_boards()
        except Unreachable as error:
            raise UserError(f"cannot read tracked runs ({error}); --from home reads the result files") from None
    _write_report(boards, out or home / "report")


@cli.command()
@_options("home", "tracking")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
def ui(home: Path, tracking_uri: str | None, host: str, port: int) -> None:
    """Open the MLflow UI on the runs."""
    from .registry import quiet_environment
    from .store import Home
    from .tracked import ui_links
    from .tracking import Tracker, Unreachable, default_uri
    from .tracking import tracking_uri as choose

    place = Home(home)
    uri = choose(place, tracking_uri)
    if uri == default_uri(place) and not (home / "mlflow.db").exists():
        raise UserError(f"no runs in {home}; make some with: gauntlet run quick --home {home}")
    quiet_environment()
    try:
        experiment = Tracker(place, uri).experiment
    except Unreachable as error:
        raise UserError(f"cannot open the tracking store ({error})") from None
    remote = uri.startswith(("http://", "https://"))
    for name, link in ui_links(uri if remote else f"http://{host}:{port}", experiment).items():
        console.print(f"models against attacks, {name}: {link}", soft_wrap=True, markup=False)
    if remote:
        return  # it has a server of its own
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        uri,
        "--host",
        host,
        "--port",
        str(port),
    ]
    os.execv(sys.executable, command)


@cli.command()
@_options("home", "data", "tracking")
def doctor(home: Path, data_root: Path | None, tracking_uri: str | None) -> None:
    """Check environment, versions, devices, data and tracking store."""
    from .doctor import examine
    from .store import Home

    table, healthy = examine(Home(home), data_root, tracking_uri)
    console.print(table)
    if not healthy:
        sys.exit(1)


def _plan(
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
    **guests: Any,
) -> tuple[Plan, dict[str, DataSource], list[Guest]]:
    """The plan of a command line, where its data sets come from, and the models that the user brings."""
    from defenses import defenses as kinds
    from suites import suite as find

    from .data import DataSource
    from .options import parse_defense, parse_seeds
    from .plan import Suite, specs
    from .plan import plan as make

    battery = find(suite) if suite is not None else Suite(name="train", summary="", attacks={}, budgets={})
    sources = {}
    for name in datasets or ("digits",):
        source = DataSource(name, root=data_root, download=download)
        sources[source.info().name] = source
    infos = {name: source.info() for name, source in sources.items()}
    brought = _guests(list(sources.values()), **guests)
    # who brings a model asks for the others by name
    chosen = defenses or (() if brought and not models else DEFAULT_DEFENSES)
    trainers = [parse_defense(text, kinds()) for text in chosen]
    wanted = [guest.spec for guest in brought]
    for info in infos.values():
        wanted += specs([info], models or (default_model(info.shape),), trainers, parse_seeds(seeds))
    arguments = {info: source.name for info, source in sources.items() if source.name != info}
    made = make(battery, wanted, infos, samples=samples, only=attacks, cascade=cascade, arguments=arguments)
    return made, sources, brought


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


def _run(
    suite: str | None,
    *,
    jobs: int | None,
    device: str,
    home: Path,
    tracking_uri: str | None,
    **options: Any,
) -> None:
    from .campaign import boards_from_home
    from .live import Display
    from .runner import run
    from .store import Home
    from .tracking import Tracker
    from .tracking import tracking_uri as choose
    from .work import Context

    _check_device(device)
    made, sources, guests = _plan(suite, home=home, device=device, tracking_uri=tracking_uri, **options)
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
    with Display(made, place, console) as display:
        ended = run(made, context, jobs=jobs or cores(), command=command, tracker=tracker, observe=display)
    for line, times in Counter(ended.failures).items():
        more = f" (and {times - 1} times more)" if times > 1 else ""
        complaints.print(f"gauntlet: {escape(line)}{more}", style="red", soft_wrap=True)
    if suite is not None:
        if any(c.exists() for c in [place.cell(cell.key) / "result.json" for cell in made.cells]):
            boards = boards_from_home(place, tracker.store if tracker is not None else None)
            _print_leaderboard([board for board in boards if board.suite == suite], made)
            _write_report(boards, home / "report")
        if ended.trouble:
            complaints.print(
                f"the tracking store is out of order ({escape(ended.trouble)}): {ended.waiting} results wait in "
                f"{place.pending}; the next command delivers them",
                style="yellow",
                soft_wrap=True,
            )
    else:
        from .listing import trained_table

        console.print(trained_table(made, place))
    if ended.failures:
        sys.exit(1)


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_device(device: str) -> None:
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        choices = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        reason = str(error).splitlines()[0]
        raise UserError(f"no device {device!r} here ({reason}); choose from {', '.join(choices)}") from None


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


def _write_report(boards: Sequence[Board], out: Path) -> None:
    import reports

    written = reports.write(boards, out)
    for file in written:
        console.print(f"wrote {file}", style="dim", markup=False, soft_wrap=True)


def main() -> None:
    """Entry point of the ``gauntlet`` command."""
    cli(prog_name="gauntlet")


if __name__ == "__main__":
    main()
