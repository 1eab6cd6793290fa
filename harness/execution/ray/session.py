"""Connection to Ray: resources of the cluster, and whether it was started for this run."""

from __future__ import annotations

import math
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...environment import cores
from ...errors import UserError, first_line

LOOPBACK: Final = "127.0.0.1"

ANSWER: Final = 10.0
"""Seconds that a running cluster has to answer."""


def load(*, private: bool = False) -> Any:
    """The module ``ray``.

    Where a cluster is to be started (``private``), nobody is let in who has not this process's token. Ray reads how it
    is at its import, so that a program that has imported Ray before keeps its own rules.

    Raises:
        UserError: It is not installed; the message names the extra.
    """
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if private and "RAY_AUTH_MODE" not in os.environ:
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"--engine ray needs Ray ({first_line(error)}): pip install -c constraints.txt -e '.[ray]'"
        ) from None
    return ray


@dataclass
class Session:
    """A cluster that this process is connected to.

    Attributes:
        folder: Where a cluster of our own keeps its files; None for a running one.
    """

    ray: Any
    cpus: float
    gpus: float
    folder: Path | None

    @property
    def local(self) -> bool:
        """Whether the cluster is this machine, started for the run."""
        return self.folder is not None

    def nodes(self) -> list[Mapping[str, float]]:
        """Resources of the living nodes."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def room(self) -> int:
        """Tasks that the whole cluster could take at once."""
        return sum(tasks(node, self.cpus, self.gpus) for node in self.nodes())

    def refusal(self) -> str:
        """Why no task can run: what one asks for, and what there is."""
        return refusal(self.nodes(), self.cpus, self.gpus)

    def close(self) -> None:
        """Disconnect; a cluster of our own is stopped and its files are removed."""
        self.ray.shutdown()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def tasks(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many tasks fit on a node. A fraction of a GPU is one of a single GPU."""
    fit = math.floor(node.get("CPU", 0.0) / cpus + 1e-9)
    if gpus > 0:
        have = node.get("GPU", 0.0)
        fit = min(fit, math.floor(have / gpus) if gpus >= 1 else math.floor(have) * math.floor(1 / gpus + 1e-9))
    return fit


def refusal(nodes: list[Mapping[str, float]], cpus: float, gpus: float) -> str:
    """One line: what a task asks for, and what the nodes have."""
    kinds = Counter((node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes)
    have = "; ".join(f"{count} with CPU {cpu:g}, GPU {gpu:g}" for (cpu, gpu), count in sorted(kinds.items()))
    return (
        f"no node of the cluster can take a task of CPU {cpus:g}, GPU {gpus:g} (--cpus-per-task, --gpus-per-task); "
        f"its nodes: {have or 'none'}"
    )


def connect(ray: Any, address: str | None, cpus: float, gpus: float) -> Session:
    """Connect to the cluster at ``HOST:PORT`` or ``"auto"``, or start one of this machine for None.

    Raises:
        UserError: There is no such cluster, it cannot be started, or no node could take a task.
    """
    session = _start(ray, cpus, gpus) if address is None else _attach(ray, address, cpus, gpus)
    try:
        if not session.room():
            raise UserError(session.refusal())
    except BaseException:
        session.close()
        raise
    return session


def _attach(ray: Any, address: str, cpus: float, gpus: float) -> Session:
    host, _, port = address.rpartition(":")
    try:
        if host:
            socket.create_connection((host, int(port)), ANSWER).close()  # Ray itself would try for minutes
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"cannot attach to the Ray cluster at {address} ({first_line(error)})") from None
    return Session(ray, cpus, gpus, None)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let Ray take the address that it is given: it would put the machine's own in place of 127.0.0.1.

    Its servers listen on all interfaces unless the node's address is 127.0.0.1 itself.
    """
    from ray._private import services

    before = getattr(services, "resolve_ip_for_localhost", None)
    if before is None:  # a later Ray, which may do as it is told; tests/execution/test_ray_engine.py looks
        yield
        return
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        services.resolve_ip_for_localhost = before


def _start(ray: Any, cpus: float, gpus: float) -> Session:
    """A cluster of this machine, listening on 127.0.0.1."""
    # Ray's sockets lie below it, and their paths may have no more than 107 bytes
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp" if Path("/tmp").is_dir() else None))
    try:
        with _on_loopback():
            ray.init(
                address="local",
                num_cpus=cores(),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                _node_ip_address=LOOPBACK,
                _temp_dir=str(folder),
            )
    except BaseException as error:
        with suppress(Exception):
            ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, (OSError, RuntimeError, ValueError)):
            raise UserError(f"cannot start Ray here ({first_line(error)})") from None
        raise
    return Session(ray, cpus, gpus, folder)
