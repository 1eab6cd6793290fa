"""What the commands do: a command line becomes a plan, the plan is run, and its end is shown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..environment import command_line, cores
from ..errors import UserError
from ..redaction import without_password
from .console import Spoils, complain, console, print_claims, print_leaderboard, print_search, waiting, write_report

if TYPE_CHECKING:
    from ..datasets.registry import DataSource
    from ..execution.jobs import Context
    from ..execution.process_pool import Engine
    from ..execution.ray.engine import Cluster
    from ..planning.plan import Plan
    from ..trust.admission import Guest

UNASKED = "looked at one batch; a run asks first in other batches, orders and modes, and may refuse it then"

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
    thorough: bool = True,
    no_surrogate: bool = False,
    **guests: Any,
) -> tuple[Plan, dict[str, DataSource], list[Guest]]:
    """The plan of a command line, where its data sets come from, and the models that the user brings.

    Not ``thorough``, it asks of a user's model no more than its declaration needs.
    """
    from defenses import defenses as kinds
    from suites import suite as find

    from ..datasets.registry import DataSource
    from ..planning.partition import parse_part
    from ..planning.partition import part as take
    from ..planning.plan import plan as make
    from ..planning.plan import specs
    from ..planning.suite import Suite
    from .parsing import parse_chain, parse_seeds

    share = parse_part(part) if part is not None else None
    battery = find(suite) if suite is not None else Suite(name="train", summary="", attacks={}, budgets={})
    sources = {}
    for name in datasets or ("digits",):
        source = DataSource(name, root=data_root, download=download)
        sources[source.info().name] = source
    infos = {name: source.info() for name, source in sources.items()}
    brought = _guests(list(sources.values()), thorough=thorough, **guests)
    # who brings a model asks for the others by name
    chosen = defenses or (() if brought and not models else DEFAULT_DEFENSES)
    trainers = [parse_chain(text, kinds()) for text in chosen]
    wanted = [guest.spec for guest in brought]
    for info in infos.values():
        wanted += specs([info], models or (default_model(info.shape),), trainers, parse_seeds(seeds))
    arguments = {info: source.name for info, source in sources.items() if source.name != info}
    chosen_pairs: dict[str, Any] = {"samples": samples, "only": attacks, "cascade": cascade}
    made = make(battery, wanted, infos, **chosen_pairs, arguments=arguments, transfers=not no_surrogate)
    return take(made, *share) if share is not None else made, sources, brought


def _guests(
    sources: Sequence[DataSource],
    *,
    victims: Sequence[str],
    mean: str | None,
    std: str | None,
    remedies: Sequence[str],
    stand_ins: Sequence[str],
    batch: int | None,
    home: Path,
    device: str,
    tracking_uri: str | None,
    thorough: bool,
) -> list[Guest]:
    """Models that the user brings, each looked at on every data set."""
    given = {"--mean": mean, "--std": std, "--remedy": remedies, "--stand-in": stand_ins, "--batch": batch}
    if not victims:
        if alone := [name for name, value in given.items() if value]:
            raise UserError(f"{alone[0]} says something about a --victim, and none is given")
        return []
    from ..records.home import Home
    from ..tracking.connection import tracking_uri as choose
    from ..trust.admission import admit
    from .parsing import parse_channels, parse_remedy, parse_stand_ins

    channels = {"mean": parse_channels(mean, "--mean"), "std": parse_channels(std, "--std")}
    found = []
    for text in dict.fromkeys(victims):
        for source in sources:
            console.print(f"looking at {text} on {source.name}", style="dim", markup=False, soft_wrap=True)
            guest = admit(
                text,
                source.load(),
                **channels,
                remedy=parse_remedy(remedies, stand_ins),
                stand_ins=parse_stand_ins(stand_ins),
                batch=batch,
                device=device,
                thorough=thorough,
                fetched=home / "fetched",
                tracking_uri=choose(Home(home), tracking_uri),
            )
            for note in guest.notes:
                console.print(note, style="yellow", markup=False, soft_wrap=True)
            if not thorough:
                console.print(f"{text}: {UNASKED}", style="dim", markup=False, soft_wrap=True)
            found.append(guest)
    return found


def admission(guest: Guest, made: Plan) -> str:
    """What looking at a model cost, beside what its battery declares."""
    from ..execution.estimate import passes

    cells = [cell for cell in made.battery if cell.victim.key == guest.spec.key]
    spent, images = guest.passes, max((cell.n for cell in cells), default=0)
    battery = sum(passes(cell.attack) * cell.n for cell in cells)
    line = f"{guest.spec.architecture}: looked at with {spent} passes of an image"
    return f"{line}, {spent / images:.1f} an image and {spent / battery:.1%} of its battery's" if battery else line


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
    from ..execution.jobs import Context
    from ..execution.runner import run
    from ..records.boards import boards_from_home
    from ..records.home import Home
    from ..tracking.connection import tracking_uri as choose
    from ..tracking.tracker import Tracker
    from .progress import Display

    here = check_device(device, engine)
    made, sources, guests = make_plan(
        suite, home=home, device=here, tracking_uri=tracking_uri, thorough=not dry_run, **options
    )
    if dry_run:
        foresee([made], home, here)
        return
    place = Home(home).create()
    for guest in guests:
        guest.register(place)
        console.print(admission(guest, made), style="dim", markup=False, soft_wrap=True)
    if options["download"]:
        for source in sources.values():
            source.load()  # once, here: workers would all fetch at the same time
    uri = choose(place, tracking_uri, part=options.get("part"))
    tracker = Tracker(place, uri) if suite is not None else None
    context = Context(place, sources, device)
    command = command_line()
    with _workers(engine, context) as workers, Display(made, place, console) as display:
        ended = run(
            made, context, jobs=jobs or cores(), command=command, tracker=tracker, observe=display, engine=workers
        )
    complain(ended.failures)
    spoiled = False
    if suite is not None:
        if any(c.exists() for c in [place.cell(cell.key) / "result.json" for cell in made.cells]):
            spoils = Spoils({cell.key for cell in made.cells})
            boards = boards_from_home(place, tracker.store if tracker is not None else None, spoils)
            spoiled = spoils.found
            print_leaderboard([board for board in boards if board.suite == suite], made)
            write_report(boards, home / "report")
        if ended.trouble:
            waiting(ended.trouble, ended.waiting, place.pending)
    else:
        from .tables import trained_table

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

    from ..datasets.registry import DataSource
    from ..execution.jobs import Context
    from ..records.home import Home
    from ..studies.experiment import blueprint
    from ..studies.reproduce import execute as carry_out
    from ..studies.reproduce import gather
    from ..tracking.connection import tracking_uri as choose
    from ..tracking.tracker import Tracker
    from .parsing import parse_seeds
    from .progress import Display

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
    print_claims(outcome.findings)
    for file in reports.write_study(outcome, out or home / f"study-{name}"):
        if file.suffix in (".md", ".csv", ".html"):
            console.print(f"wrote {file}", style="dim", markup=False, soft_wrap=True)
    complain([line for report in ended for line in report.failures])
    if trouble := next((report for report in ended if report.trouble), None):
        waiting(trouble.trouble, ended[-1].waiting, place.pending)
    if any(report.failures for report in ended):
        sys.exit(1)


def search(
    name: str,
    *,
    profile: str,
    settings: Sequence[str],
    dry_run: bool,
    jobs: int | None,
    device: str,
    home: Path,
    data_root: Path | None,
    download: bool,
    engine: Cluster | None = None,
) -> None:
    """Train a network for every value of a study's searches, compare them, and write the table.

    Raises:
        UserError: Unknown study, profile or setting; the home or the data cannot be used.
        SystemExit: A training failed.
    """
    from suites import study as find

    from ..datasets.registry import DataSource
    from ..execution.jobs import Context
    from ..execution.runner import run
    from ..records.files import write_bytes
    from ..records.home import Home
    from ..studies.search import candidates, plan, scores
    from .progress import Display

    here = check_device(device, engine)
    study = find(name)
    source = DataSource(study.profile(profile).dataset, root=data_root, download=download)
    tried = candidates(study, profile, source.info(), settings)
    made = plan(study, profile, source.info(), tried)
    if dry_run:
        foresee([made], home, here)
        return
    data = source.load()
    place = Home(home).create()
    context = Context(place, {data.info.name: source}, device)
    command = command_line()
    with _workers(engine, context) as workers, Display(made, place, console) as display:
        ended = run(made, context, jobs=jobs or cores(), command=command, observe=display, engine=workers)
    frame = scores(tried, place, data, here)
    print_search(frame)
    out = home / f"search-{name}-{profile}.csv"
    write_bytes(out, frame.to_csv(index=False, lineterminator="\n").encode())
    console.print(f"wrote {out}", style="dim", markup=False, soft_wrap=True)
    complain(ended.failures)
    if ended.failures:
        sys.exit(1)


def sync(given: Sequence[Path], *, home: Path, tracking_uri: str | None) -> None:
    """Merge homes into one, and bring its tracking store up to date.

    Raises:
        UserError: One of them is no home, or the one merged into cannot be written.
        SystemExit: Something was refused, damaged or not delivered.
    """
    from ..execution.runner import exclusive
    from ..records.home import Home
    from ..records.merge import homes, merge
    from ..tracking.connection import Unreachable
    from ..tracking.connection import tracking_uri as choose
    from ..tracking.tracker import Tracker

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
            complain([f"damaged: {line}" for line in done.damaged] + [f"refused: {line}" for line in done.refused])
        try:
            delivered = tracker.rebuild(spoils)
            where = without_password(tracker.uri)
            console.print(f"{delivered} results tracked in {where}", style="dim", markup=False, soft_wrap=True)
        except Unreachable as error:
            trouble = str(error)
    if trouble:
        waiting(trouble, len(tracker.waiting()), into.pending)
    if trouble or spoils.found or not whole:
        sys.exit(1)


def diff(before: Path, after: Path, csv: Path | None) -> None:
    """Show which worst cases and pairs moved between two homes.

    Raises:
        UserError: One of them is no home.
    """
    from ..records.diff import counts, differences, write
    from ..records.home import Home
    from .tables import moved_table

    spoils = Spoils()
    frame = differences(Home(before), Home(after), spoils)
    moved = frame[frame["state"].isin(["beyond noise", "within noise"])]
    if len(moved):
        console.print(moved_table(moved))
    console.print(f"A is {before}, B is {after}", markup=False, soft_wrap=True)
    worst = frame["suite"] != ""
    for what, rows in (("worst cases of models", frame[worst]), ("pairs", frame[~worst])):
        found = ", ".join(f"{count} {state}" for state, count in counts(rows).items())
        console.print(f"{what}: {found}", soft_wrap=True)
    if csv is not None:
        write(frame, csv)
        console.print(f"wrote {csv}", style="dim", markup=False, soft_wrap=True)


def foresee(plans: Sequence[Plan], home: Path, device: str, *, titles: bool = False) -> None:
    """Show the pairs of plans, what of them is done, and a line with what the rest may cost."""
    from ..execution.estimate import estimate
    from ..records.home import Home
    from .tables import plan_table, surrogates

    for plan in plans:
        table = plan_table(plan, Home(home))
        if titles:
            table.title = f"{plan.suite.name}: {plan.suite.summary}"
        console.print(table)
        if plan.left_out:
            console.print(f"left out: {', '.join(plan.left_out)}", markup=False, soft_wrap=True)
    found = estimate(plans, Home(home), device)
    for line in surrogates(plans, Home(home), found.training_of):
        console.print(line, markup=False, soft_wrap=True)
    console.print(str(found), style="dim", markup=False, soft_wrap=True)


def _workers(engine: Cluster | None, context: Context) -> AbstractContextManager[Engine | None]:
    """What spreads the work, if it is not the processes of this machine."""
    if engine is None:
        return nullcontext()
    from ..execution.ray.engine import RayEngine

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
