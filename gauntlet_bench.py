"""The ``gauntlet`` command: finds Gauntlet's packages, also where the user has folders of the same names.

Names like ``reports`` and ``defenses`` are in everybody's projects. Once this module is imported, they mean the
packages that lie beside it, whatever the import path holds before them. Every worker process imports it first, because
it is what the command runs. A user's model sees the user's modules all the same:
:class:`harness.user_code.python_file.World`.
"""

from __future__ import annotations

import os.path
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder

OURS = ("harness", "defenses", "suites", "reports")

_HOME = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120  # pathlib takes longer than all of this


class Finder:
    """Finds the packages of :data:`OURS` where they are installed, and nothing else."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        """As every finder of ``sys.meta_path``."""
        return PathFinder.find_spec(name, [_HOME]) if path is None and name in OURS else None


def main() -> None:
    """Run the command."""
    from harness.cli.main import main as command

    command()


if not any(getattr(finder, "__module__", None) == __name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, Finder)

if __name__ == "__main__":
    main()
