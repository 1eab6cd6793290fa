"""Where things lie on disk, atomic writes, and checkpoints by key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from .. import identity
from ..datasets.registry import DatasetInfo
from ..errors import UserError
from ..external.external import External, restore
from ..models.purifier import Purified, purifier
from ..planning.specs import ModelSpec
from .files import read_record, write_bytes, write_json
from .home import Home


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
