"""Mixed precision and torch.compile for training; evaluation stays float32 and eager."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import first_line

Precision = Literal["float32", "bfloat16"]


@contextmanager
def computing(networks: Iterable[nn.Module], precision: Precision, compiled: bool) -> Iterator[None]:
    """Let networks compute their passes in training mode in another way; in eval mode they stay as they are.

    Weights, gradients and what a network returns stay float32. Where compiling fails, one line on stderr says so and
    all goes on without.
    """
    with ExitStack() as stack:
        if compiled:
            # defenses differentiate a pass twice, first by the image: what the second needs is to be kept
            stack.enter_context(importlib.import_module("torch._functorch.config").patch(donated_buffer=False))
        if precision != "float32" or compiled:
            for network in networks:
                vars(network)["forward"] = _Pass(network, precision, compiled)
                stack.callback(vars(network).pop, "forward")
        yield


class _Pass:
    """The forward pass of a network, in its place."""

    def __init__(self, network: nn.Module, precision: Precision, compiled: bool) -> None:
        self._network, self._plain, self._precision = network, network.forward, precision
        self._compiled: Callable[..., Tensor] | None = torch.compile(self._plain) if compiled else None

    def __call__(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        if not self._network.training:
            return self._plain(x, *rest, **named)  # type: ignore[no-any-return]
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._precision == "bfloat16"):
            return self._run(x, *rest, **named).float()

    def _run(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        if self._compiled is not None:
            try:
                return self._compiled(x, *rest, **named)
            except Exception as error:  # whatever it is, the pass can do without
                self._compiled = None
                name = type(self._network).__name__
                sys.stderr.write(f"gauntlet: cannot compile {name} ({first_line(error)}); training goes on without\n")
        return self._plain(x, *rest, **named)  # type: ignore[no-any-return]
