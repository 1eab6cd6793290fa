"""A network of well-known layers as a straight line of torch operators, read off a call of it.

torch's tracer (:mod:`.trace`) takes seconds to import and half a second a network, and interprets byte code that may be
anybody's. The layers named here are torch's own and ours: none looks at a value, keeps state in eval mode, or cares how
many images there are. What the tracer would find is then what one call dispatches. All the same, a call is watched for
values that reach Python, and made for one image as well.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ..models.maxout import Maxout, MaxoutConv
from ..models.purifier import Autoencoder, Purified
from ..models.registry import BasicBlock, Thumbnail
from ..models.stages import Stages, Standardize
from .calls import Trace, Uncovered, called, outline, watch

IMAGES: Final = 2
"""Images of the call; moves are read off by as many (:mod:`.operators`)."""

_KNOWN: Final[frozenset[type[nn.Module]]] = frozenset(
    {
        *(Stages, Standardize, Thumbnail, BasicBlock, Maxout, MaxoutConv, Autoencoder, Purified),
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
    found = called(model, example)
    watch(model, example)
    if outline(found.graph) != outline(called(model, example[:1]).graph):
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
