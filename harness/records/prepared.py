"""Prepared attacks on disk: plain fields as JSON, tensors as safetensors beside it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ..attacks.base import Attack
from ..errors import UserError
from ..schema.base import Cost, Provenance
from ..schema.pairs import Preparation
from . import seals
from .files import read_record, write_bytes, write_record
from .home import plain


def write_prepared(path: Path, attack: Attack, ready: Attack, cost: Cost, made: Provenance, error: str = "") -> None:
    """Write the fields that preparation changed, or why it failed.

    A field that became a mapping of names to tensors goes into a file of its own, before the JSON that makes it count.
    """
    fields: dict[str, Any] = {}
    tensors: dict[str, str] = {}
    for field in dataclasses.fields(ready):
        value = getattr(ready, field.name)
        if value is getattr(attack, field.name):
            continue
        if _is_weights(value):
            content = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in value.items()})
            write_bytes(_beside(path, field.name), content)
            tensors[field.name] = hashlib.sha256(content).hexdigest()
        elif value != getattr(attack, field.name):
            fields[field.name] = value
    record = Preparation(key=path.stem, fields=fields, tensors=tensors, cost=cost, error=error, **dict(made))
    write_record(path, record)


def prepared_record(path: Path) -> Preparation:
    """What is written about a preparation.

    Raises:
        UserError: It is damaged; the message names it.
    """
    found = read_record(path, Preparation, "the preparation")
    seals.in_place(found.key, path, path.stem)
    return found


def tensor_files(path: Path) -> list[Path]:
    """The files of tensors that there are beside a JSON."""
    return sorted(path.parent.glob(f"{path.stem}.*.safetensors"))


def read_prepared(path: Path, attack: Attack) -> Attack:
    """The attack with what it learned.

    Raises:
        UserError: A file is missing or damaged; the message names it.
    """
    found = prepared_record(path)
    fields: dict[str, Any] = dict(found.fields)
    for name, digest in found.tensors.items():
        file = _beside(path, name)
        mend = f"delete {path} and run the same command again to prepare the attack again"
        try:
            content = file.read_bytes()
            if hashlib.sha256(content).hexdigest() != digest:
                raise UserError(f"{file} is damaged (its digest is not that in {path.name}); {mend}")
            fields[name] = load_tensors(content)
        except OSError as error:
            raise UserError(f"cannot read {file} ({error.strerror}); {mend}") from None
        except SafetensorError as error:
            raise UserError(f"{file} is damaged ({error}); {mend}") from None
    return dataclasses.replace(attack, **fields)


def _is_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(part, Tensor) for part in value.values())


def _beside(path: Path, field: str) -> Path:
    return path.with_name(plain(f"{path.stem}.{field}.safetensors"))
