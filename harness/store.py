"""Where things lie on disk, atomic writes, and checkpoints by key."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from . import identity
from .datasets.registry import DatasetInfo
from .errors import UserError
from .external.external import External, restore
from .models.purifier import Purified, purifier
from .planning.specs import ModelSpec
from .shape import Shape, misfit

ASIDE: Final = ".damaged-"
"""What the name of a file or folder that was set aside goes on with."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it exists whole or not at all, whatever kills the process or the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # not tempfile's: its files are for their owner's eyes only, and results are to be shared
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """:func:`write_bytes` of readable, sorted JSON; a number that is not finite becomes null."""
    write_bytes(path, (json.dumps(finite(value), indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def finite(value: Any) -> Any:
    """The same value with NaN and infinities replaced by None: JSON has none."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: It is damaged; the message names it.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error})") from None


def read_record(path: Path, shape: Shape | None = None, name: str = "the record") -> dict[str, Any]:
    """Read a JSON object that holds what its readers look up.

    Args:
        path: The file.
        shape: What it must hold; see :func:`harness.shape.misfit`.
        name: What it is.

    Raises:
        UserError: It is damaged, or another kind of record; the message names it.
    """
    record: dict[str, Any] = read_json(path)
    if fault := misfit(record, shape or {}, name):
        raise UserError(f"{path} is damaged ({fault})")
    return record


def no_runs(path: Path) -> UserError:
    """The complaint about a folder in which nothing was run."""
    return UserError(f"no runs in {path}; make some with: gauntlet run quick --home {path}")


@dataclass(frozen=True)
class Home:
    """The folder that holds everything a user's runs produce (``--home``, ``GAUNTLET_HOME``).

    ``models/KEY``: checkpoint and card. ``cells/KEY``: result of a pair. ``prepared/``, ``crafted/``: what
    attacks learned from training data, and images that several cells share. ``health/``: facts of probes.
    ``plans/KEY.json``: what each
    command asked for. ``pending/``: results that the tracking server has not got yet. ``mlflow.db`` and
    ``mlflow-artifacts/``: the default tracking store. ``report/``: the pages.
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
        ours = ("models", "cells", "prepared", "crafted", "health", "plans", "pending", "progress")
        parts = [part for folder in ours for part in (self.path / folder).rglob(".*.part")]
        for part in [*parts, *self.path.glob(".mlflow.db.*.part*")]:
            if part.is_file():
                part.unlink(missing_ok=True)

    def model(self, key: str) -> Path:
        """Folder of a model."""
        return self.path / "models" / key

    def cell(self, key: str) -> Path:
        """Folder of a pair."""
        return self.path / "cells" / key

    def prepared(self, key: str) -> Path:
        """File of a prepared attack's fields."""
        return self.path / "prepared" / f"{key}.json"

    def crafted(self, key: str, shard: int) -> Path:
        """File of one shard of crafted images."""
        return self.path / "crafted" / key / f"{shard:05d}.safetensors"

    def health(self, key: str) -> Path:
        """File of a probe's facts."""
        return self.path / "health" / f"{key}.json"

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


def has_model(home: Home, spec: ModelSpec) -> bool:
    """Whether a finished checkpoint is there, of the base and front that are there now. The card is written last.

    Raises:
        UserError: The card of a model that is built upon another is damaged.
    """
    card = home.model(spec.key) / "card.json"
    if not card.exists():
        return False
    if not spec.parents:
        return True
    if not all(has_model(home, part) for part in spec.parents):
        return False
    return bool(_card(card, card.stat().st_mtime_ns).get("upon") == parent_digests(home, spec))


def weights_digest(home: Home, spec: ModelSpec) -> str:
    """Digest of the weights that a trained model's card vouches for; asked for every cell of a plan.

    Raises:
        UserError: The card is damaged.
        OSError: There is none.
    """
    card = home.model(spec.key) / "card.json"
    return str(_card(card, card.stat().st_mtime_ns).get("sha256"))


def parent_digests(home: Home, spec: ModelSpec) -> dict[str, str]:
    """Digests of what a model is built upon, by key."""
    return {part.key: weights_digest(home, part) for part in spec.parents}


@lru_cache(maxsize=1024)
def _card(path: Path, modified: int) -> dict[str, Any]:
    try:
        return read_record(path, name="the card")
    except UserError as error:
        raise UserError(f"{error}; {_mend(path.parent)}") from None


def _mend(folder: Path) -> str:
    return f"delete {folder} and run the same command again to retrain it"


def save_model(home: Home, spec: ModelSpec, model: nn.Module, card: Mapping[str, Any]) -> None:
    """Write weights as safetensors, then the card that makes them count.

    Args:
        home: Where.
        spec: What was trained.
        model: The trained model.
        card: Facts for people; added are the declaration, the weights' digest and those of what it is built upon.
    """
    weights = save_tensors({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()})
    folder = home.model(spec.key)
    write_bytes(folder / "weights.safetensors", weights)
    digest = hashlib.sha256(weights).hexdigest()
    made = {"declaration": identity.canonical(spec), "sha256": digest}
    if spec.parents:
        made["upon"] = parent_digests(home, spec)
    write_json(folder / "card.json", {**card, **made})


def load_card(home: Home, spec: ModelSpec) -> dict[str, Any]:
    """The card of a trained model.

    Raises:
        UserError: It is damaged; the message names it.
        OSError: It cannot be read.
    """
    path = home.model(spec.key) / "card.json"
    return dict(_card(path, path.stat().st_mtime_ns))


def whole_model(folder: Path) -> dict[str, Any]:
    """A model's card, after a look at the weights that it vouches for.

    Raises:
        UserError: One of them is damaged or missing; the message names it.
    """
    card = read_record(folder / "card.json", {"sha256": str}, "the card")
    if "reference" in card:  # a user's own: its weights lie elsewhere
        return card
    weights = folder / "weights.safetensors"
    if not weights.exists():
        raise UserError(f"{weights} is missing")
    if hashlib.sha256(weights.read_bytes()).hexdigest() != card["sha256"]:
        raise UserError(f"{weights} is damaged (its digest is not the card's)")
    return card


def load_model(home: Home, spec: ModelSpec, info: DatasetInfo) -> nn.Module:
    """Rebuild a trained model, or load a user's own again, in eval mode, on the CPU.

    Raises:
        UserError: The checkpoint is missing or damaged; the message says which file and how to mend it. A user's own
            model is not what it was.
    """
    folder = home.model(spec.key)
    if isinstance(spec.defense, External):
        if spec.defense.reference is None:
            raise UserError(f"where is the external model {spec.key}? its declaration has no reference")
        return restore(spec.defense.reference, spec.defense).eval()
    file = folder / "weights.safetensors"
    mend = _mend(folder)
    try:
        content = file.read_bytes()
        card = load_card(home, spec)
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {error.filename} ({error.strerror}); {mend}") from None
    if hashlib.sha256(content).hexdigest() != card.get("sha256"):
        raise UserError(f"the checkpoint {file} is damaged (its digest is not the card's); {mend}")
    model = spec.defense.build(spec.architecture, info, load_base(home, spec, info))
    try:
        tensors: dict[str, Tensor] = load_tensors(content)
        model.load_state_dict(tensors)
    except (SafetensorError, RuntimeError) as error:
        raise UserError(
            f"the checkpoint {file} does not fit its declaration ({' '.join(str(error).split())[:200]}); {mend}"
        ) from None
    return model.eval()


def load_base(home: Home, spec: ModelSpec, info: DatasetInfo) -> nn.Module | None:
    """What a model is built upon: its base, behind the purifier of its front if it has one; None if it has no base.

    Raises:
        UserError: As :func:`load_model`; or the front has no purifier.
    """
    if spec.base is None:
        return None
    base = load_model(home, spec.base, info)
    if spec.front is None:
        return base
    return Purified(purifier(load_model(home, spec.front, info), str(spec.front)), base)


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to a free name beside it, and return that name."""
    number = 1
    while (target := path.with_name(f"{path.name}{ASIDE}{number}")).exists():
        number += 1
    path.rename(target)
    return target


def is_aside(path: Path) -> bool:
    """Whether it was set aside."""
    return ASIDE in path.name


def earlier(path: Path) -> list[Path]:
    """What was set aside from this place."""
    return list(path.parent.glob(f"{path.name}{ASIDE}*"))


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= flat(item, f"{prefix}.{name}" if prefix else str(name))
    return found
