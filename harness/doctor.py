"""``gauntlet doctor``: is everything here that a run needs?"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from . import environment
from .data import DATASETS
from .errors import UserError
from .store import Home
from .tracking import Tracker, Unreachable, tracking_uri, undelivered


def examine(home: Home, data_root: Path | None, uri: str | None) -> tuple[Table, bool]:
    """Look at environment, versions, devices, data and the tracking store.

    Args:
        home: The home directory; it is created if need be.
        data_root: Where data sets lie.
        uri: Tracking store, see :func:`harness.tracking.tracking_uri`.

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
    store = tracking_uri(home, uri)
    try:
        tracker = Tracker(home, store)
        experiment = tracker.experiment
        table.add_row("tracking", escape(f"{store} (reachable, experiment {experiment})"))
    except Unreachable as error:
        table.add_row("tracking", escape(f"out of reach: {error}"), style="red")
        healthy = False
    table.add_row("undelivered", f"{undelivered(home)} results wait for the tracking store")
    return table, healthy


def _data_state(name: str, root: Path | None) -> str:
    from .data import load_dataset

    try:
        data = load_dataset(name, root=root)
    except UserError as error:
        return f"not found: {error}"
    return f"{len(data.x_train)} training and {len(data.x_test)} test images"
