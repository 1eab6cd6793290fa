"""``gauntlet doctor``: check versions, devices, data, tracking store and, on demand, every attack."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from .. import environment, redaction
from ..attacks.base import Attack, fits
from ..attacks.toolkits.art import Art
from ..attacks.toolkits.foolbox import Foolbox
from ..datasets.registry import DATASETS
from ..errors import UserError, unknown
from ..options import literal, pairs
from ..planning.suite import Suite
from ..records.home import Home
from ..selftest.run import Progress, SelfTestResult, attacks_of, run
from ..threat import Norm
from ..tracking.connection import Unreachable, store_uri
from ..tracking.tracker import Tracker, undelivered


def examine(home: Home, data_root: Path | None, uri: str | None) -> tuple[Table, bool]:
    """Look at environment, versions, devices, data and the tracking store; the home is created if need be.

    Returns:
        A table for people, and whether all that a run on the embedded data needs is in order. Data sets that are
        not there are reported, but are no fault.
    """
    import torch

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    healthy = True
    for name, version in environment.versions().items():
        table.add_row(name, version)
        healthy &= version != "not installed" or name == "gauntlet-bench"
    table.add_row("commit", environment.git_commit() or "not in a checkout")
    table.add_row("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    devices = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    table.add_row("devices", ", ".join(["cpu", *devices]))
    root = data_root or (Path(os.environ["GAUNTLET_DATA"]) if os.environ.get("GAUNTLET_DATA") else None)
    table.add_row("data root", str(root) if root else "not set: only the embedded digits (--data-root, GAUNTLET_DATA)")
    for name in DATASETS:
        table.add_row(f"  {name}", escape(_data_state(name, root)))
    try:
        home.create()
        table.add_row("home", f"{home.path.resolve()} (writable)")
    except UserError as error:
        table.add_row("home", escape(str(error)), style="red")
        return table, False
    store = store_uri(home, uri)
    try:
        tracker = Tracker(home, store)
        experiment = tracker.experiment
        table.add_row("tracking", escape(f"{redaction.without_password(store)} (reachable, experiment {experiment})"))
    except Unreachable as error:
        table.add_row("tracking", escape(f"out of reach: {error}"), style="red")
        healthy = False
    table.add_row("undelivered", f"{undelivered(home)} results wait for the tracking store")
    return table, healthy


def _data_state(name: str, root: Path | None) -> str:
    from ..datasets.registry import load_dataset

    try:
        data = load_dataset(name, root=root)
    except UserError as error:
        return f"not found: {error}"
    return f"{len(data.x_train)} training and {len(data.x_test)} test images"


_DOORS = {"art": Art, "foolbox": Foolbox}


def examine_attacks(
    suites: Iterable[Suite],
    patterns: Sequence[str] = (),
    forced: Sequence[str] = (),
    jobs: int = 1,
    progress: Progress | None = None,
) -> tuple[Table, bool]:
    """Let attacks prove their strength on the reference victims; see :mod:`harness.selftest.run`.

    Each attack of the suites is tested once, if its label (with or without settings) matches one of the patterns or
    there are none; beside them those that are ``forced`` (:func:`parse_forced`), or without patterns they alone.

    Returns:
        A table for people, a row for each attack and norm, and whether all of them passed.

    Raises:
        UserError: A pattern that no attack of the suites matches, a forced attack that cannot be called.
    """
    chosen = [(attack, norm) for text in forced for attack in [parse_forced(text)] for norm in attack.supported_norms]
    if patterns or not forced:
        chosen = _matching(attacks_of(suites), patterns) + chosen
    chosen = list(dict.fromkeys(chosen))
    found = run(chosen, jobs=jobs, progress=progress)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("toolkit", "attack", "norm", "seconds", "strength"):
        table.add_column(column, overflow="fold", justify="right" if column == "seconds" else "left")
    failed = 0
    for attack, norm in chosen:
        mine = [f for f in found if (f.attack, f.toolkit, f.norm) == (attack.label, attack.toolkit, norm)]
        faults = [finding for finding in mine if not finding.passed]
        failed += bool(faults)
        seconds = f"{sum(finding.seconds for finding in mine):.1f}"
        victims = len({finding.victim for finding in mine})
        words = "\n".join(_complaints(faults)) or f"passed on {victims} victims"
        style = "red" if faults else None
        table.add_row(attack.toolkit, escape(attack.label), norm, seconds, escape(words), style=style)
    table.caption = f"{len(chosen)} attacks and norms: {len(chosen) - failed} passed, {failed} failed"
    table.caption_justify = "left"
    return table, not failed


def parse_forced(text: str) -> Attack:
    """Read ``TOOLKIT:CLASS`` or ``TOOLKIT:CLASS?option=value&option=value``: an attack, also one that is refused.

    Raises:
        UserError: Unknown toolkit, attack or option; an attack of which the tables know too little to call it.
    """
    toolkit, _, rest = text.partition(":")
    name, _, settings = rest.partition("?")
    if toolkit not in _DOORS:
        raise unknown("toolkit", toolkit, _DOORS)
    options = {key: literal(value) for key, value in pairs(settings, "&", f"{toolkit} {name}").items()}
    attack = _DOORS[toolkit].forced(name, **options)
    if not attack.supported_norms:
        defect = attack.capability.defect
        raise UserError(f"{toolkit} {name} cannot be forced, the tables only know why it is refused: {defect}")
    return attack


def _matching(attacks: list[tuple[Attack, Norm]], patterns: Sequence[str]) -> list[tuple[Attack, Norm]]:
    labels = sorted({attack.label for attack, _ in attacks})
    for pattern in patterns:
        if not any(fits(label, [pattern]) for label in labels):
            raise unknown("attack", pattern, labels)
    return [(attack, norm) for attack, norm in attacks if not patterns or fits(attack.label, patterns)]


def _complaints(faults: Sequence[SelfTestResult]) -> list[str]:
    """A line for every expectation that was not met; victims on which the same was measured share one."""
    lines: dict[tuple[str, str], list[str]] = {}
    for fault in faults:
        lines.setdefault((fault.expected, fault.measured), []).append(fault.victim)
    return [
        f"{_few(victims)}: {measured}, where {expected} was stated" for (expected, measured), victims in lines.items()
    ]


def _few(names: Sequence[str]) -> str:
    return " / ".join(names[:3]) + (f" / {len(names) - 3} more" if len(names) > 3 else "")
