"""Adversarials of networks that are trained on the victim's own answers: no gradient of the victim is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Final

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..models.registry import Thumbnail, build_model
from ..threat import Norm, Threat, per_sample
from ..training.optim import descend
from ..victims.victim import Victim
from .apgd import APGD
from .base import Access, Attack
from .line_search import CHUNK, is_fooled
from .losses import objective
from .per_image_rng import Draws
from .square import stretch

FIRST: Final = 20
"""Questions about each image before the first network is trained: the image, eight points of its ball, five up to six
times as far away, six between it and another image. Where labels are all that a model gives, whole balls have one."""

ASKED: Final = 3
"""Questions about what the attack on a network found: that point, and two beside it."""

NETWORKS: Final = ("mlp-200-200", "convnet-gu")
"""A dense and a convolutional network, on images averaged down to 32 pixels a side: any size costs the same."""

AGAIN: Final = 4
"""A network that was trained before takes a quarter of the updates."""

ROOM: Final = 1 << 26
"""Numbers in the images that answers are kept of: the oldest are forgotten first."""


@dataclass(frozen=True, kw_only=True)
class Distilled(Attack):
    """Train small networks on what the victim answers around the images, attack these, ask again, train on.

    Source: Papernot et al. 2017, "Practical black-box attacks against machine learning", section 4: a substitute that
    is trained on the victim's labels, first of a few images, then of those that its own gradients lead to. Images that
    mislead it mostly mislead the victim.

    Where this departs from the paper:

    * The networks learn logits, by least squares (Ba & Caruana 2014, "Do deep nets really need to be deep?"), from the
      very images that are attacked and from points of their balls: they need be like the victim nowhere else.
    * What the victim answers on the adversarials of a network trains the next one (Yang et al. 2020, "Learning
      black-box attackers with transferable priors and query feedback", call it feedback), where the paper takes one
      step along the Jacobian for each image.
    * There are two networks, a dense and a convolutional one, that learn from each other's questions: nobody knows
      which is more like the victim. Of 59 MNIST images (linf 0.1) that a LeNet gets right, the dense one alone left
      55, the convolutional one and both 51, with 90 questions an image; gradients of the LeNet itself leave 48. Of 96
      digits (linf 0.1) that a dense network gets right, both left 41 and 42, and its gradients 40.

    After the first questions an image that is clearly fooled is asked about no more; not so on a stochastic victim (a
    remedy of several draws). Images never fooled come back at the largest margin seen. Random points belong to the
    image; the networks belong to the batch, so that another batch, or a cascade that shows less of it, has others.

    Attributes:
        queries: Forward passes per image at most, the first :data:`FIRST` of them before any training.
        steps: Gradient steps of an attack on a network (:class:`.apgd.APGD` on the margin).
        updates: Batches that train a network before the first attack on it; a quarter of them before later ones.
        batch_size: Answers in one of them.
        lr: Adam's rate.

    Raises:
        UserError: A field out of range.
    """

    name: ClassVar[str] = "distilled"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    access: ClassVar[Access] = "scores"

    queries: int = 100
    steps: int = 20
    updates: int = 100
    batch_size: int = 128
    lr: float = 3e-3

    def __post_init__(self) -> None:
        if self.queries < FIRST + ASKED:
            raise UserError(f"queries must be >= {FIRST + ASKED}, got {self.queries}")
        if min(self.steps, self.updates, self.batch_size) < 1 or not 0 < self.lr < math.inf:
            raise UserError("steps, updates and batch_size must be >= 1, and lr positive and finite")

    @torch.no_grad()
    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Propose one image for each, within eps and the box."""
        if not len(x):
            return x
        known, draws = Answers(victim, x, y, threat), Draws(x)
        known.look_around(draws)
        small = min(known.thumbnail.shape[1:]) < 4  # of which two poolings leave nothing
        networks = [Surrogate(name, known, self.lr) for name in NETWORKS[: 1 if small else 2]]
        for turn in range((self.queries - FIRST) // ASKED):
            rows = known.standing()
            if not len(rows):
                break
            network = networks[turn % len(networks)]
            network.learn(known, self.updates if turn < len(networks) else -(-self.updates // AGAIN), self.batch_size)
            found = network.attacked(APGD(loss="margin", steps=self.steps), x[rows], y[rows], threat)
            known.ask(found, rows)
            for beside in range(1, ASKED):
                jitter = draws.fork(FIRST + ASKED * turn + beside).of(rows).uniform(*x.shape[1:]) * 2 - 1
                near = stretch(found, jitter, threat.norm, x.new_full((len(rows),), known.eps / 2))
                known.ask(threat.project(x[rows], near), rows)
        return known.best


@dataclass
class Answers:
    """What the victim said of images (N, C, H, W), labels (N,) and points around them.

    Attributes:
        best: The point of each ball with the largest margin, a fooled one where there is one.
        points: Batches of points that were asked about, as the networks see them.
        logits: The answers, (M, K) each.
    """

    victim: Victim
    x: Tensor
    y: Tensor
    threat: Threat
    points: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert self.threat.eps is not None
        self.eps, self.best = self.threat.eps, self.x.clone()
        self.margin = self.x.new_full((len(self.x),), -math.inf)
        _, channels, height, width = self.x.shape
        self.thumbnail = Thumbnail((channels, height, width))

    def standing(self) -> Tensor:
        """Positions of images of which no point was clearly misclassified; on a model that draws of all."""
        return (self.margin < math.inf).nonzero().squeeze(1)

    def look_around(self, draws: Draws) -> None:
        """Ask about the images, points of their balls, points farther off, and points between images."""
        shape, everyone = self.x.shape[1:], torch.arange(len(self.x), device=self.x.device)
        self.ask(self.x, everyone)
        for turn in range(FIRST - 1):
            own = draws.fork(turn)
            if turn < 13:
                way = own.signs(*shape) if turn % 2 else 2 * own.uniform(*shape) - 1
                away = 1 if turn < 8 else 2 * (1 + turn % 3)
                point = stretch(self.x, way, self.threat.norm, self.x.new_full((len(self.x),), away * self.eps))
            else:
                point = torch.lerp(self.x, self.x.roll(turn, 0), per_sample(own.uniform(), self.x))
            self.ask(point, everyone)

    def ask(self, points: Tensor, rows: Tensor) -> None:
        """Ask about one point for each of some images, at positions (M,)."""
        parts = zip(self.victim.of(rows).split(points, CHUNK), points.split(CHUNK), strict=True)  # type: ignore[no-untyped-call]
        logits = torch.cat([view(part) for view, part in parts]).float()
        margin, y = objective("margin", logits, self.y[rows]).nan_to_num(-math.inf), self.y[rows]
        if not self.victim.remedy.stochastic:
            margin = torch.where(is_fooled(logits, y), math.inf, margin)
        better = (margin > self.margin[rows]) & self.threat.within(self.x[rows], points)
        self.best[rows[better]], self.margin[rows[better]] = points[better], margin[better]
        finite = logits.isfinite().all(1)
        self.points.append(self.thumbnail(points[finite]))
        self.logits.append(logits[finite] - logits[finite].mean(1, keepdim=True))
        while len(self.points) > 2 and sum(map(Tensor.numel, self.points)) > ROOM:
            del self.points[0], self.logits[0]


class Surrogate:
    """A network that learns what a victim answers."""

    def __init__(self, architecture: str, known: Answers, lr: float) -> None:
        logits = torch.cat(known.logits)
        self.scale = logits.std().clamp_min(1e-12)
        self.network = build_model(architecture, known.thumbnail.shape, logits.shape[1]).to(logits.device)
        self.model = nn.Sequential(known.thumbnail, self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=lr)

    def learn(self, known: Answers, updates: int, batch_size: int) -> None:
        """Fit the victim's logits, up to their mean and scale, on batches drawn from all answers."""
        points, logits = torch.cat(known.points), torch.cat(known.logits) / self.scale
        self.network.train().requires_grad_(True)
        with torch.enable_grad():
            for _ in range(updates):
                rows = torch.randint(len(points), (batch_size,)).to(points.device)
                said = self.network(points[rows])
                descend(self.optimizer, (said - said.mean(1, keepdim=True) - logits[rows]).square().mean())

    def attacked(self, attack: Attack, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Where an attack on the network leads: as far as it can, for what just fools it may not fool the victim."""
        return attack(Victim(self.model, own=True, device=x.device).insatiable(), x, y, threat)
