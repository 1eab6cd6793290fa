"""Deep copies of models that share no memory with the original."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import UserError, said

ORIGIN: Final = "_gauntlet_origin"
"""Attribute of a module that was loaded: an object whose ``again(module, why)`` loads it once more."""


class _Detaching(TorchFunctionMode):
    """Lets deep copies of modules hold tensors that were computed with a gradient, as copies without one.

    Exact: an attack differentiates logits by the images, and neither the value of such a tensor nor its part in that
    gradient depends on how it was computed before there were any images.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return copy.deepcopy(args[0].detach(), args[1])  # shares storage with whatever it shared it with
        return func(*args, **(kwargs or {}))


def duplicate(model: nn.Module) -> nn.Module:
    """A copy of a model that shares nothing with it: attack and referee work on one each.

    A deep copy where there is one. Of a model that cannot be copied (it holds a lock, an open file, a generator),
    whatever part of it can be loaded again (:data:`ORIGIN`) is, its code run anew; mode, device and what requires a
    gradient are as in ``model``.

    Raises:
        UserError: It can neither be copied nor loaded again as it is; the line says what in it is to blame.
    """
    with suppress(_NoCopy):
        return _apart(model, lambda: copy.deepcopy(model))
    try:
        return _apart(model, lambda: _detached(model, {}))
    except _NoCopy as error:
        why = _culprit(model) or str(error)
    again = {id(part): _again(part, why) for part in _loaded(model)}
    try:
        return _apart(model, lambda: _detached(model, again))
    except _NoCopy as error:
        raise UserError(
            f"the model cannot be copied, and attack and referee need one each: {why}; make that in forward, leave it "
            "out of the copy in __deepcopy__, or name the model as FILE.py:FACTORY, which can be loaded twice"
        ) from error


class _NoCopy(Exception):
    """There is no copy, or one that shares tensors with what it was made of; the message says why."""


def _detached(value: Any, memo: dict[int, Any]) -> Any:
    with _Detaching():
        return copy.deepcopy(value, memo)


def _apart(model: nn.Module, make: Callable[[], nn.Module]) -> nn.Module:
    """What a function makes, if that shares no tensor with a model.

    Raises:
        _NoCopy: It does, or the function raised.
    """
    try:
        made = make()
    except (MemoryError, torch.OutOfMemoryError, UserError):
        raise
    except Exception as error:  # copying runs code of the model's own
        raise _NoCopy(said(error)) from error
    if made is model or _tensors(made) & _tensors(model):
        raise _NoCopy("its copy shares weights with it")
    return made


def _tensors(model: nn.Module) -> set[int]:
    return {id(value) for value in (*model.parameters(), *model.buffers())}


def _loaded(model: nn.Module) -> list[nn.Module]:
    """The outermost parts of a model that can be loaded again."""
    if ORIGIN in vars(model):
        return [model]
    return [part for child in model.children() for part in _loaded(child)]


def _again(model: nn.Module, why: str) -> nn.Module:
    """A part of a model loaded once more, in the state of the first.

    Raises:
        UserError: It does not come out the same.
    """
    made: nn.Module = vars(model)[ORIGIN].again(model, why)
    devices = {value.device for value in (*model.parameters(), *model.buffers())}
    for device in devices if len(devices) == 1 else ():
        made = made.to(device)
    for mine, theirs in zip(made.modules(), model.modules(), strict=True):
        mine.training = theirs.training
    for weight, its in zip(made.parameters(), model.parameters(), strict=True):
        weight.requires_grad_(its.requires_grad)
    return made


def _culprit(model: nn.Module) -> str:
    """What in a model cannot be copied, and why; "" if all that is in it can."""
    for path, part in reversed(list(model.named_modules())):  # what is within comes first
        for name, value in (*vars(part).items(), ("", part)):
            try:
                _detached(value, {})
            except Exception as error:
                place = ".".join(filter(None, (path, name))) or "it"
                return f"{place} is a {type(value).__name__} ({said(error)})"
    return ""
