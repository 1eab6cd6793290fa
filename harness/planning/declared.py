"""From a recorded declaration back to a model: only what is registered here is made of it, and only if it is the same.

No code is named by a record: a class is looked up among those that the caller knows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .. import identity
from ..errors import UserError, describe
from ..training.defense import Defense
from .specs import ModelSpec


class NotHere(UserError):
    """It is somebody's own, and was not brought."""


def model_spec(
    declaration: Mapping[str, Any], defenses: Mapping[str, type[Defense]], brought: Mapping[str, ModelSpec]
) -> ModelSpec:
    """The model that was declared.

    Args:
        declaration: Canonical, as records hold it.
        defenses: By name; none else is used.
        brought: A user's own models, by key.

    Raises:
        NotHere: It is of a defense that is not known here, or a user's own that was not brought.
        UserError: It is of another version or architecture, or no declaration.
    """
    key = identity.key_of(dict(declaration))
    if key in brought:
        return brought[key]
    try:
        made = _model(declaration, defenses, brought)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        said = str(error) if isinstance(error, UserError) else describe(error)
        kind = NotHere if isinstance(error, NotHere) else UserError
        raise kind(f"the model {key} cannot be made from its declaration here ({said})") from None
    if made.key != key:
        raise UserError(f"the model {key} is declared otherwise than this version of gauntlet declares it")
    return made


def _model(
    declaration: Mapping[str, Any], defenses: Mapping[str, type[Defense]], brought: Mapping[str, ModelSpec]
) -> ModelSpec:
    wanted = declaration["defense"]["is"]
    if wanted == "external":
        other = "; the one that was named has other weights or options" if brought else ""
        raise NotHere(f"it is a user's own: name it with --victim, and the options it was run with{other}")
    if wanted not in defenses:
        raise NotHere(f"no defense {wanted!r} is known here; one of your own is named with --defense FILE.py:NAME")
    kind = defenses[wanted]
    given = declaration["defense"]
    names = {field.name for field in dataclasses.fields(kind)}
    fields = {name: _plain(value) for name, value in given.items() if name in names}
    parts: dict[str, Any] = {
        name: model_spec(declaration[name], defenses, brought) for name in ("base", "front") if declaration.get(name)
    }
    parts["members"] = tuple(model_spec(member, defenses, brought) for member in declaration.get("members", ()))
    return ModelSpec(
        dataset=declaration["dataset"],
        architecture=declaration["architecture"],
        defense=kind(**fields),
        seed=declaration["seed"],
        **parts,
    )


def _plain(value: Any) -> Any:
    return tuple(map(_plain, value)) if isinstance(value, list) else value
