"""The ``gauntlet`` command line: options and commands."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from .. import interruption
from ..environment import cores
from ..errors import UserError, visible
from ..options import number
from .commands import run_suite
from .console import UNDELIVERED, Spoils, complain, complaints, console, waiting, write_report
from .planning import check_device, foresee, make_plan, resolve_device


class Command(click.Command):
    """Says how a home is named to whoever names it as an argument."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments."""
        homes = [word for word in args if (Path(word) / "models").is_dir()]
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            stray = next((word for word in homes if error.message.endswith(f"extra argument ({word})")), None)
            if stray is None or all(parameter.name != "home" for parameter in self.params):
                raise
            raise click.UsageError(f"{error.message}: name a home with --home {stray}", ctx) from None


class Cli(click.Group):
    """Turns whatever the user got wrong into one line and a non-zero exit."""

    command_class = Command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with interruption.tidied():
            try:
                return self._invoke(ctx)
            except (KeyboardInterrupt, Exception):
                # libraries make errors of their own of an interruption that finds them at work, most at their import
                if not interruption.happened() and not isinstance(sys.exception(), KeyboardInterrupt):
                    raise
            complaints.print(interruption.SAID, style="yellow", soft_wrap=True)
            return ctx.exit(interruption.status())

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            what = str(error)
        except OSError as error:
            what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        if interruption.happened():
            raise KeyboardInterrupt
        complaints.print(f"gauntlet: {escape(visible(what))}", style="red", soft_wrap=True)
        return ctx.exit(2)


def _options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(names):
            function = OPTIONS[name](function)
        return function

    return decorate


def _was_given(ctx: click.Context, name: str) -> bool:
    """Whether an option is in the command line, and not just at its default."""
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _engine(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of where the work is done; they become one argument, ``engine``."""

    @functools.wraps(function)
    def call(*, ray_address: str | None, cpus_per_task: float, gpus_per_task: float | None, **options: Any) -> Any:
        from .parsing import parse_engine

        how: dict[str, Any] = {"ray": options["engine"] == "ray", "gpus": gpus_per_task}
        options["device"] = resolve_device(options["device"], **how)
        options["engine"] = parse_engine(
            options["engine"],
            address=ray_address,
            cpus=cpus_per_task,
            gpus=gpus_per_task,
            device=options["device"],
            jobs=options["jobs"],
        )
        return function(**options)

    for option in (
        click.option("--gpus-per-task", type=number, help="With Ray: 0.25, 1, ... Default: 1 with --device cuda."),
        click.option(
            "--cpus-per-task", type=number, default="1", show_default=True, help="With Ray: may be a fraction."
        ),
        click.option("--ray-address", metavar="HOST:PORT", help="A running cluster, or auto. Default: start one here."),
        click.option(
            "--engine",
            type=click.Choice(["local", "ray"]),
            default="local",
            show_default=True,
            help="Worker processes here, or a Ray cluster.",
        ),
    ):
        call = option(call)
    return call


def _datasets(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that name data sets, and say how a user's own are read."""
    for option in (
        click.option(
            "--classes",
            metavar="MAP",
            help="Of a set of your own: which outputs of the model its classes are: imagenet, or a JSON or CSV file.",
        ),
        click.option("--crop", metavar="PIXELS", help="Of a set of your own: the middle of each image, e.g. 224."),
        click.option(
            "--resize",
            metavar="PIXELS",
            help="Of a set of your own: length of the shorter side, e.g. 256, or WIDTHxHEIGHT.",
        ),
        click.option(
            "--dataset",
            "datasets",
            multiple=True,
            help="Data set; repeatable. Default: digits. Your own: images:DIR, parquet:FILE or FILE.py:NAME "
            "of a function that makes one (gauntlet list datasets).",
        ),
    ):
        function = option(function)
    return function


OPTIONS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "dataset": _datasets,
    "model": click.option(
        "--model",
        "models",
        multiple=True,
        help="Architecture, or FILE.py:NAME of a function that builds one; repeatable. Default: by data set.",
    ),
    "defense": click.option(
        "--defense",
        "defenses",
        multiple=True,
        metavar="NAME[:key=value,...]",
        help="Defense, or FILE.py:NAME of a class of your own; repeatable. Default: the basic ones. NAME+NAME: the "
        "second built upon the first, e.g. standard+gaussian-blur:kernel=11.",
    ),
    "seeds": click.option("--seeds", default="0", show_default=True, help="Training seeds, e.g. 0,1,2 or 0-4."),
    "samples": click.option(
        "--samples", type=click.IntRange(min=1), help="Test images per model-attack pair. Default: the suite's."
    ),
    "attack": click.option(
        "--attack", "attacks", multiple=True, metavar="LABEL", help="Only these attacks; * and ? match."
    ),
    "add-attack": click.option(
        "--add-attack",
        "add_attacks",
        multiple=True,
        metavar="ATTACK",
        help="Add an attack to the suite: NAME[:key=value,...] of ours or of a package, FILE.py:NAME[:key=value,...], "
        "art:CLASS[?key=value&...], or foolbox:CLASS[...]; repeatable. Its code is run.",
    ),
    "eps": click.option(
        "--eps",
        multiple=True,
        metavar="NUMBERS",
        help="Budgets in place of the data set's: 8/255 (of the one norm of --norm or the suite, else linf), l2=0.5,1; "
        "repeatable. Norms that it says nothing of are left out.",
    ),
    "targets": click.option(
        "--targets",
        metavar="next|random|CLASS",
        help="Targeted attacks: an image counts as broken only where it is classified as its target: the class after "
        "its own, a random one, or one class for all, by number or name. Another battery, ranked apart.",
    ),
    "norm": click.option("--norm", "norms", multiple=True, metavar="NORM", help="Only these norms: linf, l2, l1, l0."),
    "jobs": click.option("--jobs", type=click.IntRange(min=1), help="Worker processes. Default: one per core."),
    "device": click.option(
        "--device",
        default="auto",
        show_default=True,
        help="cpu, cuda, cuda:1, ... or auto: CUDA where there is one, else MPS, else the CPU.",
    ),
    "engine": _engine,
    "home": click.option(
        "--home",
        type=click.Path(path_type=Path),
        envvar="GAUNTLET_HOME",
        default=Path("gauntlet-runs"),
        show_default=True,
        help="Folder of all models, results and reports (GAUNTLET_HOME).",
    ),
    "data": click.option(
        "--data-root",
        type=click.Path(path_type=Path),
        envvar="GAUNTLET_DATA",
        help="Folder that data sets are read from (GAUNTLET_DATA).",
    ),
    "download": click.option("--download", is_flag=True, help="Fetch missing data sets with torchvision."),
    "victim": click.option(
        "--victim",
        "victims",
        multiple=True,
        metavar="MODEL",
        help="A trained model: FILE.py:FACTORY[?key=value&...&state_dict=FILE], FILE.pt2, timm:NAME, hf:NAME, "
        "torchvision:NAME[:WEIGHTS], robustbench:NAME, onnx:FILE, models:/NAME/VERSION or runs:/ID/PATH; repeatable. "
        "README.md says whose code is run.",
    ),
    "name": click.option(
        "--name",
        "names",
        multiple=True,
        metavar="NAME",
        help="What to call a --victim in tables and pages, one for each in their order. Default: its file's name.",
    ),
    "mean": click.option("--mean", metavar="NUMBERS", help="Per channel, subtracted before a --victim sees an image."),
    "std": click.option("--std", metavar="NUMBERS", help="Per channel, divided by after the mean."),
    "remedy": click.option(
        "--remedy",
        "remedies",
        multiple=True,
        metavar="KIND",
        help="How attacks see a --victim: probabilities, temperature=20, draws=16 or none; votes=5: the majority of "
        "so many random predictions is judged; grid=255: as files of 8 bits; gradients=wrong: more attacks "
        "that need none; gradients=missing: these alone. Default: found by inspection.",
    ),
    "stand-in": click.option(
        "--stand-in",
        "stand_ins",
        multiple=True,
        metavar="MODULE=FUNCTION",
        help="Gradient for a part of a --victim that has none: identity, or FILE.py:FUNCTION.",
    ),
    "batch": click.option(
        "--batch",
        type=click.IntRange(min=1),
        help="Images that a --victim takes at once. Default: found by inspection.",
    ),
    "cascade": click.option(
        "--cascade",
        is_flag=True,
        help="Attack only what may still fall: not what broke, provably stands, or stood at a larger eps.",
    ),
    "sampled": click.option(
        "--sampled",
        is_flag=True,
        help="A cascade whose black-box attacks and second opinions meet a tenth of what stands, and the rest if they "
        "break one or a check doubts the gradients: a suite of its own name, whose intervals allow for what nobody "
        "showed them.",
    ),
    "certify": click.option(
        "--certify",
        type=click.IntRange(min=0),
        metavar="N",
        help="Images to certify, the first N, whatever it costs. Default: one in eight, at less cost than the attacks.",
    ),
    "no-surrogate": click.option(
        "--no-surrogate",
        is_flag=True,
        help="Leave out attacks that need another trained model (transfers): nothing is trained for them, and no "
        "model gets a better grade than B.",
    ),
    "surrogate": click.option(
        "--surrogate",
        "surrogates",
        multiple=True,
        metavar="MODEL",
        help="What transfers are crafted on in place of the suite's: ARCHITECTURE[/DEFENSE[:key=value,...]], a network "
        "that is trained for it, or a trained model as --victim names one; several are one source, an ensemble.",
    ),
    "ensemble": click.option(
        "--ensemble",
        type=click.Choice(["logits", "loss"]),
        default="logits",
        show_default=True,
        help="What is averaged over several --surrogate: logits, or the loss, for apgd, fmn and gradient alone.",
    ),
    "part": click.option(
        "--part",
        metavar="I/N",
        help="Only the i-th of n disjoint shares of the pairs, each in its own --home; gauntlet sync merges them and "
        "writes to MLFLOW_TRACKING_URI.",
    ),
    "budget": click.option(
        "--budget",
        metavar="TIME",
        help="Begin nothing after this time (90s, 150m, 2.5h); say what is left and what it costs.",
    ),
    "witnesses": click.option(
        "--witnesses",
        type=click.Choice(["none", "worst-case", "all"]),
        default="worst-case",
        show_default=True,
        help="Images that broke a model and are kept, so that others can judge them again (gauntlet verify): of each "
        "model the nearest in every norm, those of all pairs, or none.",
    ),
    "tracking": click.option("--tracking-uri", help="MLflow store (MLFLOW_TRACKING_URI). Default: SQLite in the home."),
}


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="gauntlet-bench")
def cli() -> None:
    """Measure how robust image classifiers are, with attacks of our own, of ART and of Foolbox."""


@cli.command("list")
@click.argument("what", type=click.Choice(["datasets", "models", "defenses", "attacks", "suites", "studies", "checks"]))
def list_(what: str) -> None:
    """List data sets, models, defenses, attacks, suites, and more.

    Ours first, then what installed packages offer, with the package.
    """
    from . import tables

    console.print(getattr(tables, what)())
    if what != "studies" and (more := tables.offers(what)) is not None:
        console.print("", more)
    if what not in ("studies", "checks"):
        console.print(f"your own: FILE.py:NAME ({tables.OWN[what]})", style="dim", markup=False)


@cli.command()
@click.argument("suite")
@_options("dataset", "model", "defense", "seeds", "samples", "attack", "add-attack", "eps", "norm", "targets")
@_options("cascade", "sampled", "home", "data", "download", "certify", "witnesses", "surrogate", "ensemble")
@_options("device", "part", "no-surrogate", "victim", "name", "mean", "std", "remedy", "stand-in", "batch", "tracking")
@click.option("--profile", help="Where SUITE is a study, of which: smoke, cpu (default), night or full.")
@click.pass_context
def plan(
    ctx: click.Context, /, suite: str, home: Path, device: str, profile: str | None, witnesses: str, **options: Any
) -> None:
    """List a suite's model-attack pairs and what they may cost.

    Says which of them are done. SUITE may be a study: then it lists what gauntlet reproduce would do.
    """
    from suites import studies

    device = resolve_device(device)
    if suite in studies():
        from .commands import reproduce_study

        asked = [option for option in ctx.command.params if _was_given(ctx, str(option.name))]
        fitting = ("suite", "profile", "seeds", "samples", "home", "device", "data_root", "download")
        if refused := [option.opts[0] for option in asked if option.name not in fitting]:
            raise UserError(f"a study says itself what is run: leave out {refused[0]}")
        kept: dict[str, Any] = {name: options[name] for name in ("data_root", "download", "tracking_uri", "samples")}
        kept |= {"seeds": options["seeds"] if _was_given(ctx, "seeds") else None, "only": (), "out": None}
        reproduce_study(suite, profile=profile or "cpu", home=home, device=device, dry_run=True, **kept)
        return
    if profile is not None:
        raise UserError(f"{suite} is no study: only studies have profiles")
    made, _, _ = make_plan(suite, home=home, device=check_device(device), thorough=False, **options)
    foresee([made], home, device, witnesses)


@cli.command()
@_options("dataset", "model", "defense", "seeds", "jobs", "device", "engine", "budget", "home", "data", "download")
def train(**options: Any) -> None:
    """Train models without attacking them."""
    options |= {"samples": None, "attacks": (), "tracking_uri": None, "cascade": False}
    options |= {"victims": (), "names": (), "mean": None, "std": None, "remedies": (), "stand_ins": (), "batch": None}
    run_suite(None, **options)


@cli.command("run")
@click.argument("suite")
@_options("dataset", "model", "defense", "seeds", "samples", "attack", "add-attack", "eps", "norm", "targets")
@_options("cascade", "sampled", "jobs", "device", "home", "data")
@_options(
    "engine",
    "budget",
    "download",
    "part",
    "certify",
    "witnesses",
    "surrogate",
    "ensemble",
    "no-surrogate",
    "victim",
    "name",
    "mean",
    "std",
    "remedy",
    "stand-in",
    "batch",
    "tracking",
)
@click.option("--dry-run", is_flag=True, help="Only list what there is to do, and what it may cost.")
def run_(suite: str, **options: Any) -> None:
    """Train, attack, judge and track what is missing; report it.

    The same command again does only what is missing, with the same numbers.
    """
    run_suite(suite, **options)


@cli.command()
@click.argument("study")
@click.option("--profile", default="cpu", show_default=True, help="smoke, cpu, night or full: how much is run.")
@click.option(
    "--only",
    multiple=True,
    metavar="ITEM",
    help="Only this table, figure or claim, e.g. table-5; choices: what other ones do, or one's topic; battery: "
    "today's attacks. Repeatable.",
)
@click.option("--dataset", help="Data set that stands in for the profile's, e.g. cifar10-jpeg for cifar10.")
@click.option("--seeds", help="Training seeds, e.g. 0,1,2 or 0-4. Default: the profile's.")
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    help="Test images of the pairs that do not fix their own number. Default: the profile's.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to. Default: HOME/study-STUDY.")
@click.option("--dry-run", is_flag=True, help="Only list what there is to do, and what it may cost.")
@_options("jobs", "device", "engine", "budget", "home", "data", "download", "tracking")
def reproduce(study: str, **options: Any) -> None:
    """Run a paper's experiments and compare with its numbers.

    Runs what is missing, and writes every table, figure and claim with the printed value beside the measured one.
    Writes study-STUDY.html, study-STUDY.md, claims.csv, environment.json and figures/.
    """
    from .commands import reproduce_study

    reproduce_study(study, **options)


@cli.command()
@click.argument("study")
@click.option("--profile", default="cpu", show_default=True, help="smoke, cpu, night or full: whose values are tried.")
@click.option("--setting", "settings", multiple=True, metavar="NAME", help="Only this hyperparameter; repeatable.")
@click.option("--dry-run", is_flag=True, help="Only list what there is to do, and what it may cost.")
@_options("jobs", "device", "engine", "home", "data", "download")
def search(study: str, **options: Any) -> None:
    """Compare a study's hyperparameters on held-out training images.

    Writes search-STUDY-PROFILE.csv. Profiles hold what was found so; nothing is changed.
    """
    from .commands import search_study

    search_study(study, **options)


@cli.command()
@_options("home", "tracking")
@click.option(
    "--from",
    "source",
    type=click.Choice(["mlflow", "home"]),
    default="mlflow",
    show_default=True,
    help="Read tracked runs, or the result files of the home.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to. Default: HOME/report.")
def report(home: Path, tracking_uri: str | None, source: str, out: Path | None) -> None:
    """Write leaderboard, tables and pages from the tracked runs.

    Writes leaderboard.csv, pairs.csv, checks.csv, leaderboard.md and index.html, with pages for models and comparisons.
    """
    from ..execution.runner import deliver
    from ..publishing.strangers import check_home
    from ..records.boards import boards_from_home
    from ..records.home import Home, no_runs
    from ..tracking.connection import Unreachable, store_uri
    from ..tracking.reading import read_boards, tracked_otherwise
    from ..tracking.tracker import Tracker, undelivered

    place = Home(home)
    if not home.exists():
        raise no_runs(home)
    check_home(home)
    spoils, trouble = Spoils(), ""
    apart: list[str] = []
    if source == "home":
        boards = boards_from_home(place, spoiled=spoils)
        apart = tracked_otherwise(place)
        complain(apart)
    else:
        tracker = Tracker(place, store_uri(place, tracking_uri))
        trouble = deliver(tracker)
        complain(tracker.notes)
        if trouble:
            waiting(trouble, undelivered(place), place.pending)
        try:
            boards = read_boards(tracker, spoils)
        except Unreachable as error:
            raise UserError(f"cannot read tracked runs ({error}); --from home reads the result files") from None
    write_report(boards, out or home / "report")
    if spoils.found or apart:
        sys.exit(1)
    if trouble:
        sys.exit(UNDELIVERED)


@cli.command()
@click.argument("homes", nargs=-1, required=True, metavar="HOME...", type=click.Path(path_type=Path))
@_options("home", "tracking")
def sync(homes: Sequence[Path], home: Path, tracking_uri: str | None) -> None:
    """Merge homes, and rebuild the tracking store from their results.

    Merges what HOME... keep into --home.
    Equal results of one pair are one. Different ones are refused by name and change nothing; damaged files are named
    and left behind; the rest is merged.
    """
    from ..publishing.strangers import check_home
    from .commands import sync_homes

    for each in (*homes, home):
        check_home(each)
    sync_homes(homes, home=home, tracking_uri=tracking_uri)


@cli.command()
@click.argument("home", metavar="HOME", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder, FILE.tar or FILE.zip. Default: HOME/bundle. A bundle that is there is replaced.",
)
@click.option("--by", default="", metavar="NAME", help="Who measured; stands in the manifest and CITATION.cff.")
@click.option("--licence", default="CC-BY-4.0", show_default=True, metavar="SPDX", help="Licence of the bundle.")
@click.option("--no-weights", is_flag=True, help="Leave the models' weights out; their digests stay.")
@click.option("--weights-at", default="", metavar="ADDRESS", help="With --no-weights: where they can be had.")
@_options("dataset", "data", "download")
def publish(home: Path, **options: Any) -> None:
    """Write a home's results as a bundle that others can verify.

    Holds manifest, models, tables of every image, the images that broke the models, certificates, versions, licence and
    CITATION.cff. The same home makes the same bytes.
    """
    from .publishing import publish_home

    publish_home(home, **options)


_MINE = ("victim", "name", "mean", "std", "remedy", "stand-in", "batch", "tracking", "device")


@cli.command()
@click.argument("bundle", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--digest", default="", metavar="SHA256", help="What the manifest must have.")
@_options("dataset", "data", "download", "model", "defense", *_MINE)
def verify(bundle: Path, device: str, **options: Any) -> None:
    """Check a bundle's numbers, without attacking.

    Every file is held against the manifest, every image that broke a model is judged again, counts, intervals and ranks
    are made anew. No code of the bundle is run; what is a user's own in it is named with --model, --defense, --victim
    or --dataset. Exit status 0: every accuracy is at most what the bundle says.
    """
    from .publishing import verify_bundle

    verify_bundle(bundle, device=check_device(resolve_device(device)), **options)


@cli.command()
@click.argument("home", metavar="HOME", type=click.Path(path_type=Path))
@click.argument("images", metavar="IMAGES", type=click.Path(path_type=Path))
@click.option("--by", required=True, metavar="NAME", help="Who found the images.")
@click.option("--source", default="", metavar="TEXT", help="Where they are from: a paper, an address.")
@click.option("--of", default="", metavar="MODEL", help="Which model: the beginning of its key, or its name.")
@_options("dataset", "data", "download", "model", "defense", *_MINE)
def lower(home: Path, images: Path, device: str, **options: Any) -> None:
    """Let somebody's adversarial images lower a home's numbers.

    IMAGES is FILE.safetensors, FILE.npz, FILE.npy or FILE.pt of tensors: the whole test set, or some of it with their
    positions. Each is judged; those that break the model within a budget count from now on as an attack named after who
    found them, and the rest is named and does nothing. No number can rise.
    """
    from .publishing import lower_home

    lower_home(home, images, device=check_device(resolve_device(device)), **options)


@cli.command()
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to. Default: FOLDER/board.")
@click.option("--title", default="Robustness board", show_default=True, help="Heading of the page.")
def board(folder: Path, **options: Any) -> None:
    """Make a site and a table of the bundles in a folder.

    Writes index.html, board.md and board.csv: every model's lowest number, its history, who evaluated it, and a link to
    every bundle. Each is held against its manifest, and not judged again (gauntlet verify does). Needs no network.
    """
    from .publishing import board_of

    board_of(folder, **options)


@cli.command()
@click.argument("home", metavar="HOME|BUNDLE", type=click.Path(path_type=Path))
@click.option("--format", "form", required=True, type=click.Choice(["robustbench", "every-eval-ever"]), help="Whose.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to. Default: HOME-FORMAT beside it.")
@click.option("--by", default="", metavar="NAME", help="Who measured: authors, organization.")
@click.option("--title", default="", metavar="TEXT", help="Of the paper behind the models. Default: the defense.")
@click.option("--link", default="", metavar="ADDRESS", help="Of that paper, or where the results can be had.")
@click.option("--venue", default="", metavar="TEXT", help="Where it was published.")
@click.option(
    "--relationship",
    type=click.Choice(["first_party", "third_party", "collaborative", "other"]),
    default="first_party",
    show_default=True,
    help="Of who measured to the models.",
)
@_options("dataset", "data", "download")
def export(home: Path, **options: Any) -> None:
    """Write results in RobustBench's or Every Eval Ever's format.

    robustbench: the model-info JSON, the adversarial images as one .pt tensor, and the forms that claims are made by,
    filled in. every-eval-ever: a JSON file for each model, schema 0.3.0.
    """
    from .publishing import export_home

    export_home(home, **options)


@cli.command()
@click.argument("before", metavar="HOME_A", type=click.Path(path_type=Path))
@click.argument("after", metavar="HOME_B", type=click.Path(path_type=Path))
@click.option("--csv", type=click.Path(path_type=Path, dir_okay=False), help="Write every number, moved or not.")
def diff(before: Path, after: Path, csv: Path | None) -> None:
    """Compare two homes: which numbers moved beyond noise.

    What all attacks of a suite together left of each model, and the same pairs or other versions of them under the same
    names; on the same images with an exact paired test. Pairs of a cascade count in the worst case alone.
    """
    from ..publishing.strangers import check_home
    from .commands import diff_homes

    for each in (before, after):
        check_home(each)
    diff_homes(before, after, csv)


@cli.command()
@click.argument("key")
@_options("home")
def explain(key: str, home: Path) -> None:
    """Show what a key stands for, and whether its result is fresh.

    KEY is that of a pair or a model, or the beginning of one.
    """
    from ..publishing.strangers import check_home
    from ..records.explain import explain as explain_key
    from ..records.home import Home
    from .tables import explanation, versions

    check_home(home)
    console.print(explanation(explain_key(Home(home), key, versions())))


@cli.command()
@_options("home", "tracking")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that the server listens on.")
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="Its port.")
def ui(home: Path, tracking_uri: str | None, host: str, port: int) -> None:
    """Open the MLflow UI on models against attacks.

    Says where once the server answers.
    """
    from .ui import serve

    serve(home, tracking_uri, host, port)


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
    """Check the installation or, with --attacks, every attack.

    Checks environment, versions, devices, data and tracking store.
    """
    from ..records.home import Home
    from .doctor import examine, examine_attacks

    if attacks:
        from suites import suite as find_suite
        from suites import suites as all_suites

        from ..planning.gradient_free import besides

        chosen = [find_suite(name) for name in suites] or [*all_suites().values(), besides()]
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
    try:
        cli(prog_name="gauntlet")
    except SystemExit as end:
        if end.code not in interruption.STATUSES:
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(interruption.status())  # everything is closed; torch and MLflow take seconds to say farewell


if __name__ == "__main__":
    main()
