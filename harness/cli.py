"""The ``gauntlet`` command. Thin: every command parses, calls, and prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from .commands import complaints, console, cores, execute, make_plan, write_report
from .errors import UserError


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
        "--defense",
        "defenses",
        multiple=True,
        metavar="NAME[:key=value,...]",
        help="Repeatable. Default: all basics. NAME+NAME: the second built upon the first, e.g. "
        "standard+gaussian-blur:kernel=11.",
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
        help="How attacks see a --victim: probabilities, temperature=20, draws=16, none; votes=5: it draws, and is "
        "asked so often. Default: found out.",
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
@click.argument("what", type=click.Choice(["datasets", "models", "defenses", "attacks", "suites", "studies"]))
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

    made, _, _ = make_plan(suite, home=home, device="cpu", **options)
    console.print(plan_table(made, Home(home)))


@cli.command()
@_options("dataset", "model", "defense", "seeds", "jobs", "device", "home", "data", "download")
def train(**options: Any) -> None:
    """Train models without attacking them."""
    options |= {"samples": None, "attacks": (), "tracking_uri": None, "cascade": False}
    options |= {"victims": (), "mean": None, "std": None, "remedies": (), "stand_ins": ()}
    execute(None, **options)


@cli.command("run")
@click.argument("suite")
@_options("dataset", "model", "defense", "seeds", "samples", "attack", "cascade", "jobs", "device", "home", "data")
@_options("download", "victim", "mean", "std", "remedy", "stand-in", "tracking")
def run_(suite: str, **options: Any) -> None:
    """Train what is missing, attack it with SUITE, judge, track, and write the report.

    The same command again does only what is missing.
    """
    execute(suite, **options)


@cli.command()
@click.argument("study")
@click.option("--profile", default="cpu", show_default=True, help="smoke, cpu or full: how much is run.")
@click.option(
    "--only", multiple=True, metavar="ITEM", help="Only this table, figure or claim, e.g. table-5; repeatable."
)
@click.option("--seeds", help="Training seeds, e.g. 0,1,2 or 0-4. Default: the profile's.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to. Default: HOME/study-STUDY.")
@click.option("--dry-run", is_flag=True, help="Only list what there is to do.")
@_options("jobs", "device", "home", "data", "download", "tracking")
def reproduce(study: str, **options: Any) -> None:
    """Run what is missing of a paper's experiments, and write what came of every table, figure and claim.

    Writes study-STUDY.html, study-STUDY.md, claims.csv, environment.json and figures/.
    """
    from .commands import reproduce as execute_study

    execute_study(study, **options)


@cli.command()
@_options("home", "tracking")
@click.option("--from", "source", type=click.Choice(["mlflow", "home"]), default="mlflow", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to. Default: HOME/report.")
def report(home: Path, tracking_uri: str | None, source: str, out: Path | None) -> None:
    """Write leaderboard.csv, pairs.csv, leaderboard.md and index.html, with pages for models and comparisons."""
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
    write_report(boards, out or home / "report")


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
@click.option("--attacks", is_flag=True, help="Let every attack of every suite prove its strength; takes minutes.")
@click.option("--suite", "suites", multiple=True, help="With --attacks: only this suite's; repeatable.")
@click.option("--attack", "patterns", multiple=True, metavar="LABEL", help="With --attacks: only these; * and ? match.")
@click.option(
    "--force",
    "forced",
    multiple=True,
    metavar="TOOLKIT:CLASS[?key=value]",
    help="With --attacks: an attack that is refused, such as art:AutoConjugateGradient.",
)
@_options("jobs")
def doctor(
    home: Path,
    data_root: Path | None,
    tracking_uri: str | None,
    attacks: bool,
    suites: Sequence[str],
    patterns: Sequence[str],
    forced: Sequence[str],
    jobs: int | None,
) -> None:
    """Check environment, versions, devices, data and tracking store; or, with --attacks, the attacks."""
    from .doctor import examine, examine_attacks
    from .store import Home

    if attacks:
        from suites import suite as find
        from suites import suites as batteries

        chosen = [find(name) for name in suites] or list(batteries().values())
        with console.status("attacks against victims whose weakness is known") as status:

            def progress(done: int, total: int, *_: Any) -> None:
                status.update(f"attacks against victims whose weakness is known: {done} of {total}")

            table, healthy = examine_attacks(chosen, patterns, forced, jobs or cores(), progress)
    else:
        for name, value in {"--suite": suites, "--attack": patterns, "--force": forced}.items():
            if value:
                raise UserError(f"{name} chooses attacks: add --attacks")
        table, healthy = examine(Home(home), data_root, tracking_uri)
    console.print(table)
    if not healthy:
        sys.exit(1)


def main() -> None:
    """Entry point of the ``gauntlet`` command."""
    cli(prog_name="gauntlet")


if __name__ == "__main__":
    main()
