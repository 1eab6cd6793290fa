"""Checkpoints of models, and whether what was made of them still stands."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from .. import identity
from ..datasets.registry import DatasetInfo
from ..errors import UserError
from ..external.external import External, restore
from ..models.ensemble import Ensemble
from ..models.purifier import Purified, purifier
from ..planning.specs import ModelSpec
from ..schema.models import Card
from . import seals
from .files import ASIDE, read_record, set_aside, write_bytes, write_record
from .home import Home

State = Literal["fresh", "stale", "missing", "damaged", "superseded"]
"""``fresh``: stands, and the same command leaves it alone. ``stale``, ``missing``, ``damaged``: the same command makes
it (again). ``superseded``: it is whole, but another was declared in its place since."""


class Standing(NamedTuple):
    """Whether what is on disk still stands, and why not."""

    state: State
    reason: str = ""


def model_standing(home: Home, key: str) -> Standing:
    """Whether a model was trained, on what is there now; its weights are not looked at. The card is written last.

    Raises:
        UserError: A card is damaged.
    """
    path = home.model(key) / "card.json"
    if not path.exists():
        return Standing("missing", "not trained")
    return _standing_on(home, card(home, key).upon, "the model {} that it is built upon {}")


def weights_standing(home: Home, weights: Mapping[str, str]) -> Standing:
    """Whether what was made with these weights, digests by key of the model, was made with those that are here.

    Raises:
        UserError: A card is damaged.
    """
    if not weights:
        return Standing("stale", "it does not say with which weights it was made")
    return _standing_on(home, weights, "its model {} {}", ", and will be trained again")


def _standing_on(home: Home, weights: Mapping[str, str], text: str, then: str = "") -> Standing:
    """Whether models stand with weights of these digests, by key; ``text`` for the first that does not."""
    for key, digest in weights.items():
        if (model := model_standing(home, key)).state != "fresh":
            why = "is not here" if model.state == "missing" else f"does not stand ({model.reason})"
            return Standing("stale", text.format(key, why) + then)
        if card(home, key).sha256 != digest:
            return Standing("stale", text.format(key, "was trained again since"))
    return Standing("fresh")


def has_model(home: Home, spec: ModelSpec) -> bool:
    """Whether a finished checkpoint is there, of the base and front that are there now.

    Raises:
        UserError: A card is damaged.
    """
    return model_standing(home, spec.key).state == "fresh" and card(home, spec.key).upon.keys() == {
        part.key for part in spec.parents
    }


def card(home: Home, key: str) -> Card:
    """The card of a trained model.

    Raises:
        UserError: It is damaged; the message names it.
        OSError: It cannot be read.
    """
    path = home.model(key) / "card.json"
    return _card(path, path.stat().st_mtime_ns)


def digests(home: Home, specs: Iterable[ModelSpec]) -> dict[str, str]:
    """Digests of the weights of those models that are there, by key."""
    return {spec.key: card(home, spec.key).sha256 for spec in specs if has_model(home, spec)}


@lru_cache(maxsize=1024)
def _card(path: Path, modified: int) -> Card:
    try:
        return read_card(path)
    except UserError as error:
        raise UserError(f"{error}; {_mend(path.parent)}") from None


def read_card(path: Path) -> Card:
    """A model's card, which is that of its folder: a key is a hash of the declaration.

    Raises:
        UserError: It is damaged, or another's; the message names it.
    """
    found = read_record(path, Card, "the card")
    if found.declaration:
        seals.in_place(identity.key_of(found.declaration), path, path.parent.name)
    return found


def _mend(folder: Path) -> str:
    return f"the next run keeps it as {folder.name}{ASIDE}1 and makes the model again"


def set_models_aside(home: Home, specs: Iterable[ModelSpec]) -> list[str]:
    """Put damaged models out of the way, so that they are made again: trained from their seeds, or registered anew.

    Returns:
        A line for each.
    """
    said = []
    for spec in specs:
        folder = home.model(spec.key)
        if not (folder / "card.json").exists():
            continue
        try:
            whole_model(folder)
        except UserError as error:
            said.append(f"{error}; kept as {set_aside(folder).name}, making the model again")
            _card.cache_clear()
    return said


def save_model(home: Home, spec: ModelSpec, model: nn.Module, facts: Card) -> None:
    """Write weights as safetensors, then the card that makes them count, with its declaration and digests filled in.

    An ensemble has none of its own: its file says which its members have.
    """
    if spec.members:
        weights = save_tensors({}, metadata=digests(home, spec.members))
    else:
        weights = save_tensors({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()})
    folder = home.model(spec.key)
    write_bytes(folder / "weights.safetensors", weights)
    made = {
        "declaration": identity.canonical(spec),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "upon": {part.key: card(home, part.key).sha256 for part in spec.parents},
    }
    write_record(folder / "card.json", facts.model_copy(update=made))


def whole_model(folder: Path) -> Card:
    """A model's card, after a look at the weights that it vouches for.

    Raises:
        UserError: One of them is damaged or missing; the message names it.
    """
    facts = read_card(folder / "card.json")
    if facts.reference is not None:  # a user's own: its weights lie elsewhere
        return facts
    weights = folder / "weights.safetensors"
    if not weights.exists():
        raise UserError(f"{weights} is missing")
    if hashlib.sha256(weights.read_bytes()).hexdigest() != facts.sha256:
        raise UserError(f"{weights} is damaged (its digest is not the card's)")
    return facts


def load_model(
    home: Home, spec: ModelSpec, info: DatasetInfo, given: Mapping[str, nn.Module] = MappingProxyType({})
) -> nn.Module:
    """Rebuild a trained model, or load a user's own again, in eval mode, on the CPU.

    Models that are ``given``, by key, are returned as they are.

    Raises:
        UserError: The checkpoint is missing or damaged; the message says which file and how to mend it. A user's own
            model is not what it was.
    """
    if spec.key in given:
        return given[spec.key]
    folder = home.model(spec.key)
    if isinstance(spec.defense, External):
        if spec.defense.reference is None:
            raise UserError(f"where is the external model {spec.key}? its declaration has no reference")
        return restore(spec.defense.reference, spec.defense).eval()
    file = folder / "weights.safetensors"
    mend = _mend(folder)
    try:
        content = file.read_bytes()
        wanted = card(home, spec.key).sha256
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {error.filename} ({error.strerror}); {mend}") from None
    if hashlib.sha256(content).hexdigest() != wanted:
        raise UserError(f"the checkpoint {file} is damaged (its digest is not the card's); {mend}")
    model = spec.defense.build(spec.architecture, info, load_base(home, spec, info, given))
    try:
        tensors: dict[str, Tensor] = load_tensors(content)
        if not spec.members:
            model.load_state_dict(tensors)
    except (SafetensorError, RuntimeError) as error:
        raise UserError(
            f"the checkpoint {file} does not fit its declaration ({' '.join(str(error).split())[:200]}); {mend}"
        ) from None
    return model.eval()


def load_base(
    home: Home, spec: ModelSpec, info: DatasetInfo, given: Mapping[str, nn.Module] = MappingProxyType({})
) -> nn.Module | None:
    """What a model is built upon: its base, behind the purifier of its front if it has one; None if it has no base.

    Of an ensemble its members.

    Raises:
        UserError: As :func:`load_model`; or the front has no purifier.
    """
    if spec.members:
        return Ensemble(load_model(home, part, info, given) for part in spec.members)
    if spec.base is None:
        return None
    base = load_model(home, spec.base, info, given)
    if spec.front is None:
        return base
    return Purified(purifier(load_model(home, spec.front, info, given), str(spec.front)), base)
