"""Layout of the home directory."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError


def no_runs(path: Path) -> UserError:
    """The complaint about a folder in which nothing was run."""
    return UserError(f"no runs in {path}; make some with: gauntlet run quick --home {path}")


def plain(key: str) -> str:
    """A key that is the name of a file or folder.

    Raises:
        UserError: It is none: it leads elsewhere.
    """
    if key in ("", ".", "..") or any(mark in key for mark in "/\\\0"):
        raise UserError(f"{key!r} is no key: it has to be the name of a file")
    return key


@dataclass(frozen=True)
class Home:
    """The folder that holds everything a user's runs produce (``--home``, ``GAUNTLET_HOME``).

    ``models/KEY``: checkpoint and card. ``cells/KEY``: result of a pair. ``prepared/``, ``crafted/``: what
    attacks learned from training data, and images that several cells share. ``health/``: facts of probes.
    ``planted/``: what attacks find of planted adversarials. ``certificates/KEY``: what is proved of a model, shard by
    shard. ``witnesses/KEY``: the nearest images that broke a model. ``plans/KEY.json``: what each command asked for.
    ``pending/``: results that the tracking server has not got yet. ``mlflow.db`` and ``mlflow-artifacts/``: the default
    tracking store. ``report/``: the pages.

    A key is a name, and never leads out of the home: records of others' hold keys, too.
    """

    path: Path

    def create(self) -> Home:
        """Make the folder.

        Raises:
            UserError: It cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise UserError(
                f"cannot write to the home directory {self.path} ({error.strerror}); choose another with --home DIR"
            ) from None
        return self

    def sweep(self) -> None:
        """Remove what a killed process left half written. Only while no other process works on this home."""
        ours = (
            "models",
            "cells",
            "prepared",
            "crafted",
            "health",
            "planted",
            "certificates",
            "witnesses",
            "plans",
            "pending",
            "progress",
            "report",
        )
        parts = [part for folder in ours for part in (self.path / folder).rglob(".*.part")]
        parts += self.path.glob(f".{'[0-9a-f]' * 32}.part")
        for part in [*parts, *self.path.glob(".mlflow.db.*.part*")]:
            if part.is_file():
                part.unlink(missing_ok=True)

    def model(self, key: str) -> Path:
        """Folder of a model."""
        return self.path / "models" / plain(key)

    def cell(self, key: str) -> Path:
        """Folder of a pair."""
        return self.path / "cells" / plain(key)

    def prepared(self, key: str) -> Path:
        """File of a prepared attack's fields."""
        return self.path / "prepared" / f"{plain(key)}.json"

    def crafted(self, key: str, shard: int) -> Path:
        """File of one shard of crafted images."""
        return self.path / "crafted" / plain(key) / f"{shard:05d}.safetensors"

    def health(self, key: str) -> Path:
        """File of a probe's facts."""
        return self.path / "health" / f"{plain(key)}.json"

    def certificate(self, key: str, shard: int) -> Path:
        """File of one shard of a certificate."""
        return self.path / "certificates" / plain(key) / f"{shard:05d}.json"

    def planted(self, key: str) -> Path:
        """File of what attacks found of planted adversarials."""
        return self.path / "planted" / f"{plain(key)}.json"

    def witnesses(self, key: str) -> Path:
        """Folder of the nearest images that broke a model."""
        return self.path / "witnesses" / plain(key)

    @property
    def plans(self) -> Path:
        """Folder of plans."""
        return self.path / "plans"

    @property
    def pending(self) -> Path:
        """Folder of markers: what is still to be delivered to the tracking server."""
        return self.path / "pending"

    @property
    def progress(self) -> Path:
        """Folder of what workers say about work in flight."""
        return self.path / "progress"
