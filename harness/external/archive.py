"""Reading a ``.pt2`` as data: what would run code when such a file is loaded or called is refused beforehand.

``torch.export.load`` unpickles sample inputs, weights and constants that say so, loads compiled libraries, evaluates
expressions as Python, builds Python source of the names that it finds and calls whatever function of ``torch`` a graph
names. A program that ``torch.export.save`` wrote of a model needs none of that.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from ..errors import UserError

_MEMBERS: Final = re.compile(
    r"models/[\w.-]+\.json|data/(weights|constants)/[\w.-]+|data/sample_inputs/[\w.-]+\.pt|extra/.*"
    r"|archive_format|archive_version|byteorder|version|\.data/\w+|\.format_version|\.storage_alignment"
)
_NAME: Final = re.compile(r"[\w.:/<>\[\] +-]*")
_OPERATOR: Final = re.compile(r"torch\.ops\.(?:aten|prims?|quantized|quantized_decomposed|torchvision)\.\w+(?:\.\w+)?")
_ARITHMETIC: Final = re.compile(
    r"_operator\.(?:getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|pos|and_|or_|xor|not_|lt|le|eq|ne|ge|gt)"
    r"|math\.\w+|torch\._?sym_\w+"
)
_HIGHER_ORDER: Final = re.compile(
    r"torch\.ops\.higher_order\.(?:cond|map_impl|scan|while_loop|wrap_with_set_grad_enabled|wrap_with_autocast)"
)
_CALLED: Final = re.compile(r"(\w+)\s*\(")
_FUNCTIONS: Final = re.compile(r"[A-Z]\w*|floor|ceiling|sqrt|log|exp")
_TEXTS: Final = ("metadata", "as_string", "in_spec", "out_spec", "torch_version", "verifiers", "fqn")
"""Keys of texts that are compared, looked up or shown, and never run."""


def refuse_code(path: Path) -> None:
    """Look through a file that ``torch.export.save`` is said to have written, without loading it.

    Raises:
        UserError: It holds what would run code; the message says what.
    """
    reader = torch._C.PyTorchFileReader(str(path))
    names = reader.get_all_records()
    if not any(name.startswith("models/") for name in names):
        what = "no model in it; one that PyTorch 2.7 or older wrote has to be exported again"
        raise UserError(f"{path} is no program that torch.export.save wrote ({what})")
    for name in names:
        if not _MEMBERS.fullmatch(name) or ".." in name:
            raise UserError(f"{path} is refused: {name} in it may run code, and no exported program needs it")
    for name in names:
        if name.startswith("models/"):
            _check(path, json.loads(reader.get_record(name)))
        elif name.endswith("_config.json"):
            _check_payload(path, json.loads(reader.get_record(name)))
        elif name.startswith(("data/weights/", "data/constants/")) and name.endswith(".pt"):
            raise UserError(f"{path} is refused: {name} in it is a pickle; export the model again")
        elif name.startswith("data/sample_inputs/"):
            try:
                torch.load(io.BytesIO(reader.get_record(name)), weights_only=True)
            except Exception:
                raise UserError(
                    f"{path} is refused: {name} in it is a pickle of more than tensors, which may run code; export the "
                    "model again, with a tensor as its example input"
                ) from None


@contextmanager
def tensors_only() -> Iterator[None]:
    """Let ``torch.load`` read tensors alone for a block, whatever it is asked for."""
    load: Callable[..., Any] = torch.load

    def careful(*arguments: Any, **named: Any) -> Any:
        return load(*arguments, **{**named, "weights_only": True})

    torch.load = careful
    try:
        yield
    finally:
        torch.load = load


def _check_payload(path: Path, config: Mapping[str, Any]) -> None:
    """Weights or constants: raw bytes of tensors, and nothing else."""
    for name, entry in config["config"].items():
        if entry.get("use_pickle") or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            raise UserError(
                f"{path} is refused: {name} in it is a pickle, which may run code; export a model of plain tensors"
            )


def _check(path: Path, program: Any) -> None:
    for key, text in _strings(program):
        if key == "target":
            plain = "__" not in text and text != "torch.ops.aten.from_file.default"
            known = any(pattern.fullmatch(text) for pattern in (_OPERATOR, _ARITHMETIC, _HIGHER_ORDER))
            if not (plain and known):
                raise UserError(f"{path} is refused: it calls {text[:80]!r}, which is no operator of PyTorch's own")
        elif key == "expr_str":
            if not _is_formula(text):
                raise UserError(f"{path} is refused: a size in it is {text[:80]!r}, which may run code")
        elif not _NAME.fullmatch(text):
            raise UserError(f"{path} is refused: a name in it is {text[:80]!r}, which may run code")


def _is_formula(text: str) -> bool:
    """Whether a size is made of numbers, symbols, and functions of them."""
    plain = re.sub(r"'\w+'", "", text)
    allowed = re.fullmatch(r"[\w\s+\-*/%(),<>=.]*", plain) and not re.search(r"__|\.\s*[A-Za-z_]", text)
    return bool(allowed) and all(_FUNCTIONS.fullmatch(name) for name in _CALLED.findall(plain))


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a JSON value that may end up in code, with the key that it stands under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if name not in _TEXTS:
                yield from _strings(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
