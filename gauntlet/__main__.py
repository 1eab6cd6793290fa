"""The ``gauntlet`` command, also as ``python -m gauntlet``.

Names like ``reports`` and ``defenses`` are in everybody's projects. Once this module is imported, they mean Gauntlet's
packages, whatever the import path holds before them. Every worker process imports it first, because it is what the
command runs. A user's model sees the user's modules all the same: :class:`harness.user_code.python_file.World`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder

from gauntlet import HOME, OURS, shadowed


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
    from harness.cli.main import main as command

    command()


if not any(getattr(finder, "__name__", None) == "Finder" for finder in sys.meta_path):
    sys.meta_path.insert(0, Finder)

if __name__ == "__main__":
    __spec__ = None  # else workers would not import this module: multiprocessing skips the main module of a package
    main()
