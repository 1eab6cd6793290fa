"""Start Ray as a run does, and print on which addresses its processes listen: ``python listening.py``."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from harness.execution.ray.session import connect, load


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found += family(int(entry.name))
    return found


def listening() -> set[str]:
    """Addresses, as the kernel writes them."""
    sockets = set()
    for pid in family(os.getpid()):
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                sockets.add(str(file.readlink()))
    lines = [line for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    rows = [line.split() for line in lines]
    return {row[1].rpartition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


if __name__ == "__main__":
    session = connect(load(private=True), None, 1, 0)
    session.ray.get(session.ray.remote(lambda: 1).remote())
    print("listening:", *sorted(listening()))
    session.close()
