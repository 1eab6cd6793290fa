"""Implementation of the commands that plan, run, reproduce and search."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..environment import command_line, cores
from ..errors import UserError, unknown
from ..redaction import without_password
from .console import (
    UNDELIVERED,
    Spoils,
    complain,
    console,
    print_claims,
    print_files,
    print_leaderboard,
    print_search,
    step,
    waiting,
    write_report,
)  # fmt: skip
from .planning import admission, check_device, foresee, make_plan, name_device

if TYPE_CHECKING:
    from ..execution.jobs import Context, Source
    from ..execution.process_pool import Engine
    from ..execution.ray.engine import Cluster
    from ..execution.runner import Report
    from ..planning.plan import Plan
    from ..records.home import Home
    from ..records.witnesses import Mode
    from ..schema.pairs import Result
    from ..tracking.tracker import Tracker


def run_plans(
    plans: Sequence[Plan],
    place: Home,
    sources: Mapping[str, Source],
    *,
    jobs: int | None,
    device: str,
    engine: Cluster | None,
    download: bool,
    tracker: Tracker | None = None,
    budget: float = math.inf,
    witnesses: Mode = "worst-case",
) -> list[Report]:
    """Run what is missing of plans, one after the other, each with its progress shown.

    After ``budget`` seconds no task is begun; what is left is said, with its cost.
    """
    from ..execution.estimate import estimate
    from ..execution.jobs import Context
    from ..execution.memory import check_memory, free
    from ..execution.progress import Display
    from ..execution.runner import mend_models, run

    name_device(device)
    if download:
        for source in sources.values():
            source.load()  # once, here: workers would all fetch at the same time
    context = Context(place.create(), dict(sources), device)
    mend_models(place, plans, lambda line: console.print(line, style="yellow", markup=False, soft_wrap=True))
    absent = [why for source in sources.values() if (why := source.missing())]
    if absent and (left := estimate(plans, place, limit=0.0)) and (left.trainings or left.pairs):
        raise UserError(absent[0])
    if engine is None and device == "cpu" and estimate(plans, place, limit=0.0).pairs:
        check_memory(plans, jobs or cores(), free())
    command, ended, until = command_line(), [], time.monotonic() + budget
    with _workers(engine, context) as workers:
        for plan in plans:
            if plan.models:
                with Display(plan, place, console) as display:
                    how: dict[str, Any] = {"tracker": tracker, "observe": display, "engine": workers, "until": until}
                    how["witnesses"] = witnesses
                    ended.append(run(plan, context, jobs=jobs or cores(), command=command, **how))
    if any(report.stopped for report in ended):
        left = estimate(plans, place, "cpu" if engine is not None else device)
        console.print("the time is up; the same command again goes on from here", style="yellow")
        console.print(str(left), style="dim", markup=False, soft_wrap=True)
    return ended


def conclude(ended: Sequence[Report], place: Home, *, spoiled: bool = False) -> None:
    """Say what failed or waits for the tracking store.

    Raises:
        SystemExit: A model or a pair failed, or something was damaged; or the tracking store lacks something.
    """
    complain([line for report in ended for line in report.failures])
    if trouble := next((report.trouble for report in ended if report.trouble), ""):
        waiting(trouble, ended[-1].waiting, place.pending)
    if spoiled or any(report.failures for report in ended):
        sys.exit(1)
    if trouble or any(report.waiting for report in ended):
        sys.exit(UNDELIVERED)


def _crashed(results: Iterable[Result]) -> bool:
    """Name the attacks that crashed; whether there is any."""
    lines = [f"crashed: {one}, {one.attack}: {'; '.join(one.errors)}" for one in results if one.status == "crashed"]
    complain(lines)
    return bool(lines)


def _workers(engine: Cluster | None, context: Context) -> AbstractContextManager[Engine | None]:
    """What spreads the work, if it is not the processes of this machine."""
    if engine is None:
        return nullcontext()
    from ..execution.ray.engine import RayEngine

    return RayEngine(engine, context)


def run_suite(
    suite: str | None,
    *,
    jobs: int | None,
    device: str,
    home: Path,
    tracking_uri: str | None,
    engine: Cluster | None = None,
    dry_run: bool = False,
    budget: str | None = None,
    witnesses: Mode = "worst-case",
    **options: Any,
) -> None:
    """Run what is missing of a command line (training alone, without a suite), and show how it ended.

    A dry run lists it instead.

    Raises:
        UserError: Something in it is wrong, or the home cannot be used.
        SystemExit: A model or a pair failed, or an attack crashed.
    """
    from ..records.boards import boards_from_home
    from ..records.home import Home
    from ..tracking.connection import store_uri
    from ..tracking.tracker import Tracker
    from .parsing import parse_duration
    from .tables import trained_table

    seconds = parse_duration(budget)
    here = check_device(device, engine)
    with step("reading the data, looking at models that were brought along, planning"):
        made, sources, guests = make_plan(
            suite, home=home, device=here, tracking_uri=tracking_uri, thorough=not dry_run, **options
        )
    if dry_run:
        foresee([made], home, here, witnesses)
        return
    place = Home(home).create()
    for guest in guests:
        guest.register(place)
        console.print(admission(guest, made), style="dim", markup=False, soft_wrap=True)
    uri = store_uri(place, tracking_uri, part=options.get("part"))
    tracker = Tracker(place, uri) if suite is not None else None
    how: dict[str, Any] = {"jobs": jobs, "device": device, "engine": engine, "download": options["download"]}
    ended = run_plans([made], place, sources, **how, tracker=tracker, budget=seconds, witnesses=witnesses)
    spoiled = False
    if tracker is None:
        console.print(trained_table(made, place))
    elif any((place.cell(cell.key) / "result.json").exists() for cell in made.cells):
        spoils = Spoils({cell.key for cell in made.cells})
        with step("reading the results"):
            boards = boards_from_home(place, tracker.store, spoils)
        found = {pair.result.cell: pair.result for board in boards for pair in board.pairs}
        spoiled = _crashed(found[cell.key] for cell in made.cells if cell.key in found) or spoils.found
        print_leaderboard([board for board in boards if board.suite == made.suite.name], made)
        write_report(boards, home / "report")
    conclude(ended, place, spoiled=spoiled)


def reproduce_study(
    name: str,
    *,
    profile: str,
    only: Sequence[str],
    seeds: str | None,
    out: Path | None,
    dry_run: bool,
    device: str,
    home: Path,
    data_root: Path | None,
    download: bool,
    tracking_uri: str | None,
    dataset: str | None = None,
    samples: int | None = None,
    jobs: int | None = None,
    engine: Cluster | None = None,
    budget: str | None = None,
) -> None:
    """Run what a study lacks, and write what came of it.

    Raises:
        UserError: Unknown study, profile or item; the home or the data cannot be used.
        SystemExit: A model or a pair failed.
    """
    import reports
    from suites import study as find_study
    from suites import suites

    from ..datasets.registry import DATASETS, DataSource
    from ..records.files import read_record
    from ..records.home import Home
    from ..schema.pairs import Result
    from ..studies.experiment import design
    from ..studies.reproduce import gather
    from ..tracking.connection import store_uri
    from ..tracking.tracker import Tracker
    from .parsing import parse_duration, parse_seeds

    seconds = parse_duration(budget)
    here = check_device(device, engine)
    study = find_study(name)
    own = study.profile(profile).dataset
    if dataset is not None and dataset not in DATASETS:
        raise unknown("data set", dataset, DATASETS)
    source = DataSource(dataset or own, root=data_root, download=download)
    chosen = parse_seeds(seeds) if seeds is not None else None
    experiment = design(study, profile, source.info(), suites(), only=only, seeds=chosen, samples=samples)
    plans = [experiment.plan, *experiment.judgements]
    if dry_run:
        foresee(plans, home, here, titles=True)
        return
    place = Home(home).create()
    tracker = Tracker(place, store_uri(place, tracking_uri))
    how: dict[str, Any] = {"jobs": jobs, "device": device, "engine": engine, "download": download}
    ended = run_plans(plans, place, {source.info().name: source}, **how, tracker=tracker, budget=seconds)
    record = gather(experiment, place, device=here, data=source.load())
    print_claims(record)
    written = reports.write_study(record, out or home / f"study-{name}")
    print_files(written[-1], [file.name for file in written[:-1] if file.suffix in (".md", ".csv")])
    files = [place.cell(cell.key) / "result.json" for plan in plans for cell in plan.cells]
    results = (read_record(file, Result, "the result") for file in files if file.exists())
    conclude(ended, place, spoiled=_crashed(results))


def search_study(
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
    from suites import study as find_study

    from ..datasets.registry import DataSource
    from ..records.files import write_bytes
    from ..records.home import Home
    from ..studies.search import candidates, plan, scores

    here = check_device(device, engine)
    study = find_study(name)
    source = DataSource(study.profile(profile).dataset, root=data_root, download=download)
    tried = candidates(study, profile, source.info(), settings)
    made = plan(study, profile, source.info(), tried)
    if dry_run:
        foresee([made], home, here)
        return
    place, data = Home(home).create(), source.load()
    how: dict[str, Any] = {"jobs": jobs, "device": device, "engine": engine, "download": False}
    ended = run_plans([made], place, {data.info.name: source}, **how)
    frame = scores(tried, place, data, here)
    print_search(frame)
    out = home / f"search-{name}-{profile}.csv"
    write_bytes(out, frame.to_csv(index=False, lineterminator="\n").encode())
    console.print(f"wrote {out}", style="dim", markup=False, soft_wrap=True)
    conclude(ended, place)


def sync_homes(given: Sequence[Path], *, home: Path, tracking_uri: str | None) -> None:
    """Merge homes into one, and bring its tracking store up to date.

    Raises:
        UserError: One of them is no home, or the one merged into cannot be written.
        SystemExit: Something was refused, damaged or not delivered.
    """
    from ..execution.runner import exclusive
    from ..records.home import Home
    from ..records.merge import homes, merge
    from ..tracking.connection import Unreachable, store_uri
    from ..tracking.tracker import Tracker

    sources = homes(given, home)
    into = Home(home).create()
    tracker = Tracker(into, store_uri(into, tracking_uri))
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
    complain(tracker.notes)
    if trouble:
        waiting(trouble, len(tracker.waiting()), into.pending)
    if spoils.found or not whole:
        sys.exit(1)
    if trouble:
        sys.exit(UNDELIVERED)


def diff_homes(before: Path, after: Path, csv: Path | None) -> None:
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
