"""What a call of a model dispatches, and whether it hands values to Python."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import describe

GIVES_BACK: Final = frozenset({"aten.clone", "aten.alias", "aten.detach", "aten.lift_fresh", "aten.lift_fresh_copy"})
"""Operators that return their operand as it is."""

_READERS: Final = frozenset(
    (
        *("item", "tolist", "numpy", "__array__", "__dlpack__", "data_ptr", "storage", "untyped_storage"),
        *("__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "__reduce_ex__"),
        *("__repr__", "__str__", "__format__", "is_nonzero", "equal", "allclose"),
    )
)
"""Functions of torch by which Python sees what is in a tensor."""


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


def outline(graph: fx.Graph) -> list[Any]:
    """What a graph does, but for how many images: operators, settings, and shapes an image."""
    found: list[Any] = []
    place: dict[fx.Node, int] = {}
    for node in graph.nodes:
        value = node.meta.get("val")
        if not isinstance(value, Tensor) and node.op == "call_function" and not isinstance(value, tuple | list):
            continue  # numbers of images
        if _gives_back(node):
            (operand,) = node.all_input_nodes[:1]
            place[node] = place[operand]
            continue
        place[node] = len(found)
        shape = tuple(value.shape[1:]) if isinstance(value, Tensor) else None
        operands = [place.get(parent, -1) for parent in node.all_input_nodes if parent in place]
        name = str(node.target) if node.op == "call_function" else ""
        settings: list[object] = []
        if "view" not in name and "reshape" not in name and "expand" not in name:
            settings = [repr(part) for part in _leaves((node.args, node.kwargs))]
        # what works in place computes the same
        found.append((node.op, name.replace("_.", "."), shape, operands, settings))
    return found


def _gives_back(node: fx.Node) -> bool:
    """Whether an operator returns its operand as it is: a tracer leaves such out, or not."""
    name = str(getattr(node.target, "overloadpacket", ""))
    if name == "aten.slice":
        start, end, step = (node.args[at] if at < len(node.args) else None for at in (2, 3, 4))
        return start in (None, 0) and end in (None, sys.maxsize) and step in (None, 1)
    return name in GIVES_BACK


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
        Uncovered: One does, or the call fails.
    """
    with _Functions() as functions, _Operators() as operators:
        try:
            model(x.clone())
        except Exception as error:
            raise Uncovered(f"a call of it fails: {describe(error)[:160]}") from error
    if found := [*functions.found, *operators.found]:
        raise Uncovered(f"its code looks at values ({found[0]})")


@torch.no_grad()
def called(model: nn.Module, x: Tensor, *, pure: bool = True) -> Trace:
    """The operators that one call dispatches, but for those that its result does not depend on.

    Args:
        model: In eval mode.
        x: Images.
        pure: Whether operators that work in place are replaced by those that do not.

    Raises:
        Uncovered: It does not return logits alone; ``pure``, and something else sees what is written in place.
    """
    with _Recorder(x, pure=pure) as recorder:
        out = model(x)
    if not isinstance(out, Tensor) or id(out) not in recorder.nodes:
        raise Uncovered("it does not return logits alone")
    recorder.graph.output((recorder.nodes[id(out)],))
    recorder.graph.eliminate_dead_code()
    return Trace(recorder.graph, recorder.constants)


class _Recorder(Mode):  # type: ignore[no-untyped-call]
    """Writes down the operators of a call.

    Attributes:
        nodes: Of every tensor that was met, by its id.
        kept: These tensors, so that no id is given twice; the first are the images.
    """

    def __init__(self, x: Tensor, *, pure: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pure = pure
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.nodes: dict[int, fx.Node] = {}
        self.kept: list[Tensor] = []
        self._keep(x, self.graph.placeholder("images"))

    def _keep(self, tensor: Tensor, node: fx.Node) -> None:
        self.kept.append(tensor)
        node.meta["val"] = tensor
        self.nodes[id(tensor)] = node

    def _given(self, value: Any) -> Any:
        """The node of a tensor; one that no operator gave is a constant."""
        if isinstance(value, Tensor) and id(value) not in self.nodes:
            name = f"constant_{len(self.constants)}"
            self.constants[name] = value.detach()
            self._keep(value, self.graph.placeholder(name))
        return self.nodes[id(value)] if isinstance(value, Tensor) else value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known: Any = map_aggregate((args, kwargs), self._given)
        node = self.graph.call_function(
            self._pure(func, args) if self.pure and func._schema.is_mutable else func, *known
        )
        out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            self._keep(out, node)
        elif isinstance(out, tuple | list):
            node.meta["val"] = out
            for place, part in enumerate(out):
                self._keep(part, self.graph.call_function(operator.getitem, (node, place)))
        return out

    def _pure(self, func: Any, args: Any) -> Any:
        """The operator that gives what this one writes into its first operand.

        Raises:
            Uncovered: Something else sees what is written.
        """
        (written, *_), name = args, func._schema.name.removeprefix("aten::")
        seen = [tensor for tensor in self.kept if tensor is not written]
        place = written.untyped_storage().data_ptr()
        if self.nodes[id(written)].op == "placeholder" or any(
            tensor.untyped_storage().data_ptr() == place for tensor in seen
        ):
            raise Uncovered(f"{name} in place")
        return getattr(getattr(torch.ops.aten, name.removesuffix("_")), func._overloadname)
