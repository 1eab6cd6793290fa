"""Backward-pass differentiable approximation (BPDA) for parts of a model without gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, unknown
from ..user_code import python_file

Function = Callable[[Tensor], Tensor]


class _Borrow(torch.autograd.Function):
    """The value of one tensor with the gradient of another."""

    @staticmethod
    def forward(ctx: Any, approximation: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class StandIn(nn.Module):
    """A module that computes forward as it always did, and backward as another function does.

    Source: Athalye, Carlini & Wagner 2018, section 4.1. The output of either must have the same shape.
    """

    def __init__(self, module: nn.Module, function: Function) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """As the module; with a gradient where the input has one."""
        with torch.no_grad():
            value: Tensor = self.module(x)
        if not (x.requires_grad and torch.is_grad_enabled()):
            return value
        approximation = self.function(x)
        if approximation.shape != value.shape:
            raise UserError(
                f"the stand-in gradient has shape {tuple(approximation.shape)}, the part it stands in for "
                f"returns {tuple(value.shape)}"
            )
        borrowed: Tensor = _Borrow.apply(approximation, value)
        return borrowed


def identity_function(x: Tensor) -> Tensor:
    """Pass the gradient on as it is: for parts that return nearly what they are given (straight-through)."""
    return x


def find_function(name: str) -> Function:
    """A stand-in by name: ``"identity"``, or ``"file.py:function"``.

    Raises:
        UserError: There is no such function; the message says what was looked for.
    """
    if name == "identity":
        return identity_function
    path, colon, wanted = name.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise unknown("stand-in gradient", name, ["identity", "FILE.py:FUNCTION"])
    file = Path(path)
    if not file.is_file():
        raise UserError(f"no file {path} for the stand-in gradient {name!r}")
    found: Function = python_file.function_of(file.resolve(), wanted, Path.cwd())
    return found


def give_gradients(model: nn.Module, stand_ins: Sequence[tuple[str, str]]) -> nn.Module:
    """Put stand-ins around submodules, in place, each named by its path or a unique end of it; returns the model.

    Raises:
        UserError: No such submodule or function; the choices are listed.
    """
    for wanted, function in stand_ins:
        names = [name for name, _ in model.named_modules() if name]
        found = [name for name in names if name == wanted] or [n for n in names if n.endswith(f".{wanted}")]
        if len(found) != 1:
            raise unknown("part of the model", wanted, names)
        parent, _, last = found[0].rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, last, StandIn(model.get_submodule(found[0]), find_function(function)))
    return model
