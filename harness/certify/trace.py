"""A model as a straight line of torch operators, or the reason why it is none.

A certificate holds for the operators that were traced, so they have to be what the referee calls, for every image.
Three things see to that:

* ``torch.export`` in its strict mode interprets the model's byte code and stops at whatever lets Python see a pixel (a
  branch, NumPy, a hash), a clock or a generator. It is run for any number of images and for one, because code may ask
  how many there are. What it would only warn of, state that a call leaves behind, is refused.
* Code that knows that it is traced, and code that the tracer was told to believe, show another face there. So the model
  is called as it is, too, and watched: nothing may hand values of tensors to Python, and the call has to dispatch, one
  by one, the operators that the traced program does, with the same settings and constants.
* :mod:`.bounds` compares the model's logits with what rounding allows, for the images themselves and around them.

Networks of known layers need no tracer (:mod:`.layers`).

Not ruled out: native code that reads memory behind torch's back, code that looks for those who watch it, and state that
others change between two calls.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..errors import first_line
from .calls import Trace, Uncovered, called, outline, watch

_EXAMPLES: Final = 3
"""Images that the model is traced with: neither one, which is another case, nor two, which kernels may be wide."""


def trace(model: nn.Module, x: Tensor) -> Trace:
    """Take a model apart.

    Args:
        model: In eval mode.
        x: An image or more, float32 (N, C, H, W) on the model's device.

    Raises:
        Uncovered: It cannot be, or what was traced may not be what it computes for other images.
    """
    if any(part.training for part in model.modules()):
        raise Uncovered("a part of it is in training mode")
    example = x[:1].expand(_EXAMPLES, *x.shape[1:]).clone()
    batch = torch.export.Dim("images", min=1)
    program = _exported(model, example, ({0: batch},))
    watch(model, example)
    _check_writes(program)
    _check_face(model, program, example)
    alone = _exported(model, example[:1], None)
    if outline(program.graph) != outline(alone.graph) or not _same(program.constants, alone.constants):
        raise Uncovered("what it computes depends on the number of images")
    with _quiet():
        try:
            core = program.run_decompositions()
        except Exception as error:
            raise Uncovered(f"torch.export: {_said(error)}") from error
    _check_writes(core)
    signature = core.graph_signature
    values: dict[str, Any] = {**core.constants, **core.state_dict}
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    return Trace(core.graph, {name: values[target].detach() for name, target in names.items()})


def _exported(model: nn.Module, x: Tensor, shapes: Any) -> torch.export.ExportedProgram:
    with torch.no_grad(), _quiet() as said:
        try:
            program = torch.export.export(model, (x,), strict=True, dynamic_shapes=shapes)
        except Exception as error:
            raise Uncovered(f"torch.export: {_said(error)}") from error
    if any("side effects" in str(warning.message) for warning in said):
        raise Uncovered("a call of it leaves state behind")
    return program


@contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Collect warnings, and keep the tracer's own words off the terminal."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        logging.disable(logging.CRITICAL)
        try:
            yield said
        finally:
            logging.disable(before)


def _said(error: Exception) -> str:
    """The first line of what the tracer says, which goes on for pages."""
    return f"{type(error).__name__}: {first_line(error)[:160]}"


def _check_face(model: nn.Module, program: torch.export.ExportedProgram, x: Tensor) -> None:
    """See that a call of the model is a call of the program, operator by operator."""
    seen, traced = (called(one, x.clone(), pure=False) for one in (model, program.module()))
    if outline(seen.graph) != outline(traced.graph) or not _same(seen.constants, traced.constants):
        raise Uncovered("a call of it is not what was traced")


def _check_writes(program: torch.export.ExportedProgram) -> None:
    signature = program.graph_signature
    if signature.buffers_to_mutate or getattr(signature, "parameters_to_mutate", None):
        raise Uncovered("a call of it changes its weights or buffers")
    if signature.user_inputs_to_mutate:
        raise Uncovered("it writes into its input")
    if len(signature.user_outputs) != 1:
        raise Uncovered(f"it returns {len(signature.user_outputs)} things, expected logits alone")


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two programs hold the same constants."""
    return one.keys() == other.keys() and all(
        isinstance(value, Tensor) and torch.equal(value, other[name]) for name, value in one.items()
    )
