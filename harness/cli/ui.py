"""Implementation of ``gauntlet ui``: MLflow's server on a home's store, up to where models stand against attacks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from .. import interruption
from ..errors import UserError
from ..redaction import without_password
from .console import complain, console, waiting

PATIENCE: Final = 120.0
"""Seconds that a server may take to answer: it imports MLflow, on a machine that may be busy."""

ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
"""Addresses that a server listens on and nobody can ask, and where it is asked."""


def serve(home: Path, tracking_uri: str | None, host: str, port: int) -> None:
    """Serve MLflow's UI until it is stopped, once it answers print where to look; of a remote store print that alone.

    Raises:
        UserError: Nothing was run there, the store cannot be opened, the port is taken, or the server did not start.
        SystemExit: The server ended.
    """
    from ..execution.runner import deliver
    from ..external.mlflow_model import quiet_environment
    from ..records.home import Home, no_runs
    from ..tracking.connection import Unreachable, default_uri, store_uri
    from ..tracking.payloads import ui_links
    from ..tracking.tracker import Tracker

    place = Home(home)
    uri = store_uri(place, tracking_uri)
    if uri == default_uri(place) and not (home / "mlflow.db").exists() and not any(place.plans.glob("*.json")):
        raise no_runs(home)
    quiet_environment()
    tracker = Tracker(place, uri)
    trouble = deliver(tracker)
    complain(tracker.notes)
    if trouble:
        waiting(trouble, len(tracker.waiting()), place.pending)
    try:
        experiment, sort = tracker.experiment, tracker.sort_key()
    except Unreachable as error:
        raise UserError(f"cannot open the tracking store ({error})") from None
    remote = uri.startswith(("http://", "https://"))
    asked = ANYWHERE.get(host, host)
    server = without_password(uri) if remote else f"http://{f'[{asked}]' if ':' in asked else asked}:{port}"
    links = ui_links(server, experiment, sort)
    if remote:
        show(links)  # it has a server of its own
        return
    check_port(host, port)
    child = subprocess.Popen(command(host, port), env=environment(uri))
    try:
        wait(child, server)
        show(links)
        sys.exit(child.wait())
    except KeyboardInterrupt:
        if interruption.status() != 128 + signal.SIGINT:
            sys.exit(interruption.status())
    finally:
        child.terminate()
        child.wait()


def command(host: str, port: int) -> list[str]:
    """The server's command line, which anybody on the machine can read: it names no store."""
    quiet = ["--uvicorn-opts", "--log-level warning"] if os.name == "posix" else []
    return [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), *quiet]


def environment(uri: str) -> dict[str, str]:
    """The server's environment, which its owner alone can read."""
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}
    return {**os.environ, **quiet, "MLFLOW_BACKEND_STORE_URI": uri}


def check_port(host: str, port: int) -> None:
    """Make sure that nobody else answers there.

    Raises:
        UserError: The address is taken, or is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"cannot listen on {host}:{port} ({error.strerror}); choose another --port") from None


def wait(child: subprocess.Popen[bytes], server: str) -> None:
    """Wait until a server answers.

    Raises:
        UserError: It ended, or took too long.
    """
    ask = build_opener(ProxyHandler({}))  # it is on this machine
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if (code := child.poll()) is not None:
            raise UserError(f"the MLflow server ended with status {code}; what it said stands above")
        try:
            with ask.open(f"{server}/health", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    raise UserError(f"the MLflow server did not answer within {PATIENCE:g} s")


def show(links: dict[str, str]) -> None:
    """Addresses, the one to begin with last."""
    for name, link in links.items():
        console.print(f"models against attacks, {name}: {link}", soft_wrap=True, markup=False)
