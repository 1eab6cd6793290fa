"""Identity of a declaration: its canonical form, key and seeds.

Two declarations that mean the same have the same key on every machine. Only what changes a number counts:
no path, device, host or worker count. A class that changes its behaviour bumps its ``version``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any


def canonical(value: Any) -> Any:
    """Turn a declaration into plain JSON values.

    Dataclasses become mappings of their fields plus ``"is"`` (the class's public name), ``"version"``, and what the
    class adds (``also``).
    A field declared with ``metadata={"identity": False}`` does not count; one with ``metadata={"identity": "set"}``
    counts only where it is not its default, so that keys from before there was such a field stand. ``1`` and ``1.0``
    are the same.

    Raises:
        TypeError: A value that has no canonical form (an open file, a tensor, a function).
    """
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return int(value) if value.is_integer() else value
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): canonical(item) for name, item in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        fields = {
            field.name: canonical(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if _counts(field, getattr(value, field.name))
        }
        also = canonical(getattr(kind, "also", {}))
        return {"is": getattr(kind, "name", kind.__name__), "version": getattr(kind, "version", 1), **also, **fields}
    raise TypeError(f"a declaration cannot hold a {type(value).__name__}")


def _counts(field: dataclasses.Field[Any], value: Any) -> bool:
    rule = field.metadata.get("identity", True)
    return bool(value != field.default if rule == "set" else rule)


def key(*values: Any) -> str:
    """Key of a declaration: 16 hexadecimal digits of the SHA-256 of its canonical JSON."""
    return key_of(*(canonical(value) for value in values))


def key_of(*plain: Any) -> str:
    """:func:`key` of declarations that are canonical already, such as those in records."""
    text = json.dumps(list(plain), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def derive_seed(*values: Any) -> int:
    """A seed in [0, 2**32) that depends on nothing but the declarations given."""
    return int(key(*values)[:8], 16)
