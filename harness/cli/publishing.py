"""Implementation of ``gauntlet publish``, ``verify`` and ``lower``."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, visible
from ..schema.counts import plural
from ..schema.eps import eps_text
from .console import UNDELIVERED, complain, console

if TYPE_CHECKING:
    from ..datasets.registry import Dataset
    from ..execution.jobs import Source
    from ..planning.specs import ModelSpec
    from ..publishing.verification import Verification
    from ..schema.models import ModelEntry
    from ..training.defense import Defense


def say(line: str, style: str | None = None) -> None:
    """Print a line that may hold anything."""
    console.print(visible(line), style=style, markup=False, soft_wrap=True)


def find_data(
    wanted: Collection[str],
    *,
    datasets: Sequence[str],
    data_root: Path | None,
    download: bool,
    resize: str | None,
    crop: str | None,
    classes: str | None,
) -> dict[str, Source]:
    """Where data sets lie, by name: those of ours that are wanted, and a user's own that were named.

    Raises:
        UserError: There is none of a name.
    """
    from ..datasets.registry import DATASETS, with_options
    from ..user_code.plugin_data import source

    where: dict[str, Any] = {"root": data_root, "download": download}
    given = [with_options(name, resize=resize, crop=crop, classes=classes) for name in datasets]
    sources = [source(name, **where) for name in given]
    # a name in a stranger's records is looked up, and never run
    sources += [source(name, **where) for name in sorted(set(wanted) & set(DATASETS) - set(given))]
    return {one.info().name: one for one in sources}


def loaded(sources: Mapping[str, Source]) -> dict[str, Dataset]:
    """Data sets in memory.

    Raises:
        UserError: One cannot be read.
    """
    return {name: source.load() for name, source in sources.items()}


def known(
    models: Sequence[str], defenses: Sequence[str], sources: Mapping[str, Source], **guests: Any
) -> tuple[dict[str, type[Defense]], dict[str, ModelSpec]]:
    """Defenses by name, and models of the user's by key: ours, and what the command line names; its code is run.

    Raises:
        UserError: What is named cannot be loaded.
    """
    from defenses import defenses as ours
    from defenses import known as known_defenses

    from ..user_code.plugins import architecture
    from .planning import guests_of

    for text in models:
        architecture(text)
    kinds = dict(ours())
    for text in defenses:
        kind = known_defenses()[text]
        kinds[kind.name] = kind
    with tempfile.TemporaryDirectory() as folder:
        brought = guests_of(list(sources.values()), home=Path(folder), thorough=False, **guests)
    return kinds, {guest.spec.key: guest.spec for guest in brought}


def publish_home(
    home: Path, *, out: Path | None, by: str, licence: str, no_weights: bool, weights_at: str, **data: Any
) -> None:
    """Write a home's bundle.

    Raises:
        UserError: Nothing was run there, or something is damaged.
    """
    from ..execution.runner import exclusive
    from ..publishing.archive import write
    from ..publishing.publish import bundle
    from ..records.home import Home, no_runs
    from ..records.plans import read_plans
    from ..schema.bundles import MANIFEST

    place = Home(home)
    if not place.plans.is_dir():
        raise no_runs(home)
    if weights_at and not no_weights:
        raise UserError("--weights-at says where weights are that are left out: add --no-weights")
    target = out or home / "bundle"
    with exclusive(place, say):
        wanted = {cell.dataset for plan in read_plans(place) for cell in plan.battery}
        files = bundle(
            place,
            loaded(find_data(wanted, **data)),
            by=by,
            licence=licence,
            weights_at=weights_at if no_weights else None,
            absent=lambda name: say(f"not there, though it was asked for: {name}", "yellow"),
        )
        write(target, files)
    manifest = files[MANIFEST]
    assert isinstance(manifest, bytes)
    size = sum(len(each) if isinstance(each, bytes) else each.stat().st_size for each in files.values())
    say(f"wrote {target}: {plural(len(files), 'file')}, {size / 1e6:.3g} MB")
    say(f"its manifest's SHA-256, to be told where readers trust it: {hashlib.sha256(manifest).hexdigest()}")


def verify_bundle(
    path: Path, *, device: str, digest: str, models: Sequence[str], defenses: Sequence[str], **options: Any
) -> None:
    """Verify a bundle and say what holds.

    Raises:
        UserError: It is none, or holds what no bundle may hold; a data set cannot be read.
        SystemExit: Something does not hold (1), or could not be looked at (2).
    """
    from ..publishing.archive import opened
    from ..publishing.verify import verify
    from ..records.files import read_record
    from ..schema.bundles import MANIFEST, Manifest

    data, guests = split(options)
    with opened(path) as folder:
        listed = folder / MANIFEST
        wanted = read_record(listed, Manifest, "the manifest").images if listed.is_file() else {}
        sources = find_data(wanted, **data)
        kinds, brought = known(models, defenses, sources, device=device, **guests)
        done = verify(folder, loaded(sources), kinds, brought, device=device, expected=digest)
    show(done)
    if not done.holds:
        sys.exit(2 if done.unjudged else 1)


def split(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of data sets, and those of models that the user brings."""
    of_data = ("datasets", "data_root", "download", "resize", "crop", "classes")
    data = {name: options[name] for name in of_data}
    return data, {name: value for name, value in options.items() if name not in of_data}


def show(done: Verification) -> None:
    """What was proved, number by number, then what does not hold, then one line."""
    from rich.markup import escape
    from rich.table import Table

    if done.proved:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("model", "suite", "threat", "images", "says", "at most", "certified"):
            table.add_column(column, overflow="fold")
        for one in done.proved:
            table.add_row(
                escape(visible(one.model)),
                escape(visible(one.suite)),
                f"{one.norm} {eps_text(one.eps)}",
                str(one.n),
                f"{100 * one.claimed / one.n:.2f} %",
                f"{100 * one.at_most / one.n:.2f} %",
                f"{one.certified} of {one.looked}" if one.looked else "-",
            )
        console.print(table)
    for note in done.notes:
        say(note, "dim")
    complain([*done.problems, *done.lacking])
    if done.manifest:
        say(f"SHA-256 of the manifest: {done.manifest}", "dim")
    say(done.verdict, "green" if done.holds else "red")


def lower_home(
    home: Path,
    images: Path,
    *,
    of: str,
    by: str,
    source: str,
    device: str,
    tracking_uri: str | None,
    models: Sequence[str],
    defenses: Sequence[str],
    **options: Any,
) -> None:
    """Let somebody's images count in a home, and say what fell.

    Raises:
        UserError: Nothing was run there, the file cannot be read, or several models may be meant.
    """
    import math

    from ..environment import command_line
    from ..execution.runner import deliver, exclusive
    from ..planning.declared import model_spec
    from ..publishing.archive import check_folder
    from ..publishing.images import read
    from ..publishing.lower import lower, moved
    from ..records.boards import boards_from_home
    from ..records.home import Home, no_runs
    from ..records.plans import read_plans
    from ..tracking.connection import store_uri
    from ..tracking.tracker import Tracker
    from .console import waiting

    if not by.strip() or not by.isprintable():
        raise UserError("--by says who found the images: a line of text")
    place = Home(home)
    if not place.plans.is_dir():
        raise no_runs(home)
    data_options, guests = split(options)
    with exclusive(place, say):
        for kind in ("models", "cells", "plans", "witnesses"):
            if (place.path / kind).is_dir():
                check_folder(place.path / kind)
        plans, before = read_plans(place), boards_from_home(place)
        entry = _chosen(of, [model for plan in plans for model in plan.models if model.ranked])
        sources = find_data({entry.dataset}, **data_options)
        if entry.dataset not in sources:
            raise UserError(f"{entry.dataset} is a data set of your own: name it with --dataset, as it was run with")
        guests |= {"device": device, "tracking_uri": tracking_uri}
        kinds, brought = known(models, defenses, sources, **guests)
        spec = model_spec(entry.declaration, kinds, brought)
        data = sources[entry.dataset].load()
        size = data.info.test_size
        given = read(images, size, 4 * size * math.prod(data.info.shape))
        how: dict[str, Any] = {"by": by, "source": source, "device": device, "command": command_line()}
        done = lower(place, before, plans, spec, entry, data, given, **how)
        complain(done.refused)
        tracker = Tracker(place, store_uri(place, tracking_uri))
        for plan, cell in done.pairs:
            tracker.mark(plan, cell)
        fell = moved(before, boards_from_home(place), entry.model) if done.pairs else []
    trouble = deliver(tracker) if done.pairs else ""
    for suite, norm, eps, was, now in fell:
        say(f"{suite}, {norm} {eps_text(eps)}: {100 * was:.2f} % -> {100 * now:.2f} %")
    what = f"{done.counted} of {len(given)} images break {entry.architecture} {entry.defense} within a budget"
    say(f"{what}; {plural(len(fell), 'accuracy', 'accuracies') if fell else 'no accuracy'} fell")
    complain(tracker.notes)
    if trouble:
        waiting(trouble, len(tracker.waiting()), place.pending)
        sys.exit(UNDELIVERED)


def _chosen(of: str, entries: Sequence[ModelEntry]) -> ModelEntry:
    """The model that is meant."""
    each = {entry.model: entry for entry in entries}  # the newest entry of each
    names = {key: f"{entry.architecture} {entry.defense} seed {entry.seed}" for key, entry in each.items()}
    fitting = [key for key, name in names.items() if key.startswith(of) or of in name]
    if len(fitting) == 1:
        return each[fitting[0]]
    choices = ", ".join(f"{key} ({name})" for key, name in names.items())
    raise UserError(f"of which model are the images? --of takes the beginning of a key: {choices}")


def export_home(
    home: Path,
    *,
    form: str,
    out: Path | None,
    by: str,
    title: str,
    link: str,
    venue: str,
    relationship: str,
    **data: Any,
) -> None:
    """Write a home's or bundle's results in the format of others.

    Raises:
        UserError: Nothing was run there, something is damaged, or a data set is missing.
    """
    from ..publishing.archive import opened
    from ..publishing.export import Paper, every_eval_ever, robustbench
    from ..publishing.strangers import check_home
    from ..records.files import write_bytes
    from ..records.home import Home, no_runs
    from ..records.plans import read_plans

    target = out or home.with_name(f"{home.name}-{form}")
    check_home(home)
    with nullcontext(home) if home.is_dir() else opened(home) as folder:
        place = Home(folder)
        if not place.plans.is_dir():
            raise no_runs(home)
        if form == "robustbench":
            wanted = {cell.dataset for plan in read_plans(place) for cell in plan.battery}
            paper = Paper(title=title, link=link, authors=by, venue=venue)
            files = robustbench(place, loaded(find_data(wanted, **data)), paper, lambda line: say(line, "yellow"))
        else:
            files = every_eval_ever(place, by=by or "anonymous", relationship=relationship, at=link)
        count = 0
        for name, content in files:
            write_bytes(target / name, content)
            count += 1
    say(f"wrote {target}: {plural(count, 'file')}")


def board_of(folder: Path, *, out: Path | None, title: str) -> None:
    """Write the board of a folder of bundles, and name those that do not count.

    Raises:
        UserError: There is no bundle.
        SystemExit: One of them does not count.
    """
    import reports

    from ..publishing.board import bundles

    target = out or folder / "board"
    entries = bundles(folder, target)
    complain([f"{entry.name}: {line}" for entry in entries for line in entry.trouble])
    for file in reports.write_board(entries, target, title=title):
        say(f"wrote {file}", "dim")
    whole = [entry for entry in entries if not entry.trouble]
    claims = sum(len(entry.claims) for entry in whole)
    say(f"{len(whole)} of {plural(len(entries), 'bundle')} can be read and counted, with {plural(claims, 'claim')}")
    if len(whole) < len(entries):
        sys.exit(1)
