"""A network of well-known layers as a straight line of torch operators, read off a call of it.

torch's tracer (:mod:`.trace`) takes seconds to import and half a second a network, and interprets byte code that may be
anybody's. The layers named here are torch's own and ours: none looks at a value, keeps state in eval mode, or cares how
many images there are. What the tracer would find is then what one call dispatches. All the same, a call is watched for
values that reach Python, and made for one image as well.
"""

from __future__ import annotations

import operator
import sys
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn.modules import module as torch_module

from ..models.maxout import Maxout, MaxoutConv
from ..models.purifier import Autoencoder, Purified
from ..models.registry import Thumbnail
from ..models.stages import Stages, Standardize
from .trace import Mode, Trace, Uncovered, outline, watch

IMAGES: Final = 2
"""Images of the call; moves are read off by as many (:mod:`.operators`)."""

_KNOWN: Final[frozenset[type[nn.Module]]] = frozenset(
    {
        *(Stages, Standardize, Thumbnail, Maxout, MaxoutConv, Autoencoder, Purified),
        *(nn.Sequential, nn.ModuleDict, nn.Identity, nn.Flatten, nn.Dropout, nn.Linear, nn.Conv2d, nn.BatchNorm2d),
        *(nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    }
)

_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks")


def recorded(model: nn.Module, x: Tensor) -> Trace:
    """Take a model apart; see :func:`.trace.trace` for the arguments.

    Raises:
        Uncovered: It is not made of known layers alone, or does more than they do.
    """
    if any(part.training or not _known(part) for part in model.modules()) or _hooked(torch_module, "_global"):
        raise Uncovered("it is not made of known layers alone")
    example = x[:1].expand(IMAGES, *x.shape[1:]).clone()
    found = _called(model, example)
    watch(model, example)
    if outline(found.graph) != outline(_called(model, example[:1]).graph):
        raise Uncovered("what it computes depends on the number of images")
    return found


def _known(part: nn.Module) -> bool:
    """Whether a module is what its class says: no subclass, no hook, no method or tensor of another kind of its own."""
    block = getattr(sys.modules.get("torchvision.models.resnet"), "BasicBlock", None)
    tensors = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
    return (
        (type(part) in _KNOWN or (block is not None and type(part) is block))
        and not _hooked(part)
        and not any(callable(value) for value in vars(part).values())
        and all(type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)
    )


def _hooked(owner: Any, prefix: str = "") -> bool:
    return any(getattr(owner, prefix + hooks) for hooks in _HOOKS)


@torch.no_grad()
def _called(model: nn.Module, x: Tensor) -> Trace:
    with _Recorder(x) as recorder:
        out = model(x)
    if not isinstance(out, Tensor) or id(out) not in recorder.nodes:
        raise Uncovered("it does not return logits alone")
    recorder.graph.output((recorder.nodes[id(out)],))
    recorder.graph.eliminate_dead_code()
    return Trace(recorder.graph, recorder.constants)


class _Recorder(Mode):  # type: ignore[no-untyped-call]
    """Writes down the operators of a call, those that work in place as if they did not.

    Attributes:
        nodes: Of every tensor that was met, by its id.
        kept: These tensors, so that no id is given twice; the first are the images.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
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
        node = self.graph.call_function(self._pure(func, args) if func._schema.is_mutable else func, *known)
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
