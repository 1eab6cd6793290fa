"""A model as a straight line of torch operators, or the reason why it is none.

A certificate holds for the operators that were traced, so they have to be what the referee calls, for every image.
Three things see to that:

* ``torch.export`` in its strict mode interprets the model's byte code and stops at whatever lets Python see a pixel (a
  branch, NumPy, a hash), a clock or a generator. It is run for any number of images and for one, because code may ask
  how many there are. What it would only warn of, state that a call leaves behind, is refused.
* Code that asks whether it is being traced, and code that the tracer was told to believe, show another face there. So
  the model is called as it is, too, and watched: nothing may hand values of tensors to Python.
* :mod:`.bounds` compares the model's logits with what rounding allows, for the images themselves and around them.

Networks of known layers need no tracer (:mod:`.layers`).

Not ruled out: native code that reads memory behind torch's back, and state that others change between two calls.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import first_line


class Uncovered(Exception):
    """There is no bound for the model; the message says why, or names the operator."""


@dataclass(frozen=True)
class Trace:
    """A model's operators.

    Attributes:
        graph: Core ATen operators, without side effects, in order.
        constants: Name of a placeholder to its tensor; the one that is missing is the batch of images.
    """

    graph: fx.Graph
    constants: dict[str, Tensor]


_EXAMPLES: Final = 3
"""Images that the model is traced with: neither one, which is another case, nor two, which kernels may be wide."""

_READERS: Final = frozenset(
    (
        *("item", "tolist", "numpy", "__array__", "__dlpack__", "data_ptr", "storage", "untyped_storage"),
        *("__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "__reduce_ex__"),
        *("__repr__", "__str__", "__format__", "is_nonzero", "equal", "allclose"),
    )
)
"""Functions of torch by which Python sees what is in a tensor."""

_ASKERS: Final = frozenset({"is_compiling", "is_exporting", "is_dynamo_compiling", "is_fx_tracing"})
"""Functions by which code finds out that it is being traced."""


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


def _check_writes(program: torch.export.ExportedProgram) -> None:
    signature = program.graph_signature
    if signature.buffers_to_mutate or getattr(signature, "parameters_to_mutate", None):
        raise Uncovered("a call of it changes its weights or buffers")
    if signature.user_inputs_to_mutate:
        raise Uncovered("it writes into its input")
    if len(signature.user_outputs) != 1:
        raise Uncovered(f"it returns {len(signature.user_outputs)} things, expected logits alone")


def outline(graph: fx.Graph) -> list[Any]:
    """What a graph does, but for how many images: operators, settings, and shapes an image."""
    found: list[Any] = []
    place: dict[fx.Node, int] = {}
    for node in graph.nodes:
        value = node.meta.get("val")
        if not isinstance(value, Tensor) and node.op == "call_function" and not isinstance(value, tuple | list):
            continue  # numbers of images
        place[node] = len(place)
        shape = tuple(value.shape[1:]) if isinstance(value, Tensor) else None
        operands = [place.get(parent, -1) for parent in node.all_input_nodes if parent in place]
        settings: list[object] = []
        if "view" not in str(node.target) and "reshape" not in str(node.target) and "expand" not in str(node.target):
            settings = [repr(part) for part in _leaves((node.args, node.kwargs))]
        found.append((node.op, str(node.target) if node.op == "call_function" else "", shape, operands, settings))
    return found


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two programs hold the same constants."""
    return one.keys() == other.keys() and all(
        isinstance(value, Tensor) and torch.equal(value, other[name]) for name, value in one.items()
    )


def _leaves(value: Any) -> Iterator[Any]:
    """Everything in nested arguments that is no node."""
    if isinstance(value, tuple | list):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, dict):
        yield from _leaves(list(value.items()))
    elif not isinstance(value, fx.Node):
        yield value


class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches the operators of a call. torch's compiler is kept off, but not imported to be told so."""

    def __enter__(self) -> Self:
        kind: Any = type(self)
        if "torch._dynamo" in sys.modules and not hasattr(kind.__torch_dispatch__, "_torchdynamo_disable"):
            kind.__torch_dispatch__ = torch.compiler.disable(kind.__torch_dispatch__)  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class _Operators(Mode):  # type: ignore[no-untyped-call]
    """Notes operators whose result Python sees: a number, or a shape that depends on values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    """Notes functions that hand values to Python without an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _READERS:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def watch(model: nn.Module, x: Tensor) -> None:
    """Call a model as it is, once, and see that no value of a tensor reaches Python.

    Raises:
        Uncovered: One does, or the code asks whether it is being traced.
    """
    asked: list[str] = []
    library = str(Path(torch.__file__).parent)

    def look(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name in _ASKERS:
            asking = frame.f_back.f_code.co_filename if frame.f_back else ""
            if not asking.startswith(library):  # torch's own code asks, too
                asked.append(frame.f_code.co_name)

    x = x.clone()
    before = sys.getprofile()
    with _Functions() as functions, _Operators() as operators:
        sys.setprofile(look)
        try:
            model(x)
        except Exception as error:
            raise Uncovered(f"a call of it fails: {_said(error)}") from error
        finally:
            sys.setprofile(before)
    if found := [*functions.found, *operators.found]:
        raise Uncovered(f"its code looks at values ({found[0]})")
    if asked:
        raise Uncovered(f"its code asks whether it is being traced ({asked[0]})")
