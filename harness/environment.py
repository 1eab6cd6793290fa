"""Package versions, commit, machine and day that a result is made with."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Final

from .redaction import without_password

PACKAGES: Final = (
    "gauntlet-bench", "torch", "torchvision", "adversarial-robustness-toolbox", "foolbox", "mlflow", "numpy", "scipy",
    "pandas", "scikit-learn",
)  # fmt: skip


def command_line() -> str:
    """The command that this process was started with, for the record."""
    words = []
    for word in sys.argv[1:]:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        words.append(option + equals + without_password(value))
    return shlex.join(["gauntlet", *words])


ADDRESS_SPACE: Final = 4 * 10**9
"""Bytes that the libraries map before anything is computed; BLAS gives up in their midst, in words of its own."""


def too_little_address_space() -> str:
    """Why nothing can run under this process's limit of address space (``ulimit -v``), in one line; "" if it can."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return ""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or limit >= ADDRESS_SPACE:
        return ""
    return (
        f"this process may use {limit / 1e9:.1f} GB of address space (ulimit -v), and PyTorch with its libraries maps "
        f"{ADDRESS_SPACE / 1e9:.0f} GB: raise the limit"
    )


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache
def versions() -> dict[str, str]:
    """Version of Python and of every package that can change a number; no package is imported for it."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def today() -> str:
    """Day in UTC, as YYYY-MM-DD."""
    return datetime.now(UTC).date().isoformat()


@lru_cache
def machine() -> str:
    """Processor, cores and system, in words."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), processor)
    return f"{processor}, {cores()} cores, {platform.system()} {platform.machine()}"


@lru_cache
def git_commit() -> str:
    """Commit of the checkout that this package runs from, with ``+`` if it was changed; "" outside of one."""
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return ""
    try:
        commit = _git(here, "rev-parse", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no", "--", "harness", "defenses", "suites")
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit}+" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder.parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
