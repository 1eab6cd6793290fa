"""Sound lower bounds of a network's margins: intervals, and lines pulled backward through it.

Intervals: Gowal et al. 2018 (arXiv:1810.12715), section 3. Lines: Zhang et al. 2018 (arXiv:1811.00866), theorem 3.2
(CROWN), backward, with the adaptive slope of its section 3.3. Both for the values that float32 computes
(:mod:`.nodes`), at the radius that the referee grants (:class:`.balls.Ball`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..threat import Threat, per_sample
from .balls import Ball, product
from .calls import Trace, Uncovered
from .layers import recorded
from .nodes import LARGEST, Affine, Bent, Image, Interval, Largest, Node
from .operators import Builder
from .trace import trace

_WORK: Final = {"cpu": 2**22}
"""Coefficients that are kept of one node at once, by device."""

_WORK_ELSEWHERE: Final = 2**26

_ROWS: Final = 32
"""Bounds that are pulled back together for each image, so that lines are not made anew for each."""

_NARROW: Final = 1e-6
"""An interval of a smooth function that is narrower has nothing to gain."""

_BATCH: Final = 128
"""Images that the model is asked about at once, when it is compared."""


@dataclass(frozen=True)
class Certificate:
    """What is proved of each image, at one eps.

    Attributes:
        certified: No image that the referee grants can be misclassified; bool (N,).
        margins: Lower bound of the smallest margin over those images, the label's logit minus any other's, of
            the logits that float32 computes (before a softmax, if the model ends in one); float64 (N,).
        uncovered: The operator or the reason for which there is no bound, else "". Then nothing is certified and every
            margin is NaN.
    """

    certified: Tensor
    margins: Tensor
    uncovered: str = ""


def certify(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Certificate:
    """Prove what can be proved.

    Args:
        model: Frozen and in eval mode, as the referee calls it; logits (N, K).
        x: Images, float32 (N, C, H, W), on the model's device.
        y: Labels, int64 (N,).
        threat: In L-infinity, L2 or L1, with an eps.

    Raises:
        UserError: A norm without bounds, or no eps. A model that is not covered raises nothing; the result says so.
    """
    Ball.of(threat, x[:1])
    try:
        return prepare(model, x).bounds(x, y, threat)
    except Uncovered as error:
        return _nothing(x, str(error))


def prepare(model: nn.Module, x: Tensor) -> Network:
    """Take a model apart once, for bounds at several eps; see :func:`certify` for the arguments.

    Raises:
        Uncovered: There is no bound for it; the message is what :attr:`Certificate.uncovered` would be.
    """
    if x.dtype != torch.float32 or x.dim() < 2 or not len(x):
        raise Uncovered(f"images are {x.dtype} of shape {tuple(x.shape)}, expected float32 (N, C, H, W)")
    return Network(model, x)


@torch.no_grad()
def taken_apart(model: nn.Module, x: Tensor, way: Callable[[nn.Module, Tensor], Trace]) -> Builder:
    """The nodes of a model, by one way to find its operators."""
    exact = x.device.type == "cpu"
    return Builder(way(model, x), x, _unit(exact), 1.0 if exact else 16.0)


@dataclass(eq=False)
class Network:
    """A model taken apart, as it was then.

    Raises:
        Uncovered: See :func:`prepare`.
    """

    model: nn.Module
    example: Tensor
    nodes: list[Node] = field(init=False)

    def __post_init__(self) -> None:
        try:
            built = taken_apart(self.model, self.example, recorded)
        except Uncovered:
            built = taken_apart(self.model, self.example, trace)
        self.output, self.tail = built.output, built.tail
        self.nodes = _needed(built.made, self.output)
        self.watched = _watched(self.nodes)
        self.unit = built.unit

    @torch.no_grad()
    def bounds(self, x: Tensor, y: Tensor, threat: Threat, *, lines: bool = True, again: bool = False) -> Certificate:
        """Bounds at one eps; without ``lines`` from intervals alone.

        Args:
            x: Images.
            y: Their labels.
            threat: The ball.
            lines: Whether bounds of intervals are narrowed by linear ones.
            again: Whether the model was asked about these images before, for another eps: then only about their ball.

        Raises:
            UserError: As :func:`certify`.
        """
        ball = Ball.of(threat, x)
        if wrong := self._disagrees(x, threat, again=again):
            return _nothing(x, wrong)
        margins = self._all_margins(ball, y, lines)
        return Certificate(margins > 0, margins)

    @torch.no_grad()
    def hopeful(self, x: Tensor, y: Tensor, threat: Threat) -> bool:
        """Whether intervals would prove any of the images, were the nodes what the model computes: not asked here."""
        return bool((self._all_margins(Ball.of(threat, x), y, lines=False) > 0).any())

    @torch.no_grad()
    def values(self, x: Tensor, threat: Threat) -> dict[Node, Interval]:
        """Bounds of every node's values, for a few images."""
        return self._intervals(Ball.of(threat, x), lines=True)

    def _all_margins(self, ball: Ball, y: Tensor, lines: bool) -> Tensor:
        """The least margin of each image, (N,), a few at a time; of images outside [0, 1] minus infinity."""
        step = max(1, _work(y.device) // (_ROWS * self._widest))
        parts = []
        for start in range(0, len(y), step):
            part = Ball(ball.x[start : start + step], ball.norm, ball.radius)
            parts.append(self._margins(part, y[start : start + step], lines))
        margins = torch.cat(parts) if parts else ball.x.new_zeros(0)
        inside = ((ball.x >= 0) & (ball.x <= 1)).all(1)
        return torch.where(inside, margins, -math.inf)

    def _margins(self, ball: Ball, y: Tensor, lines: bool) -> Tensor:
        """The least margin of each image, (N,)."""
        known = self._intervals(ball, lines)
        classes = self.output.shape[0]
        rivals = torch.arange(classes - 1, device=y.device).expand(len(y), -1)
        rivals = rivals + (rivals >= y.unsqueeze(1))
        found = []
        step = max(1, _work(y.device) // (len(y) * self._widest))
        for part in rivals.split(step, 1):  # type: ignore[no-untyped-call]
            spec = (F.one_hot(y, classes).unsqueeze(1) - F.one_hot(part, classes)).double()
            found.append(self._least(self.output, spec, known, ball, lines=lines, last=True))
        least = torch.cat(found, 1).amin(1) - self._lost(known)
        size = torch.stack([interval.size.flatten(1).amax(1) for interval in known.values()]).amax(0)
        sane = (size < LARGEST) & least.isfinite()  # NaN is not
        return torch.where(sane, least, -math.inf)

    @property
    def _widest(self) -> int:
        return max(math.prod(node.shape) for node in self.nodes)

    def _lost(self, known: dict[Node, Interval]) -> Tensor:
        """What a margin has to exceed for the label to win in float32, (N,)."""
        size = known[self.output].size.amax(1)
        lost = 1e-12 * (1 + size)
        if self.tail:  # exponentials and their sum are rounded: closer logits could come out equal
            lost = lost + 2.0**-18 + 32 * self.unit * (size + math.log(self.output.shape[0]))
        return lost

    def _intervals(self, ball: Ball, lines: bool) -> dict[Node, Interval]:
        """Bounds of every node's values."""
        known: dict[Node, Interval] = {}
        for node in self.nodes:
            if isinstance(node, Image):
                known[node] = Interval(ball.low.view(-1, *node.shape), ball.high.view(-1, *node.shape))
                continue
            known[node] = node.interval(*(known[parent] for parent in node.parents))
            exact = ball.norm == "linf" and not node.bent and node.mixed <= 1
            if lines and not exact and not isinstance(node, Largest) and (consumers := self.watched.get(node)):
                self._narrow(node, consumers, known, ball)
        return known

    def _narrow(self, node: Node, consumers: list[Node], known: dict[Node, Interval], ball: Ball) -> None:
        """Replace a node's bounds by those of lines, where these are better and somebody profits."""
        low, high, error = known[node]
        low, high = low.flatten(1), high.flatten(1)
        wanted = torch.zeros_like(low, dtype=torch.bool)
        for consumer in consumers:
            if isinstance(consumer, Largest):
                rectified = any(isinstance(after, Bent) and after.kink for after in self.watched.get(consumer, []))
                wanted |= consumer.contenders(known[node], rectified)
            elif isinstance(consumer, Bent) and consumer.kink:
                wanted |= (low < 0) & (high > 0)
            else:
                wanted |= high - low > _NARROW
        if not wanted.any():
            return
        if node.bent:
            count = int(wanted.sum(1).amax())
            columns = wanted.float().topk(count, dim=1).indices
        else:  # one matrix serves every image
            columns = wanted.any(0).nonzero().flatten().unsqueeze(0)
        n = len(low)
        images = len(columns) if ball.norm == "linf" else n  # in other norms the last step is another for each
        step = max(1, _work(low.device) // (2 * images * self._widest))
        for part in columns.split(step, 1):  # type: ignore[no-untyped-call]
            if isinstance(node, Affine) and node.written is not None:
                (spec,), constant = node.rows(part, error)
                (start,) = node.parents
            else:
                spec = low.new_zeros(len(part), part.shape[1], low.shape[1]).scatter_(2, part.unsqueeze(2), 1.0)
                spec = torch.cat([spec, -spec], 1).view(len(part), -1, *node.shape)
                start, constant = node, 0.0
            below, above = (self._least(start, spec, known, ball) + constant).chunk(2, 1)
            rows = part.expand(n, -1)
            low = low.scatter(1, rows, torch.maximum(low.gather(1, rows), below))
            high = high.scatter(1, rows, torch.minimum(high.gather(1, rows), -above))
        high = torch.maximum(low, high)  # they may have crossed in the last digit
        shape = (n, *node.shape)
        known[node] = Interval(low.view(shape), high.view(shape), error)

    def _least(
        self,
        target: Node,
        spec: Tensor,
        known: dict[Node, Interval],
        ball: Ball,
        *,
        lines: bool = True,
        last: bool = False,
    ) -> Tensor:
        """Lower bounds of ``spec @ target``, (N, K), of coefficients (N or 1, K, *shape).

        Pulled back to the image; for the ``last`` ones, those of intervals at every stage on the way count too.
        """
        slopes: dict[Node, Tensor] = {target: spec}
        constant = ball.x.new_zeros(len(ball.x), spec.shape[1])
        best = torch.full_like(constant, -math.inf)
        for node in reversed(self.nodes[: self.nodes.index(target) + 1]):
            if last:
                stage = constant
                for reached, waiting in slopes.items():
                    stage = stage + _by_interval(waiting, known[reached])
                best = torch.maximum(best, stage)
            if node not in slopes:
                continue
            mine = slopes.pop(node)
            if isinstance(node, Image):
                return torch.maximum(best, constant + ball.least(mine.flatten(2)))
            if not lines and not isinstance(node, Affine):
                return best
            inputs = tuple(known[parent] for parent in node.parents)
            parts, added = node.pull(mine, inputs, known[node].error)
            constant = constant + added
            for parent, part in zip(node.parents, parts, strict=True):
                slopes[parent] = slopes[parent] + part if parent in slopes else part
        return torch.maximum(best, constant)  # the image has no part in it

    def _disagrees(self, x: Tensor, threat: Threat, *, again: bool = False) -> str:
        """Whether the model's logits are not those of the nodes, up to rounding, in any of several ways to ask.

        Asked about the images, in one batch and alone, in another order, with gradients, about them as they are rounded
        to black and white, and about two points of the ball of each (in L2 and one on its edge); ``again``, about one
        of these two, the corner for every other image.
        """
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(x.shape, generator=generator).to(x) * 2 - 1
        eps = threat.eps or 0.0
        corner, inside = threat.project(x, x + eps * noise.sign()), threat.project(x, x + eps * noise)
        every_other = per_sample(torch.arange(len(x), device=x.device) % 2 == 0, x)
        points = [torch.where(every_other, corner, inside)] if again and len(x) > 1 else [corner, inside]
        if threat.norm == "l2":
            points.append(threat.project(x, x + 1e6 * noise))
        points += [] if again else [x, x.round()]
        for z in points:
            for part in z.clamp(0, 1).split(_BATCH):  # type: ignore[no-untyped-call]
                low, high = self._enclosure(part)
                if not bool((high - low).isfinite().all()):
                    return "its values may be too large for float32"
                ways = {"": self.model(part.clone())}
                if z is x:
                    ways[" for a single image"] = torch.cat([self.model(part[:1].clone()), ways[""][1:]])
                    ways[" in another order"] = self.model(part.flip(0)).flip(0)
                    with torch.enable_grad():
                        ways[" with gradients"] = self.model(part.clone().requires_grad_()).detach()
                for way, out in ways.items():
                    if not isinstance(out, Tensor) or out.shape != low.shape:
                        return "it does not return logits (N, K)"
                    beyond = torch.maximum(low - out, out - high)
                    if not bool((beyond <= 0).all()):
                        return (
                            f"what was traced is not what it computes{way}: {float(beyond.amax()):.2g} beyond rounding"
                        )
        return ""

    def _enclosure(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What float32 may return for images, (N, K) each, after a softmax if there is one."""
        known = self._intervals(Ball(x.double().flatten(1), "linf", 0.0), False)
        low, high, _ = known[self.output]
        if not self.tail:
            return low, high
        ends: Any = F.softmax if self.tail == "softmax" else F.log_softmax
        middle = ends((low + high) / 2, 1)
        slack = 2 * (high - low).amax(1, keepdim=True) + 1e-5 * (1 + middle.abs())
        return middle - slack, middle + slack


def _by_interval(slopes: Tensor, values: Interval) -> Tensor:
    """A lower bound of ``slopes @ values``, (N, K)."""
    flat, low, high = slopes.flatten(2), values.low.flatten(1), values.high.flatten(1)
    return product(flat, (low + high) / 2) - product(flat.abs(), (high - low) / 2)


def _needed(made: list[Node], output: Node) -> list[Node]:
    """The nodes that the output depends on, in order."""
    needed = {output}
    for node in reversed(made):
        if node in needed:
            needed |= set(node.parents)
    return [node for node in made if node in needed]


def _watched(made: list[Node]) -> dict[Node, list[Node]]:
    """Nodes whose bounds others make lines of, with those others."""
    watched: dict[Node, list[Node]] = defaultdict(list)
    for node in made:
        if isinstance(node, Bent | Largest):
            watched[node.parents[0]].append(node)
    return dict(watched)


def _unit(exact: bool) -> float:
    """Relative rounding of a float32 operation as torch is set up on this device: bfloat16's unless it is told not to.

    A CPU rounds operands only if asked to; other devices may do so by default.
    """
    backends: Any = torch.backends
    if exact:
        places = [backends, backends.mkldnn.matmul, backends.mkldnn.conv]
        full = all(place.fp32_precision in ("none", "ieee") for place in places)
    else:
        places = [backends.cuda.matmul, backends.cudnn.conv]
        full = all(place.fp32_precision == "ieee" for place in places)
    return 2.0**-24 if full else 2.0**-8


def _work(device: torch.device) -> int:
    return _WORK.get(device.type, _WORK_ELSEWHERE)


def _nothing(x: Tensor, reason: str) -> Certificate:
    return Certificate(
        torch.zeros(len(x), dtype=torch.bool, device=x.device),
        torch.full((len(x),), math.nan, dtype=torch.float64, device=x.device),
        reason,
    )
