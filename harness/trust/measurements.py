"""Gradient diagnostics of a model: the part of a probe that needs gradients and attacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import determinism, identity
from ..attacks.apgd import APGD
from ..attacks.base import Attack
from ..attacks.fast_gradient import Gradient
from ..attacks.losses import objective
from ..attacks.noise import Noise
from ..attacks.partial_pgd import PartialPGD, climb
from ..errors import describe
from ..schema.probes import Diagnostics, Slopes
from ..threat import EXPONENT, Threat, steepest
from ..victims.victim import Victim, input_gradient, rounded, to_be_answered
from .slopes import SlopeComparison

STRIDES: Final = (0.05, 0.5)
"""Steps of "uphill" in units of eps: a long one too, because a part that rounds does not notice the short one."""

SIDEWAYS: Final = 5
"""Random directions that the gradient has to beat: one that lies does so once in six times at either length."""

SCALES: Final = (0.05, 1.0, 20.0)
"""Factors of the logits under which the plain attack is run."""

NUDGE: Final = 2e-4
"""A change of pixels far below a step of 8 bits: a twentieth of one."""

JUMP: Final = 0.05
"""Change of a logit, as a share of the largest there is, that a continuous model does not show under a nudge. Sound:
0.003 at most."""

COMPARED: Final = 64
"""Images on which gradients are held against differences: where they are wrong, they mostly are everywhere."""

PARTS: Final = (1.0, 0.5, 0.25)
"""Shares of the values that are changed, one after the other, while the others stay as they are."""

WATCHED: Final = 32
"""Standing images whose rise is watched."""


@dataclass(frozen=True)
class GradientDiagnostics:
    """A model as attacks see it, and images that the model gets right.

    Attributes:
        victim: The model as attacks see it.
        judge: The model as it is.
    """

    victim: Victim
    judge: Victim
    x: Tensor
    y: Tensor
    threat: Threat
    seed: int = 0

    def facts(self) -> Diagnostics:
        """All measurements.

        ``detached``: autograd does not reach the input, or raises; what needs a gradient is then None.
        """
        errors: list[str] = []

        def attempt(name: str, measure: Callable[[], Any]) -> Any:
            def seeded() -> Any:
                with determinism.isolated(self.seed, self.victim.device):
                    return measure()

            try:
                return self.victim.sparing(len(self.x), seeded)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                errors.append(f"{name}: {describe(error)}")
                return None

        found: dict[str, Any] = {"probabilities": are_probabilities(self.logits(self.x))}
        found["jumps"] = attempt("jumps", lambda: share(self.jumps()))
        slopes = attempt("gradient", self.slopes)
        found |= {"detached": slopes is None, "inner_optimisation": bool(attempt("forward", self.optimises))}
        found |= slopes or {}
        if slopes and len(self.x):
            found |= {
                "uphill": attempt("uphill", self.uphill),
                "slopes": attempt("slopes", self.differences),
                "scale": attempt("scale", self.scale),
                "unbounded": attempt("unbounded", self.unbounded),
                "one_step": attempt("one_step", lambda: share(self.stand(Gradient(objective="log-odds")))),
                **(attempt("strength", self.strength) or {}),
            }
        return Diagnostics(**found, errors=tuple(errors))

    def stand(self, attack: Attack, standing: Tensor | None = None, seed: int = 0) -> Tensor:
        """Which images a budget attack leaves, bool (N,), of those that stand; another seed, other random starts."""
        left = torch.ones_like(self.y, dtype=torch.bool) if standing is None else standing.clone()
        rows = left.nonzero().squeeze(1)
        if len(rows):
            x_adv = self.propose(attack, rows, seed)
            left[rows] = self.judge.predict(x_adv) == self.y[rows]
        return left

    def propose(self, attack: Attack, rows: Tensor, seed: int = 0) -> Tensor:
        """What an attack makes of some images, rows (M,), within the threat whatever it returns."""
        x = self.x[rows]
        with determinism.isolated(identity.derive_seed(self.seed, seed), self.victim.device):
            x_adv = attack(self.victim, x, self.y[rows], self.threat)
        return self.threat.project(x, torch.where(x_adv.isfinite(), x_adv, x))

    def logits(self, x: Tensor) -> Tensor:
        """What attacks see, under the same random numbers each time: images are compared, not draws."""

        def ask() -> Tensor:
            with determinism.isolated(self.seed, self.victim.device), torch.no_grad(), to_be_answered():
                logits: Tensor = self.victim(x)
            return logits

        return self.victim.sparing(len(x), ask)

    def slope(self, objective: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Gradient at the images of an objective of logits (N, K) and labels (N,), under those same numbers."""
        with determinism.isolated(self.seed, self.victim.device):
            return input_gradient(self.victim, self.x, lambda logits: objective(logits, self.y))[1]

    def jumps(self) -> Tensor:
        """Which images have a point, or one beside them, where a tiny change moves logits by much: bool (N,).

        Points are the image, one beside it as a float, and that as a file of 8 bits; the change is :data:`NUDGE`.
        """
        points = (self.x, beside := neighbours(self.x, self.seed), rounded(beside))
        found = torch.zeros_like(self.y, dtype=torch.bool)
        if not len(found):
            return found
        for x in points:
            here, there = self.logits(x), self.logits(nudged(x, self.seed))
            found |= (there - here).abs().amax(1) > JUMP * here.abs().amax().clamp_min(1e-30)
        return found

    def slopes(self) -> dict[str, Any]:
        """What is wrong with the gradients themselves."""
        entropy = self.slope(cross_entropy)
        return {
            "zero_gradient": share(is_flat(entropy)),
            "non_finite_gradient": share(~entropy.isfinite().flatten(1).all(1)),
            "small_gradient": share(is_flat(self.slope(margin))),
        }

    def optimises(self) -> bool:
        """Whether a forward pass calls autograd."""
        with backward_calls() as calls, torch.enable_grad():
            self.victim(self.x.clone().requires_grad_(True))
        return bool(calls)

    def uphill(self) -> float | None:
        """Share of images whose margin grows along its gradient, and more than in random directions of that length.

        One of the two :data:`STRIDES` is enough.
        """
        assert self.threat.eps is not None
        slope, here = self.slope(margin), margin(self.logits(self.x), self.y)
        right = torch.zeros_like(self.y, dtype=torch.bool)
        for stride in STRIDES:
            near = Threat(self.threat.norm, stride * self.threat.eps)
            aside = Noise(distribution="signs" if near.norm == "linf" else "gaussian")
            tries = [step(self.x, slope, near), *(aside(self.victim, self.x, self.y, near) for _ in range(SIDEWAYS))]
            ahead, *beside = (margin(self.logits(x), self.y) - here for x in tries)
            right |= ahead > torch.stack(beside).amax(0).clamp_min(0)
        return share(right)

    def differences(self) -> Slopes:
        """How the gradients compare with what the outputs do."""
        return SlopeComparison(self.victim, self.x[:COMPARED], self.y[:COMPARED], self.threat, self.seed).facts()

    def scale(self) -> dict[str, float | None]:
        """Accuracy that the plain attack leaves, by the factor of the logits it sees."""
        return {f"{factor:g}": share(self.stand(PlainPgd(factor=factor))) for factor in SCALES}

    def unbounded(self) -> float | None:
        """Accuracy that is left when every image in the box is allowed, in whatever norm, and the gradient leads there.

        Signed steps along the margin, then along the DLR loss, from the image itself: at a random point of the box
        any model errs, and nothing would be learned of its gradients.
        """
        anywhere = replace(self, threat=Threat("linf", 1.0))
        left = anywhere.stand(PlainPgd(loss="margin", steps=50))
        return share(anywhere.stand(PlainPgd(loss="dlr", steps=50), left))

    def strength(self) -> dict[str, Any]:
        """APGD on the cross-entropy from one random start, and what more steps, starts and another loss add.

        Runs of more than 50 steps and starts after the first see the images that the smaller ones left, and so can
        only lower the accuracy.
        """
        usual = APGD(loss="ce", steps=50)
        left = first = self.stand(usual)
        steps = {"25": share(self.stand(replace(usual, steps=25))), "50": share(first)}
        rising = None
        for number in (100, 200):
            left = self.stand(replace(usual, steps=number), left)
            steps[str(number)] = share(left)
            rising = self.rising(left) if number == 100 else rising
        left, restarts = first, {"1": share(first)}
        for number in range(2, 6):
            left = self.stand(usual, left, number)
            restarts |= {str(number): share(left)} if number in (2, 5) else {}
        other = self.stand(APGD(loss="dlr", steps=50))
        losses = {"ce": share(first), "dlr": share(other)}
        found = {"steps": steps, "rising": rising, "restarts": restarts, "losses": losses}
        return found | ({"parts": self.parts(first & other)} if self.threat.norm in PartialPGD.norms else {})

    def parts(self, left: Tensor) -> dict[str, float | None]:
        """Accuracy that is left by steps on :data:`PARTS` of the values, each of what those before it left.

        In L-infinity and L2 every other step moves all values, however small the gradient is there, and so sets off
        whatever a model watches for: a lit frame, that no digit reaches. In L1 they go to few values anyway. Watched
        values of a large gradient are in every such part: so come last those in which images differ, if others do not.
        """
        attacks: dict[str, Attack] = {f"{part:g}": PartialPGD(part=part) for part in PARTS}
        differ = (self.x != self.x[:1]).any(0)
        if differ.any() and not differ.all():
            attacks["differing"] = WherePgd(where=differ)
        found = {}
        for name, attack in attacks.items():
            left = self.stand(attack, left)
            found[name] = share(left)
        return found

    def rising(self, standing: Tensor) -> float | None:
        """Mean share of the rise of the best margin in 100 steps that came in the last 10.

        Over at most :data:`WATCHED` standing images, on which the run of :meth:`strength` is repeated and watched.
        """
        rows = standing.nonzero().squeeze(1)[:WATCHED]
        seen: list[Tensor] = []
        hook = self.victim.register_forward_hook(lambda module, given, logits: seen.append(logits.detach()))
        try:
            self.propose(APGD(loss="ce", steps=100), rows)
        finally:
            hook.remove()
        if not seen or any(len(logits) != len(rows) for logits in seen):
            return None
        best = torch.stack([margin(logits, self.y[rows]) for logits in seen]).cummax(0).values
        rise, late = best[-1] - best[0], best[-1] - best[-1 - len(best) // 10]
        return float((late / rise.clamp_min(1e-12)).mean())


def neighbours(x: Tensor, seed: int = 0) -> Tensor:
    """Images beside images (N, C, H, W) in [0, 1]: by up to one step of 8 bits in each value.

    What a model looks up by its input, or draws for it, is that of the test images alone; attacks ask beside them.
    """
    return (x + (2 * _drawn(x, seed) - 1) / 255).clamp(0, 1)


def nudged(x: Tensor, seed: int = 0) -> Tensor:
    """Images (N, C, H, W) in [0, 1] moved by :data:`NUDGE` in each value, up or down."""
    return (x + NUDGE * (2 * (_drawn(x, seed) < 0.5).to(x.dtype) - 1)).clamp(0, 1)


def _drawn(x: Tensor, seed: int) -> Tensor:
    return torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)


@dataclass(frozen=True, kw_only=True)
class PlainPgd(Attack):
    """The attack of weak evaluations: steepest steps of one length along plain gradients, from the image itself.

    Attributes:
        loss: ``"entropy"`` is the cross-entropy in float32, which saturates; see :func:`.losses.objective` for others.
        factor: The logits are multiplied by it.
        steps: Their number; each is 2.5 eps / steps long.
    """

    name: ClassVar[str] = "plain-pgd"

    loss: Literal["entropy", "margin", "dlr"] = "entropy"
    factor: float = 1.0
    steps: int = 20

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Propose where the last step leads."""
        assert threat.eps is not None
        stride = Threat(threat.norm, 2.5 * threat.eps / self.steps)
        x_adv = x
        for _ in range(self.steps):
            _, slope, _ = input_gradient(victim, x_adv, lambda logits: self._value(self.factor * logits, y))
            x_adv = threat.project(x, step(x_adv, slope.nan_to_num(), stride))
        return x_adv

    def _value(self, logits: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(logits, y) if self.loss == "entropy" else objective(self.loss, logits, y)


@dataclass(frozen=True, kw_only=True, eq=False)
class WherePgd(Attack):
    """As :class:`harness.attacks.partial_pgd.PartialPGD`, on values that are given.

    Attributes:
        where: The values that are changed, bool (C, H, W).
    """

    name: ClassVar[str] = "where-pgd"

    where: Tensor

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Propose where the last step leads."""
        return climb(victim, x, y, threat, 50, lambda slope: self.where.expand_as(slope))


def step(x: Tensor, slope: Tensor, threat: Threat) -> Tensor:
    """One steepest step of length eps, none of it wasted on components that the box does not let move."""
    assert threat.eps is not None
    free = torch.where(((slope > 0) & (x < 1)) | ((slope < 0) & (x > 0)), slope, 0)
    return (x + threat.eps * steepest(free, EXPONENT[threat.norm])).clamp(0, 1)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each sample, (N,), as plain float32 gives it."""
    return F.cross_entropy(logits.float(), y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Best other logit minus the label's, (N,): positive where the image is misclassified."""
    return objective("margin", logits, y)


def is_flat(slope: Tensor) -> Tensor:
    """Which gradients (N, ...) are exactly zero everywhere, bool (N,)."""
    return (slope == 0).flatten(1).all(1)


def are_probabilities(outputs: Tensor) -> bool:
    """Whether all outputs (N, K) are in [0, 1] and every row sums to 1."""
    return bool(((outputs >= 0) & (outputs <= 1)).all() and ((outputs.sum(1) - 1).abs() < 1e-3).all())


def share(mask: Tensor) -> float | None:
    """Share of True in a mask; None if it is empty."""
    return float(mask.double().mean()) if len(mask) else None


@contextmanager
def backward_calls() -> Iterator[list[str]]:
    """List the calls of autograd in a block. The engine is watched too: a model may have imported ``grad`` before."""
    places = [(torch.autograd, "grad"), (torch.autograd, "backward"), (torch.autograd, "_engine_run_backward")]
    saved = [
        (owner, name, getattr(owner, name)) for owner, name in [*places, (Tensor, "backward")] if hasattr(owner, name)
    ]
    calls: list[str] = []

    def spy(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return function(*args, **kwargs)

        return called

    try:
        for owner, name, function in saved:
            setattr(owner, name, spy(name, function))
        yield calls
    finally:
        for owner, name, function in saved:
            setattr(owner, name, function)
