"""From traced operators to nodes: what is covered, and the name of what is not."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, fx

from . import nodes, relaxations
from .calls import GIVES_BACK, Trace, Uncovered
from .nodes import Bent, Image, Largest, Node, Shape, Sum

ROUNDING: Final = 2.0**-20
"""Absolute error of a float32 sigmoid or hyperbolic tangent: sixteen units in the last place of 1."""

_MOVES: Final = frozenset(
    f"aten.{name}"
    for name in (
        *("view", "_unsafe_view", "permute", "squeeze", "unsqueeze", "expand", "slice", "select", "flip"),
        *("constant_pad_nd", "index", "index_select", "repeat"),
    )
)
"""Operators that only put values into other places; they are read off by moving row numbers."""

_ROWS: Final = 2
"""Images in what is moved: one could not show that images are mixed."""

_OUTPUTS: Final = {"aten._softmax": "softmax", "aten._log_softmax": "log_softmax"}
"""Covered where they end the network: no order of logits changes by them."""


_ORDINARY: Final = 2.0**20
"""Normalisation multiplies and adds in an order of its own; with larger factors it may overflow on the way."""


class _Missing:
    """A second result of an operator, which nothing that is covered reads."""


class Builder:
    """Builds nodes from a trace.

    Attributes:
        image: Where the images enter.
        made: Every node in order.
        output: The node of the logits.
        tail: What the model puts behind them: ``"softmax"``, ``"log_softmax"`` or nothing.
        dtype: Of the result of the operator at hand.

    Args:
        trace: The operators.
        x: An image or more, for shape and device.
        unit: Rounding of one float32 operation, relative.
        slack: By how much a convolution may be worse than a sum of its products.

    Raises:
        Uncovered: With the operator's name.
    """

    def __init__(self, trace: Trace, x: Tensor, unit: float, slack: float) -> None:
        self.unit = unit
        self.slack = slack
        self.device = x.device
        self.made: list[Node] = []
        self.tail = ""
        self.dtype = x.dtype
        self.values: dict[fx.Node, Any] = {}
        self.image = self.add(Image((), tuple(x.shape[1:])))
        self.batch = ""
        for node in trace.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = trace.constants.get(node.name, self.image)
                if self.values[node] is self.image:
                    self.batch = str(node.meta["val"].shape[0])
            elif node.op == "call_function":
                self.values[node] = self.call(node)
            elif node.op == "output":
                self.output = self.values[node.args[0][0]]
            else:
                raise Uncovered(f"{node.op} {node.target}")
        if not isinstance(self.output, Node) or len(self.output.shape) != 1 or self.output.shape[0] < 2:
            raise Uncovered("it does not return logits (N, K) that depend on the images")

    def add(self, node: Node) -> Node:
        """Keep a node."""
        self.made.append(node)
        return node

    def rounding(self, terms: int) -> float:
        """Relative error of a sum of so many products, and as much again in the 10th bit for float64's own."""
        share = terms * self.unit
        return share / (1 - share) * (1 + 2.0**-10) if share < 0.5 else math.inf

    def scalar(self, value: Any) -> float:
        """A number as the operator at hand takes it."""
        return torch.tensor(float(value)).to(self.dtype).item() if self.dtype != torch.float64 else float(value)

    def convolved(self, terms: int) -> float:
        """The same, of algorithms that transform their operands first."""
        return self.rounding(terms) * self.slack

    def call(self, node: fx.Node) -> Any:
        """What an operator gives: a node if it depends on the images, else a value."""
        name = str(getattr(node.target, "overloadpacket", node.target))
        known: Any = fx.map_arg((node.args, node.kwargs), self.values.__getitem__)
        args, kwargs = known
        target: Any = node.target
        if target is operator.getitem:
            return args[0][args[1]]
        if name in ("aten._assert_tensor_metadata", "aten._assert_scalar"):
            return None
        if name == "aten.sym_size":
            return _ROWS if args[1] == 0 else args[0].shape[args[1] - 1]
        flat = list(_flat((args, kwargs)))
        if any(isinstance(value, _Missing) for value in flat):
            raise Uncovered(f"{name} of a second result")
        if not any(isinstance(value, Node) for value in flat):
            return self.constant(node, name, target, args, kwargs)
        shape = self.shape(node, name)
        if name in GIVES_BACK:
            return args[0]
        if self.tail:
            raise Uncovered(f"aten._{self.tail} before the output")
        if name in _MOVES and not _picks_images(name, args):
            return self.move(target, args, kwargs, shape)
        if name == "aten.split_with_sizes":
            return self.parts(node, target, args, kwargs)
        if name in _OUTPUTS:
            if args[1] not in (1, -1) or len(shape) != 1:
                raise Uncovered(name)
            self.tail = _OUTPUTS[name]
            return args[0]
        if name == "aten.cat":
            return self.join(target, args, shape)
        if name == "aten._to_copy":
            return self.add(nodes.scaled(args[0], 1.0, 0.0, 0.0, self.rounding(1)))
        make = _MAKERS.get(name)
        if make is None or kwargs:
            raise Uncovered(name)
        made: Any = make(self, name, shape, target, *args)
        return made

    @torch.no_grad()
    def constant(self, node: fx.Node, name: str, target: Any, args: Any, kwargs: Any) -> Any:
        """An operator on weights alone, computed."""
        if isinstance(target, torch._ops.OpOverload):
            if (
                target.namespace not in ("aten", "prims")
                or torch.Tag.nondeterministic_seeded in target.tags
                or "empty" in name
            ):
                raise Uncovered(name)
        elif getattr(target, "__module__", "") not in ("_operator", "math"):
            raise Uncovered(name)
        return target(*args, **kwargs)

    def shape(self, node: fx.Node, name: str) -> Shape:
        """Shape of an operator's (first) result without the batch, which has to come first."""
        value = node.meta["val"]
        value = value[0] if isinstance(value, tuple | list) else value
        if not isinstance(value, Tensor):
            raise Uncovered(name)
        self.dtype = value.dtype
        if value.dtype not in (torch.float32, torch.float64):
            raise Uncovered(f"{name} to {value.dtype}")
        if not value.dim() or str(value.shape[0]) != self.batch:
            raise Uncovered(f"{name} across images")
        return tuple(int(size) for size in value.shape[1:])

    def move(self, target: Any, args: Any, kwargs: Any, shape: Shape) -> Node:
        """An operator that moves values of one node."""
        fill = 0.0
        if target is torch.ops.aten.constant_pad_nd.default:
            fill = self.scalar(args[2]) if len(args) > 2 else 0.0
            args = (*args[:2], -1)
        (parent,) = [value for value in _flat((args, kwargs)) if isinstance(value, Node)]
        source = self.sources(target, args, kwargs, parent, shape)
        return self.add(nodes.moved(parent, shape, source, fill))

    def parts(self, node: fx.Node, target: Any, args: Any, kwargs: Any) -> list[Node]:
        """An operator that moves values of one node to several."""

        def part(place: int) -> Callable[..., Any]:
            return lambda *args, **kwargs: target(*args, **kwargs)[place]

        shapes = [tuple(int(size) for size in value.shape[1:]) for value in node.meta["val"]]
        return [self.move(part(place), args, kwargs, shape) for place, shape in enumerate(shapes)]

    def sources(self, target: Any, args: Any, kwargs: Any, parent: Node, shape: Shape) -> Tensor:
        """Which value of a parent each value of the output is, (outputs,); -1: none of it."""
        count = math.prod(parent.shape)
        numbers = torch.arange(_ROWS * count, device=self.device).view(_ROWS, *parent.shape)

        def numbered(value: Any) -> Any:
            if isinstance(value, Node):
                return numbers if value is parent else numbers.new_full((_ROWS, *value.shape), -1)
            if isinstance(value, tuple | list):
                return type(value)(numbered(part) for part in value)
            return value

        first, second = target(*numbered(args), **kwargs).reshape(_ROWS, -1)
        expected = torch.where(first < 0, -1, first + count)
        if len(first) != math.prod(shape) or not torch.equal(second, expected) or (first >= count).any():
            raise Uncovered(f"{getattr(target, 'overloadpacket', 'a split')} across images")
        source: Tensor = first
        return source

    def join(self, target: Any, args: Any, shape: Shape) -> Node:
        """A concatenation, as the sum of its parts in their places."""
        parts = args[0]
        if not all(isinstance(part, Node) for part in parts) or len(set(parts)) != len(parts):
            raise Uncovered("aten.cat with what does not depend on the images, or twice on the same")
        placed = [self.add(nodes.moved(part, shape, self.sources(target, args, {}, part, shape))) for part in parts]
        total = placed[0]
        for part in placed[1:]:
            total = self.add(Sum((total, part), shape))
        return total

    def scale(self, parent: Node, scale: Tensor | float, shift: Tensor | float = 0.0) -> Node:
        """An exact ``scale * x + shift``."""
        return self.add(nodes.scaled(parent, scale, shift, 0.0, 0.0))

    def rectified(self, parent: Node) -> Node:
        """ReLU."""
        return self.add(Bent((parent,), parent.shape, torch.relu, relaxations.rectifier))

    def largest(self, parent: Node, shape: Shape, members: Tensor) -> Node:
        """Maxima. Those of a growing function are the function of the maxima, which are fewer."""
        if isinstance(parent, Bent):
            inner = self.add(Largest(parent.parents, shape, members))
            return self.add(dataclasses.replace(parent, parents=(inner,), shape=shape))
        return self.add(Largest((parent,), shape, members))

    def at_least(self, parent: Node, bound: float) -> Node:
        """``max(x, bound)``."""
        if not bound:
            return self.rectified(parent)
        return self.scale(self.rectified(self.scale(parent, 1.0, -bound)), 1.0, bound)

    def at_most(self, parent: Node, bound: float) -> Node:
        """``min(x, bound)``."""
        return self.scale(self.at_least(self.scale(parent, -1.0), -bound), -1.0)


def _picks_images(name: str, args: Any) -> bool:
    """Whether an operator's index is one of images: two rows of numbers would not show what it does to more."""
    return (name == "aten.index" and args[1][0] is not None) or (
        name == "aten.index_select" and args[1] % (1 + len(args[0].shape)) == 0
    )


def _flat(value: Any) -> Any:
    if isinstance(value, tuple | list):
        for part in value:
            yield from _flat(part)
    elif isinstance(value, dict):
        yield from _flat(list(value.values()))
    else:
        yield value


def _weights(name: str, *values: Any) -> None:
    """What has to be known when the network is built."""
    if any(isinstance(value, Node) for value in values):
        raise Uncovered(f"{name} of two activations")


def _like(build: Builder, name: str, value: Any, shape: Shape) -> Tensor | float:
    """A constant beside values of that shape, without a batch."""
    if not isinstance(value, Tensor):
        return build.scalar(value)
    if value.dim() > len(shape) + 1 or (value.dim() == len(shape) + 1 and value.shape[0] != 1):
        raise Uncovered(f"{name} with a tensor as large as the batch")
    return value.to(build.dtype).double().expand(1, *shape)[0]


def _dense(build: Builder, name: str, shape: Shape, _: Any, *args: Any) -> Node:
    bias, x, weight = args if len(args) == 3 else (None, *args)
    _weights(name, bias, weight)
    if not isinstance(x, Node) or weight.dim() != 2 or x.shape != weight.shape[:1]:
        raise Uncovered(name)
    if bias is not None:
        bias = bias.expand(1, *shape)[0]
    return build.add(nodes.dense(x, weight.T, bias, build.rounding))


def _convolution(build: Builder, name: str, shape: Shape, _: Any, *args: Any) -> Node:
    x, weight, bias, stride, padding, dilation, transposed, _out, groups = args
    _weights(name, weight, bias)
    if transposed or len(shape) != 3:
        raise Uncovered(f"{name}, {'transposed' if transposed else f'{len(shape) - 1} dimensions'}")
    settings = (list(stride), list(padding), list(dilation), groups)
    return build.add(nodes.convolution(x, shape, weight, bias, settings, build.convolved))


def _normalisation(build: Builder, name: str, shape: Shape, _: Any, *args: Any) -> Any:
    x, weight, bias, mean, variance, *training, _momentum, eps = args
    _weights(name, weight, bias, mean, variance)
    if any(training):
        raise Uncovered(f"{name} across images")
    scale = (variance.double() + eps).rsqrt()
    if not all(bool((part.abs() < _ORDINARY).all()) for part in (scale, weight, bias, mean) if part is not None):
        raise Uncovered(f"{name} by factors beyond {_ORDINARY:.0e}")
    scale = scale if weight is None else scale * weight.double()
    moved = mean.double() * scale
    shift = -moved if bias is None else bias.double() - moved
    size = moved.abs() if bias is None else bias.double().abs() + moved.abs()
    scale, shift, size = (part.view(-1, *[1] * (len(shape) - 1)).expand(shape) for part in (scale, shift, size))
    made = build.add(nodes.scaled(x, scale, shift, size, build.rounding(16)))
    return made, _Missing(), _Missing()


def _sum(build: Builder, name: str, shape: Shape, _: Any, *args: Any) -> Node:
    a, b = args
    sign = -1.0 if name == "aten.sub" else 1.0
    if isinstance(a, Node) and isinstance(b, Node):
        if a.shape != shape or b.shape != shape:
            raise Uncovered(f"{name} of two activations of different shapes")
        return build.add(Sum((a, b), shape, sign, build.rounding(1)))
    x, other, scale, factor = (a, b, 1.0, sign) if isinstance(a, Node) else (b, a, sign, 1.0)
    if x.shape != shape:
        raise Uncovered(f"{name} that repeats values")
    shift = factor * _like(build, name, other, shape)
    size = shift.abs() if isinstance(shift, Tensor) else abs(shift)
    return build.add(nodes.scaled(x, scale, shift, size, build.rounding(1)))


def _product(build: Builder, name: str, shape: Shape, _: Any, *args: Any) -> Node:
    a, b = args
    _weights(name, *(args if isinstance(a, Node) and isinstance(b, Node) else ()))
    x, other = (a, b) if isinstance(a, Node) else (b, a)
    if x.shape != shape or (name == "aten.div" and x is not a):
        raise Uncovered(f"{name} {'by an activation' if x.shape == shape else 'that repeats values'}")
    scale = _like(build, name, other, shape)
    if name == "aten.div":  # by way of the reciprocal, which may overflow
        if not bool((torch.as_tensor(scale).abs() > 1 / _ORDINARY).all()):
            raise Uncovered(f"{name} by less than {1 / _ORDINARY:.0e}")
        scale = 1 / scale
    return build.add(nodes.scaled(x, scale, 0.0, 0.0, build.rounding(2)))


def _pool(build: Builder, name: str, shape: Shape, target: Any, *args: Any) -> Node:
    x, *rest = args
    if len(rest) > 5 and rest[5] is not None:
        raise Uncovered(f"{name} with a divisor of its own")
    terms = math.prod(x.shape[1:]) if "adaptive" in name else math.prod(_pair(rest[0]))
    return build.add(nodes.averaged(x, shape, lambda v: target(v, *rest), build.rounding(terms + 2)))


def _mean(build: Builder, name: str, shape: Shape, target: Any, *args: Any) -> Node:
    x, dims, *rest = args
    dims = _places(name, dims, x)
    terms = math.prod(x.shape[dim - 1] for dim in dims)
    return build.add(nodes.averaged(x, shape, lambda v: target(v, dims, *rest), build.rounding(terms + 2)))


def _places(name: str, dims: Any, x: Node) -> list[int]:
    """Dimensions counted from the front, none of them the batch's."""
    wanted = [dims] if isinstance(dims, int) else list(dims or range(len(x.shape) + 1))
    found = [dim % (len(x.shape) + 1) for dim in wanted]
    if 0 in found:
        raise Uncovered(f"{name} across images")
    return found


def _pair(value: Any) -> tuple[int, int]:
    pair = list(value)
    return (pair[0], pair[-1])


def _max_pool(build: Builder, name: str, shape: Shape, _: Any, *args: Any) -> Any:
    x, kernel, *rest = args
    stride = rest[0] if rest and rest[0] else kernel
    padding = rest[1] if len(rest) > 1 else [0]
    dilation = rest[2] if len(rest) > 2 else [1]
    channels, height, width = x.shape
    axes = []
    for axis, (size, out) in enumerate(zip((height, width), shape[1:], strict=True)):
        start = torch.arange(out, device=build.device) * _pair(stride)[axis] - _pair(padding)[axis]
        offset = torch.arange(_pair(kernel)[axis], device=build.device) * _pair(dilation)[axis]
        place = start.unsqueeze(1) + offset
        axes.append(torch.where((place >= 0) & (place < size), place, -1))
    rows, columns = axes
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]
    place = torch.where((rows >= 0) & (columns >= 0), rows * width + columns, -1).flatten(2).flatten(0, 1)
    planes = torch.arange(channels, device=build.device).view(-1, 1, 1) * height * width
    members = torch.where(place < 0, -1, place + planes).flatten(0, 1)
    return build.largest(x, shape, members), _Missing()


def _amax(build: Builder, name: str, shape: Shape, _: Any, *args: Any) -> Node:
    x, dims, *_keep = args
    numbers = torch.arange(math.prod(x.shape), device=build.device).view(x.shape)
    inner = [dim - 1 for dim in _places(name, dims, x)]
    outer = [dim for dim in range(len(x.shape)) if dim not in inner]
    members = numbers.permute(*outer, *inner).reshape(math.prod(shape), -1)
    return build.largest(x, shape, members)


def _max(build: Builder, name: str, shape: Shape, _: Any, *args: Any) -> Any:
    return _amax(build, name, shape, _, *args), _Missing()


def _relu(build: Builder, name: str, shape: Shape, _: Any, x: Node) -> Node:
    return build.rectified(x)


def _leaky(build: Builder, name: str, shape: Shape, _: Any, x: Node, leak: float = 0.01) -> Node:
    if not 0 <= leak <= 1:
        raise Uncovered(f"{name} with a slope of {leak}")
    leak = build.scalar(leak)
    lines = partial(relaxations.rectifier, leak=leak)
    made = build.add(Bent((x,), shape, lambda z: torch.where(z > 0, z, leak * z), lines))
    return build.add(nodes.scaled(made, 1.0, 0.0, 0.0, build.rounding(1)))


def _s_shaped(build: Builder, name: str, shape: Shape, _: Any, x: Node) -> Node:
    sigmoid = name == "aten.sigmoid"
    function = torch.sigmoid if sigmoid else torch.tanh
    lines = relaxations.logistic if sigmoid else relaxations.hyperbolic
    return build.add(Bent((x,), shape, function, lines, ROUNDING, kink=False))


def _clamp(build: Builder, name: str, shape: Shape, _: Any, x: Node, low: Any = None, high: Any = None) -> Node:
    if name == "aten.hardtanh" and low is None:
        low, high = -1.0, 1.0
    if isinstance(low, Tensor | Node) or isinstance(high, Tensor | Node):
        raise Uncovered(f"{name} by tensors")
    x = x if low is None else build.at_least(x, build.scalar(low))
    return x if high is None else build.at_most(x, build.scalar(high))


def _larger(build: Builder, name: str, shape: Shape, _: Any, a: Any, b: Any) -> Node:
    if not isinstance(a, Node) or not isinstance(b, Node) or a.shape != b.shape:
        raise Uncovered(name)
    first, second = (a, b) if name == "aten.maximum" else (b, a)
    over = build.rectified(build.add(Sum((second, first), shape, -1.0)))
    return build.add(Sum((a, over), shape, 1.0 if name == "aten.maximum" else -1.0))


def _magnitude(build: Builder, name: str, shape: Shape, _: Any, x: Node) -> Node:
    return build.add(Sum((build.rectified(x), build.rectified(build.scale(x, -1.0))), shape))


def _negative(build: Builder, name: str, shape: Shape, _: Any, x: Node) -> Node:
    return build.scale(x, -1.0)


_MAKERS: Final[dict[str, Callable[..., Any]]] = {
    "aten.addmm": _dense,
    "aten.mm": _dense,
    "aten.convolution": _convolution,
    "aten._native_batch_norm_legit_no_training": _normalisation,
    "aten.native_batch_norm": _normalisation,
    "aten.add": _sum,
    "aten.sub": _sum,
    "aten.mul": _product,
    "aten.div": _product,
    "aten.neg": _negative,
    "aten.mean": _mean,
    "aten.sum": _mean,
    "aten.avg_pool2d": _pool,
    "aten._adaptive_avg_pool2d": _pool,
    "aten.max_pool2d_with_indices": _max_pool,
    "aten.amax": _amax,
    "aten.max": _max,
    "aten.relu": _relu,
    "aten.leaky_relu": _leaky,
    "aten.sigmoid": _s_shaped,
    "aten.tanh": _s_shaped,
    "aten.hardtanh": _clamp,
    "aten.clamp": _clamp,
    "aten.clamp_min": lambda build, name, shape, _, x, low: _clamp(build, name, shape, _, x, low),
    "aten.clamp_max": lambda build, name, shape, _, x, high: _clamp(build, name, shape, _, x, None, high),
    "aten.maximum": _larger,
    "aten.minimum": _larger,
    "aten.abs": _magnitude,
}
"""How each operator becomes nodes; called with the builder, its name, the shape, the operator and its arguments."""
