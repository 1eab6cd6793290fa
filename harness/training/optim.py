"""One optimizer step: update, learning rate, limit on weight norms."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from ..threat import per_sample


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One update of the optimizer's weights down the gradient of a scalar."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    update(optimizer)


def update(optimizer: torch.optim.Optimizer) -> None:
    """``optimizer.step()`` without what torch wraps around it for its compiler and its profiler.

    The wrapping imports the compiler, which takes every worker process 4 s and is of no use to eager code.
    """
    with torch.no_grad():
        inspect.unwrap(type(optimizer).step)(optimizer)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


@torch.no_grad()
def limit_norms(model: nn.Module, largest: float) -> None:
    """Scale down the weights that enter a unit wherever their Euclidean norm is larger than ``largest``.

    A unit is a row of a dense layer or a filter of a convolution; biases are no part of it.
    """
    for part in model.modules():
        if isinstance(part, nn.Linear | nn.Conv2d) and part.weight.requires_grad:
            norms = torch.linalg.vector_norm(part.weight.flatten(1), dim=1).clamp_min(1e-30)
            part.weight.mul_(per_sample((largest / norms).clamp(max=1), part.weight))


def keep_compiler_out() -> None:
    """Spare each worker 4 s: an optimizer's first call imports torch's compiler, only to be kept off it.

    torch remembers the version of a method that the compiler leaves alone; in a process that compiles nothing that is
    the method itself.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        method = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if method is not None:
            vars(method).setdefault("__dynamo_disable", method)
