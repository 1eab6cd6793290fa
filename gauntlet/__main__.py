"""The ``gauntlet`` command, also as ``python -m gauntlet``.

Names like ``reports`` and ``defenses`` are in everybody's projects. Once this module is imported, they mean Gauntlet's
packages, whatever the import path holds before them. Every worker process imports it first, because it is what the
command runs. A user's model sees the user's modules all the same: :class:`harness.user_code.python_file.World`.
"""

from __future__ import annotations

import os
import signal
import sys


def _leave(number: int, frame: object) -> None:
    os.write(2, b"gauntlet: interrupted\n")
    os._exit(128 + number)


_COMMAND = sys.argv[:1] and os.path.basename(sys.argv[0]) in ("gauntlet", "__main__.py")  # noqa: PTH119
if _COMMAND and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is to be ignored
    signal.signal(signal.SIGINT, _leave)  # until harness.interruption takes over

from collections.abc import Sequence  # noqa: E402
from importlib.machinery import ModuleSpec, PathFinder  # noqa: E402

from gauntlet import HOME, OURS, shadowed  # noqa: E402


class Finder:
    """Finds the packages of :data:`gauntlet.OURS` where they are installed, and nothing else."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        """As every finder of ``sys.meta_path``."""
        return PathFinder.find_spec(name, [HOME]) if path is None and name in OURS else None


def main() -> None:
    """Run the command."""
    if trouble := shadowed():
        sys.exit(f"gauntlet: {trouble}")
    from harness import environment, interruption

    interruption.install()
    if trouble := environment.too_little_address_space():
        sys.stderr.write(f"gauntlet: {trouble}\n")
        sys.exit(2)
    from harness.cli.main import main as command

    command()


if not any(getattr(finder, "__name__", None) == "Finder" for finder in sys.meta_path):
    sys.meta_path.insert(0, Finder)

if __name__ == "__main__":
    __spec__ = None  # else workers would not import this module: multiprocessing skips the main module of a package
    main()
