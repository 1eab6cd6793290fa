"""Memory: what attacks will hold, told before anything is computed, and what a worker keeps for the next step."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..errors import UserError
from ..planning.plan import Plan

COPIES: Final = 6
"""Float copies of a shard's images that any attack holds: the images, where it stands, its gradient, what the victim is
given, what was met on the way, and what the referee judges. What a model holds beside them comes on top."""

GIB: Final = 2**30

_MALLOPT: Final = {-3: GIB, -1: 2 * GIB - 1}
"""Of glibc's mallopt: M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, the largest that it takes."""


def keep_freed() -> None:
    """Let this process keep the memory that it frees, where its C library is told so (glibc's).

    Each step of an attack allocates what the step before gave back. The system clears every page that it gives anew:
    up to a sixth of the CPU time of APGD on a LeNet or a ResNet-18, or none, as the blocks happen to lie. The most that
    a process holds grows by a few percent; it is given back when the process ends.
    """
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        for option, value in _MALLOPT.items() if hasattr(library, "mallopt") else ():
            library.mallopt(option, value)


def free() -> float:
    """Bytes that this process may still take, infinite where nobody says."""
    found = math.inf
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith(("MemAvailable:", "SwapFree:")):
                found = (0 if found == math.inf else found) + 1024 * int(line.split()[1])
    with suppress(OSError, ValueError):  # a container's limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        found = min(found, limit - int((group / "memory.current").read_text(encoding="ascii")))
    return found


def check_memory(plans: Iterable[Plan], jobs: int, available: float) -> None:
    """Refuse what cannot fit: the images of a shard alone, in every worker at once, are more than there is.

    Args:
        plans: What is to be run, on the CPU.
        jobs: Worker processes.
        available: Bytes.

    Raises:
        UserError: It cannot fit; the message says what it would take.
    """
    for plan in plans:
        at_once = min(jobs, sum(cell.shards for cell in plan.cells))
        for cell in plan.cells:
            info = plan.infos[cell.victim.dataset]
            images = min(cell.batch, cell.n)
            each = 4.0 * images * (COPIES * math.prod(info.shape) + len(info.classes))
            if each * at_once > available:
                size = "x".join(map(str, info.shape))
                one, all_, there = (f"{count / GIB:.1f} GiB" for count in (each, each * at_once, available))
                raise UserError(
                    f"{cell}: an attack on a shard of {images} images of {size} holds {one} at least, in {at_once} "
                    f"worker processes {all_}, and {there} are free: take fewer --jobs, fewer --samples, or smaller "
                    "images (--resize, --crop)"
                )
