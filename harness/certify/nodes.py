"""What a network is made of: intervals forward, lines backward, and the rounding of float32 in both.

Every bound is of what float32 computes, not of the ideal function. A sum of n products comes out within
``n u / (1 - n u)`` of the sum of their sizes, in whatever order it is added (Higham 2002, section 3.1; u = 2^-24). So
an affine node is its matrix, its bias, and an error as large as that, which :meth:`Affine.interval` returns and a
backward pass charges to its coefficients. What is very small may come out as zero, which adds an absolute error; where
a partial sum may overflow the error is infinite. ReLU, maxima and moved values have none. The bounds themselves are
computed in float64, whose rounding is smaller by eight digits than the float32 errors that are charged for the same
sums.

Shapes below are without the batch: a node's bounds are (N, *shape), coefficients in front of it (G, K, *shape), where G
is the number of images, or 1 for what is the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input

from .balls import product
from .relaxations import Lines

Shape = tuple[int, ...]


_WRITTEN: Final = 10_000_000
"""Entries up to which a convolution's matrix is written out."""

_SMALL: Final = 2**19
"""Entries up to which a product with that matrix is faster than the convolution."""


LARGEST: Final = 2.0**100
"""Nothing is said of sums that may be larger: float32 ends at 2^128, and what is added may be scaled on the way."""

SMALLEST: Final = 2.0**-100
"""What may come out as zero, or be taken for it: float32 is exact to 2^-126, likewise."""

_TERMS: Final = 2.0**24
"""Products of a sum, as a share of its relative error: at most so many, see :meth:`.operators.Builder.rounding`."""


class Interval(NamedTuple):
    """Bounds of a node's values, (N, *shape), and of the rounding error that they include (None: there is none)."""

    low: Tensor
    high: Tensor
    error: Tensor | None = None

    @property
    def size(self) -> Tensor:
        """The largest magnitude."""
        return torch.maximum(self.low.abs(), self.high.abs())


def _error(relative: float, sums: Tensor, small: Tensor | float) -> Tensor:
    """Rounding of sums of such magnitudes; infinite where they may overflow."""
    return torch.where(sums < LARGEST, relative * sums + small, math.inf)


class Pulled(NamedTuple):
    """Coefficients in front of a node's parents, and what is added to the lower bound, (N, K) or 0."""

    parts: list[Tensor]
    constant: Tensor | float


@dataclass(eq=False)
class Node:
    """One step of a network.

    Attributes:
        parents: Nodes that it reads.
        shape: Of its output, without the batch.
        bent: Whether it or one before it is not affine.
        mixed: How many nodes in a row have mixed values so far, if none is bent: intervals are exact up to one.
    """

    parents: tuple[Node, ...]
    shape: Shape
    bent: bool = field(init=False)
    mixed: int = field(init=False)

    def __post_init__(self) -> None:
        self.bent = any(parent.bent for parent in self.parents)
        self.mixed = sum(parent.mixed for parent in self.parents)

    def interval(self, *inputs: Interval) -> Interval:
        """Bounds of the output from bounds of the inputs."""
        raise NotImplementedError

    def pull(self, slopes: Tensor, inputs: tuple[Interval, ...], error: Tensor | None) -> Pulled:
        """Replace ``slopes @ output`` by something that is nowhere larger and linear in the inputs."""
        raise NotImplementedError


@dataclass(eq=False)
class Image(Node):
    """The batch of images."""


@dataclass(eq=False)
class Affine(Node):
    """A matrix, a bias and rounding.

    Attributes:
        forward: The matrix on (M, *input shape).
        absolute: The matrix of its magnitudes.
        backward: Its transpose on (M, *shape).
        bias: Added to it; broadcast over (N, *shape).
        bias_size: Magnitude of what is added on the way to the bias, where that is more.
        relative: Rounding error as a share of the sum of magnitudes.
        mixes: Whether an output depends on several inputs.
        written: Gives :attr:`matrix`, where it may be written out.
        weights: Of each output the sum of its weights' magnitudes, (1, *shape), once it was asked for.
    """

    forward: Callable[[Tensor], Tensor]
    absolute: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], Tensor]
    bias: Tensor | float = 0.0
    bias_size: Tensor | float = 0.0
    relative: float = 0.0
    mixes: bool = True
    written: Callable[[], Tensor] | None = None
    weights: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mixed += self.mixes

    @property
    def matrix(self) -> Tensor | None:
        """The matrix written out, (outputs, inputs), where that is cheap: single outputs are read off its rows."""
        return None if self.written is None else self.written()

    def rows(self, outputs: Tensor, error: Tensor | None) -> Pulled:
        """:meth:`pull` of single outputs (N or 1, K), first as they are, then negated."""
        matrix = self.matrix
        assert matrix is not None
        part = matrix[outputs].view(*outputs.shape, *self.parents[0].shape)
        constant: Tensor | float = 0.0
        if isinstance(self.bias, Tensor):
            bias = self.bias.expand(self.shape).flatten()[outputs]
            constant = torch.cat([bias, -bias], 1)
        if error is not None:
            lost = error.flatten(1).gather(1, outputs.expand(len(error), -1))
            constant = constant - torch.cat([lost, lost], 1)
        return Pulled([torch.cat([part, -part], 1)], constant)

    def interval(self, *inputs: Interval) -> Interval:
        """The matrix on the middle, its magnitudes on the half width, and the error."""
        (x,) = inputs
        middle = self.forward((x.low + x.high) / 2) + self.bias
        reach = self.absolute((x.high - x.low) / 2)
        if not self.relative:
            return Interval(middle - reach, middle + reach)
        size = x.size
        largest = size.flatten(1).amax(1).view(-1, *[1] * len(self.shape))
        if self.weights is None:
            self.weights = self.absolute(size.new_ones(1, *size.shape[1:]))
        small = SMALLEST * (self.weights + _TERMS * self.relative * (1 + largest))
        error = _error(self.relative, self.absolute(size) + self.bias_size, small)
        return Interval(middle - reach - error, middle + reach + error, error)

    def pull(self, slopes: Tensor, inputs: tuple[Interval, ...], error: Tensor | None) -> Pulled:
        """Through the transpose; the error at its worst."""
        flat = slopes.flatten(2)
        constant: Tensor | float = 0.0
        if isinstance(self.bias, Tensor):
            constant = flat @ self.bias.expand(self.shape).flatten()
        elif self.bias:
            constant = flat.sum(2) * self.bias
        if error is not None:
            constant = constant - product(flat.abs(), error.flatten(1))
        part = self.backward(slopes.flatten(0, 1)).view(*slopes.shape[:2], *self.parents[0].shape)
        return Pulled([part], constant)


@dataclass(eq=False)
class Sum(Node):
    """Two inputs added, the second times ``sign``."""

    sign: float = 1.0
    relative: float = 0.0

    def interval(self, *inputs: Interval) -> Interval:
        """Ends added."""
        a, b = inputs
        low, high = (b.low, b.high) if self.sign > 0 else (-b.high, -b.low)
        if not self.relative:
            return Interval(a.low + low, a.high + high)
        error = _error(self.relative, a.size + b.size, 2 * SMALLEST)
        return Interval(a.low + low - error, a.high + high + error, error)

    def pull(self, slopes: Tensor, inputs: tuple[Interval, ...], error: Tensor | None) -> Pulled:
        """To both."""
        constant = 0.0 if error is None else -product(slopes.flatten(2).abs(), error.flatten(1))
        return Pulled([slopes, self.sign * slopes], constant)


@dataclass(eq=False)
class Bent(Node):
    """A growing function of every value by itself.

    Attributes:
        function: What it computes.
        lines: Lines below and above it on intervals.
        rounding: Absolute error of its float32 values.
        kink: It bends at 0 alone (a rectifier), so that bounds matter only of values that can have either sign.
        drawn: The bounds of the input that lines were drawn for last, and these.
    """

    function: Callable[[Tensor], Tensor]
    lines: Callable[[Tensor, Tensor], Lines]
    rounding: float = 0.0
    kink: bool = True
    drawn: tuple[Interval, Lines] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.bent = True

    def interval(self, *inputs: Interval) -> Interval:
        """The function of the ends."""
        (x,) = inputs
        return Interval(self.function(x.low) - self.rounding, self.function(x.high) + self.rounding)

    def pull(self, slopes: Tensor, inputs: tuple[Interval, ...], error: Tensor | None) -> Pulled:
        """By the line below where a coefficient is positive, above where it is negative."""
        if self.drawn is None or self.drawn[0] is not inputs[0]:  # the lines of a tangent take a bisection
            self.drawn = inputs[0], self.lines(inputs[0].low, inputs[0].high)
        lines = self.drawn[1]
        positive, negative = slopes.clamp_min(0), slopes.clamp_max(0)
        part = positive * lines.below_slope.unsqueeze(1) + negative * lines.above_slope.unsqueeze(1)
        constant = product(positive.flatten(2), (lines.below - self.rounding).flatten(1))
        constant = constant + product(negative.flatten(2), (lines.above + self.rounding).flatten(1))
        return Pulled([part], constant)


@dataclass(eq=False)
class Largest(Node):
    """The maximum of some inputs for every output: pooling, maxout.

    Attributes:
        members: Which inputs (positions in the flattened input) each output looks at, int64 (outputs, k); -1: none.
        ragged: Whether some are none.
    """

    members: Tensor
    ragged: bool = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.bent, self.ragged = True, bool((self.members < 0).any())

    def gathered(self, values: Tensor) -> Tensor:
        """(N, *input shape) to (N, outputs, k), minus infinity where there is none."""
        found = values.flatten(1).index_select(1, self.members.clamp_min(0).flatten())
        found = found.view(len(values), *self.members.shape)
        return found.masked_fill_(self.members < 0, -math.inf) if self.ragged else found

    def interval(self, *inputs: Interval) -> Interval:
        """Maxima of the ends."""
        low, high = (self.gathered(end).amax(2).view(-1, *self.shape) for end in inputs[0][:2])
        return Interval(low, high)

    def contenders(self, x: Interval, rectified: bool) -> Tensor:
        """Which inputs can be the largest somewhere where others can be too, bool (N, inputs).

        If the maximum is ``rectified``, also alone if they can have either sign, and none that is never positive.
        """
        low, high = self.gathered(x.low), self.gathered(x.high)
        least = low.amax(2, keepdim=True)
        can = high > least
        several = can.sum(2, keepdim=True) > 1
        can &= (several | (least < 0)) & (high > 0) if rectified else several
        found = can.new_zeros(len(can), x.low[0].numel() + 1, dtype=torch.int64)
        places = torch.where(self.members < 0, found.shape[1] - 1, self.members)
        found.scatter_add_(1, places.flatten().expand(len(can), -1), can.flatten(1).long())
        return found[:, :-1] > 0

    def pull(self, slopes: Tensor, inputs: tuple[Interval, ...], error: Tensor | None) -> Pulled:
        """Lines: below, the input whose interval lies highest; above, a chord.

        That of ``max(z, t)`` on the interval of z, for the input z that reaches highest and the highest end t of all
        others.
        """
        (x,) = inputs
        low, high = self.gathered(x.low), self.gathered(x.high)
        ends = torch.where(self.members < 0, -math.inf, low + high)
        below = self._place(ends.argmax(2))
        top = F.pad(high, (0, 1), value=-math.inf).topk(2, dim=2)
        reach, others = top.values.unbind(2)
        place = top.indices[:, :, 0]
        start = low.gather(2, place.unsqueeze(2)).squeeze(2)
        alone = start >= others
        slope = torch.where(alone, 1.0, (reach - others) / torch.where(alone, 1.0, reach - start))
        shift = torch.where(alone, 0.0, others - slope * start)
        positive, negative = slopes.flatten(2).clamp_min(0), slopes.flatten(2).clamp_max(0)
        n, k = len(start), slopes.shape[1]
        part = slopes.new_zeros(n, k, x.low[0].numel())
        part.scatter_add_(2, below.unsqueeze(1).expand(n, k, -1), positive.expand(n, -1, -1))
        above = self._place(place).unsqueeze(1).expand(n, k, -1)
        part.scatter_add_(2, above, negative * slope.unsqueeze(1))
        return Pulled([part.view(n, k, *self.parents[0].shape)], product(negative, shift))

    def _place(self, member: Tensor) -> Tensor:
        """Positions in the flattened input of each output's chosen member, (N, outputs)."""
        return self.members.expand(len(member), -1, -1).gather(2, member.unsqueeze(2)).squeeze(2)


def dense(parent: Node, weight: Tensor, bias: Tensor | None, rounding: Callable[[int], float]) -> Affine:
    """A matrix of weights (out, in) on vectors."""
    weight = weight.double()
    size = weight.abs()
    added = 0.0 if bias is None else bias.double()
    return Affine(
        (parent,),
        (len(weight),),
        lambda x: x @ weight.T,
        lambda x: x @ size.T,
        lambda slopes: slopes @ weight,
        added,
        added.abs() if isinstance(added, Tensor) else 0.0,
        rounding(weight.shape[1] + 1),
        written=lambda: weight,
    )


def moved(parent: Node, shape: Shape, source: Tensor, fill: float = 0.0) -> Affine:
    """Values in other places: ``source`` says which input each output is, int64 (outputs,); -1: it is ``fill``."""
    count = math.prod(parent.shape)
    if torch.equal(source, torch.arange(count, device=source.device)):
        return Affine(
            (parent,),
            shape,
            lambda x: x.reshape(-1, *shape),
            lambda x: x.reshape(-1, *shape),
            lambda slopes: slopes.reshape(-1, *parent.shape),
            mixes=False,
        )

    def forward(x: Tensor) -> Tensor:
        return F.pad(x.flatten(1), (0, 1))[:, source].view(-1, *shape)

    def backward(slopes: Tensor) -> Tensor:
        flat = slopes.new_zeros(len(slopes), count + 1)
        flat.index_add_(1, source % (count + 1), slopes.flatten(1))
        return flat[:, :-1]

    filled = torch.where(source < 0, fill, 0.0).double().view(shape) if fill else 0.0
    return Affine((parent,), shape, forward, forward, backward, filled, mixes=False)


def scaled(
    parent: Node, scale: Tensor | float, shift: Tensor | float, shift_size: Tensor | float, relative: float
) -> Affine:
    """``scale * x + shift``, value by value; both broadcast over (N, *shape)."""
    size = scale.abs() if isinstance(scale, Tensor) else abs(scale)
    return Affine(
        (parent,),
        parent.shape,
        lambda x: x * scale,
        lambda x: x * size,
        lambda slopes: slopes * scale,
        shift,
        shift_size,
        relative,
        mixes=False,
    )


def averaged(parent: Node, shape: Shape, function: Callable[[Tensor], Tensor], relative: float) -> Affine:
    """Any linear function of weights that are not negative, differentiated for its transpose."""

    def backward(slopes: Tensor) -> Tensor:
        with torch.enable_grad():
            x = slopes.new_zeros(len(slopes), *parent.shape, requires_grad=True)
            (out,) = torch.autograd.grad(function(x), x, slopes.reshape(-1, *shape))
        return out

    return Affine((parent,), shape, function, function, backward, relative=relative)


def convolution(
    parent: Node,
    shape: Shape,
    weight: Tensor,
    bias: Tensor | None,
    settings: tuple[list[int], list[int], list[int], int],
    rounding: Callable[[int], float],
) -> Affine:
    """A convolution in two dimensions; ``settings``: stride, padding, dilation, groups."""
    weight = weight.double()
    size = weight.abs()
    added = 0.0 if bias is None else bias.double().view(-1, 1, 1)
    inputs, outputs = math.prod(parent.shape), math.prod(shape)

    @cache  # intervals alone never need it, and it costs as much as some thousand images
    def written() -> Tensor:
        pixels = torch.eye(inputs, dtype=torch.float64, device=weight.device).view(-1, *parent.shape)
        made: Tensor = F.conv2d(pixels, weight, None, *settings).flatten(1).T.contiguous()
        return made

    def backward(slopes: Tensor) -> Tensor:
        if inputs * outputs <= _SMALL:
            return slopes.flatten(1) @ written()
        made: Tensor = conv2d_input((len(slopes), *parent.shape), weight, slopes, *settings)  # type: ignore[no-untyped-call]
        return made

    return Affine(
        (parent,),
        shape,
        lambda x: F.conv2d(x, weight, None, *settings),
        lambda x: F.conv2d(x, size, None, *settings),
        backward,
        added,
        added.abs() if isinstance(added, Tensor) else 0.0,
        rounding(weight[0].numel() + 1),
        written=written if inputs * outputs <= _WRITTEN else None,
    )
