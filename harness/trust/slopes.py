"""Autograd against central differences: do the gradients that attacks follow belong to the function that is judged?

A gradient that exists, leads uphill often enough and is wrong all the same raises no other question: a branch cut from
the graph, a straight-through part of another scale, a backward pass written by hand. So what autograd says along a
direction is compared with what the outputs do along it (Carlini et al. 2019, section 4.7 on verifying that gradients
are right; Nocedal and Wright 2006, *Numerical optimization*, section 8.1 on the steps), around the images and
around the decision boundary, where attacks spend their steps.

Honest networks have kinks. Points are moved off those that images lie on (a black background ties whole windows of a
max-pooling), steps are so short in float64 that hardly any is crossed, and the median over directions decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from .. import determinism, identity
from ..attacks.apgd import APGD
from ..schema.probes import Slopes
from ..threat import EXPONENT, Threat, magnitude, per_sample, steepest
from ..victims.duplicates import duplicate
from ..victims.victim import Victim, to_be_answered

RANDOM: Final = 3
"""Random directions, beside the steepest and the one towards an adversarial image."""

FINE: Final[dict[torch.dtype, tuple[float, ...]]] = {
    torch.float64: (1e-5, 1e-4),
    torch.float32: (3e-3, 1e-2, 3e-2, 1e-1),
}
"""Steps in units of eps. Of neighbours those that agree best are taken, and their difference is the uncertainty."""

COARSE: Final = (0.05, 0.2)
"""Steps in units of eps, as attacks take them. Over the first a gradient has to say roughly what happens; where parts
round, as to 8 bits, it does so over the second."""

HALVINGS: Final = 10
"""Of the way from an image to a misclassified one: then the boundary is nearer than a thousandth of it."""

ASIDE: Final = 0.005
"""Share of the way to a random image that points are moved off the kinks that they lie on."""

SAME: Final = 1e-4
"""Relative difference of logits up to which a float64 copy is the same function."""

FLAT: Final = 1e-6
"""Change of a logit over eps, relative to the largest, below which there is no slope to compare."""

UNSURE: Final = 0.25
"""Uncertainty of a difference, relative to it, beyond which it says nothing."""

WRONG: Final = 0.25
"""Relative error beyond which a gradient is not that of the outputs, if it has it at every step: a straight-through
part has it at the fine one alone, and is right over longer ones. Sound: 1e-6 in float64, 0.02 in float32."""

RUGGED: Final = 0.75
"""Relative error at the first coarse step beyond which a gradient says nothing. Sound: 0.1 to 0.5; a gradient of
something else: 1."""


class _Place(NamedTuple):
    """Points (N, ...) with their logits (N, K), weightings of these (2, N, K) and the gradients they give (2, N, ...).

    ``ways`` are the directions that are compared along, ``floor`` (N,) the slope below which there is none.
    """

    x: Tensor
    logits: Tensor
    weights: Tensor
    slopes: Tensor
    ways: list[Tensor]
    floor: Tensor


@dataclass(frozen=True)
class SlopeComparison:
    """Autograd and differences of one model around some images.

    Attributes:
        victim: The model as attacks see it.
        x: Images (N, C, H, W) that it gets right.
        y: Their labels (N,).
    """

    victim: Victim
    x: Tensor
    y: Tensor
    threat: Threat
    seed: int = 0

    def facts(self) -> Slopes:
        """Errors of the gradient relative to the differences, at moved images and near the boundary."""
        near, known = self.near_boundary()
        places = {"clean": (self.x, torch.ones_like(known)), "boundary": (near, known)}
        error, wrong, coarse, double = {}, {}, {}, True
        for place, (x, there) in places.items():
            if not there.any():
                continue
            fine, rough, exact = self.errors(self._aside(x))
            double &= exact
            coarse[place] = _share((rough[0] > RUGGED) & there)
            if fine is not None:
                error[place] = float(fine[there].median())
                wrong[place] = _share((fine > WRONG) & (rough > WRONG).all(0) & there)
        return Slopes(n=len(self.x), float64=double, error=error, wrong=wrong, coarse=coarse)

    def near_boundary(self) -> tuple[Tensor, Tensor]:
        """Points (N, ...) next to the decision boundary, and for which images there are any, bool (N,).

        By bisection of the way to an adversarial image, or, where a short attack finds none, to the next image of
        another class: that one asks nothing of the gradients.
        """
        with determinism.isolated(identity.derive_seed(self.seed, "boundary"), self.victim.device):
            end = self.threat.project(self.x, APGD(loss="ce", steps=10)(self.victim, self.x, self.y, self.threat))
        rows, n = torch.arange(len(self.y), device=self.y.device), len(self.y)
        behind = torch.where(self.y[:, None] != self.y, (rows - rows[:, None]) % n, n)
        end = torch.where(per_sample(self._misses(end), end), end, self.x[behind.argmin(1)])
        known, start = self._misses(end), self.x
        for _ in range(HALVINGS):
            middle = (start + end) / 2
            beyond = per_sample(self._misses(middle), middle)
            start, end = torch.where(beyond, start, middle), torch.where(beyond, middle, end)
        return start, known

    def wrong(self) -> Tensor:
        """Which images' gradients are not those of the outputs, or say nothing of a step of an attack, bool (N,).

        At the images alone. Differences over fine steps are taken only where most images' gradients disagree with both
        coarse ones: those of an honest model cost :data:`COARSE` alone.
        """
        place = self._place(self._aside(self.x))
        rough = self._rough(place)
        apart = (rough > WRONG).all(0)
        if not len(apart) or _share(apart) <= 0.5:
            return torch.zeros_like(apart)
        fine, _ = self._fine(place)
        rugged = rough[0] > RUGGED
        return rugged if fine is None else rugged | (apart & (fine > WRONG))

    def errors(self, x: Tensor) -> tuple[Tensor | None, Tensor, bool]:
        """Relative errors of the gradient at points, at a fine step (N,) and at :data:`COARSE` (2, N); if in float64.

        The difference of the two largest logits counts, and a random weighting of all; the worse of the two. None where
        differences settle at no step: the outputs do not repeat, or jump everywhere.
        """
        place = self._place(x)
        rough = self._rough(place)
        fine, exact = self._fine(place)
        return fine, rough, exact

    def _place(self, x: Tensor) -> _Place:
        logits, weights, slopes = self._slopes(x)
        return _Place(x, logits, weights, slopes, list(self._directions(x, slopes[0])), FLAT * logits.abs().amax(1))

    def _rough(self, place: _Place) -> Tensor:
        """Errors over steps as attacks take them, (2, N)."""
        found = []
        for step in COARSE:
            residual, size = self._residuals(self.victim, place, step)
            error = torch.where(size <= place.floor, 0, residual.abs() / size.clamp_min(1e-300))
            found.append(error.median(0).values.amax(0))
        return torch.stack(found)

    def _fine(self, place: _Place) -> tuple[Tensor | None, bool]:
        """Errors over steps so short that differences settle, (N,), None if they do at none; if in float64."""
        for model in self._models(place.x, place.logits):
            found = [self._residuals(model, place, step) for step in FINE[model.precision]]
            left, sizes = (torch.stack(values) for values in zip(*found, strict=True))  # (steps, ways, weightings, N)
            doubt, at = (left[1:] - left[:-1]).abs().min(0)
            best, scale = (values.gather(0, at[None])[0] for values in (left, sizes))
            flat = scale <= place.floor
            if ((doubt > UNSURE * scale) & ~flat).double().mean() > 0.5:
                continue
            fine = torch.where(flat, 0, (best.abs() - 2 * doubt).clamp_min(0) / scale.clamp_min(1e-300))
            return fine.median(0).values.amax(0), model is not self.victim
        return None, False

    def _slopes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (N, K), weightings (2, N, K) of them, and the gradients (2, N, ...) of what these make of them."""
        with determinism.isolated(self.seed, self.victim.device), torch.enable_grad():
            x = x.detach().requires_grad_(True)
            logits = self.victim(x)
            rows = torch.arange(len(x), device=x.device)
            rival = logits.detach().clone()
            rival[rows, self.y] = -torch.inf
            weights = torch.zeros(2, *logits.shape, device=x.device, dtype=logits.dtype)
            weights[0, rows, rival.argmax(1)], weights[0, rows, self.y] = 1, -1
            weights[1] = torch.randn(logits.shape, generator=_generator(self.seed)).to(logits)
            slopes = [torch.autograd.grad((w * logits).sum(), x, retain_graph=True)[0] for w in weights]
        return logits.detach().double(), weights.double(), torch.stack(slopes).double()

    def _directions(self, x: Tensor, slope: Tensor) -> Iterator[Tensor]:
        """Directions (N, ...), float64, of length 1 in the threat's norm."""
        yield steepest(slope, EXPONENT[self.threat.norm])
        generator = _generator(self.seed + 1)
        for _ in range(RANDOM):
            way = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
            yield _unit(way.sign() if self.threat.norm == "linf" else way, self.threat)
        yield _unit((x - self.x.roll(1, 0)).double(), self.threat)

    def _residuals(self, model: Victim, place: _Place, step: float) -> tuple[Tensor, Tensor]:
        """What the gradient says of a step less what happens, and the larger of both, (directions, weightings, N).

        Over eps: in units of logits.
        """
        assert self.threat.eps is not None
        left, size = [], []
        for way in place.ways:
            ends = [
                (place.x.double() + sign * step * self.threat.eps * way).clamp(0, 1).to(model.precision)
                for sign in (1, -1)
            ]
            up, down = (self._logits(model, end) for end in ends)
            moved = (ends[0].double() - ends[1].double()) / (2 * step)
            said = (place.slopes * moved).flatten(2).sum(2)
            happened = (place.weights * ((up - down) / (2 * step))).sum(2)
            left.append(said - happened)
            size.append(torch.maximum(said.abs(), happened.abs()))
        return torch.stack(left), torch.stack(size)

    def _models(self, x: Tensor, logits: Tensor) -> Iterator[Victim]:
        """The model in float64 if that is the same function at the points, and as it is."""
        exact = _in_float64(self.victim)
        if exact is not None:
            try:
                twin = self._logits(exact, x.double())
            except torch.OutOfMemoryError:
                raise
            except Exception:  # a constant of the model's own in float32, an operation that knows no float64
                twin = torch.full_like(logits, torch.nan)
            if bool(((twin - logits).abs().amax(1) <= SAME * logits.abs().amax(1)).double().mean() > 0.9):
                yield exact
        yield self.victim

    def _logits(self, model: Victim, x: Tensor) -> Tensor:
        """Logits in float64, always under the same random numbers."""
        with determinism.isolated(self.seed, self.victim.device), torch.no_grad(), to_be_answered():
            logits: Tensor = model(x)
        return logits.double()

    def _misses(self, x: Tensor) -> Tensor:
        return self._logits(self.victim, x).argmax(1) != self.y

    def _aside(self, x: Tensor) -> Tensor:
        return x + ASIDE * (torch.rand(x.shape, generator=_generator(self.seed)).to(x) - x)


def _in_float64(victim: Victim) -> Victim | None:
    """A copy in float64; None where there is none."""
    try:
        twin = duplicate(victim)
        assert isinstance(twin, Victim)
        twin.double()
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return None
    twin.precision = torch.float64
    twin.cost = victim.cost
    return twin


def _share(mask: Tensor) -> float:
    return float(mask.double().mean())


def _unit(way: Tensor, threat: Threat) -> Tensor:
    return way / per_sample(magnitude(way, threat.norm).clamp_min(1e-12), way)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
