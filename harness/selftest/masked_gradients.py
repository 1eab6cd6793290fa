"""Classifiers with masked (obfuscated) gradients, on which the health checks are tested.

Each wraps a classifier of images in [0, 1] so that weak evaluations overstate its robustness, while its decisions
stay (nearly) where they were. The faults are the ones met in published defenses: Athalye, Carlini & Wagner 2018,
section 3 (shattered, stochastic, vanishing gradients); Carlini et al. 2019, section 5; Croce & Hein 2020, section 3
(the scale of the logits).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..victims.adaptation import Remedy


class Masked(nn.Module):
    """A classifier ``base``, images (N, C, H, W) in [0, 1] to logits (N, K), behind a fault."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def honest(self, x: Tensor) -> Tensor:
        """The classifier's own logits (N, K)."""
        logits: Tensor = self.base(x)
        return logits


class ScaledLogits(Masked):
    """Logits times a constant: in float32 the cross-entropy and its gradient underflow. Decisions are identical."""

    def __init__(self, base: nn.Module, factor: float = 100.0) -> None:
        super().__init__(base)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        return self.factor * self.honest(x)


class Probabilities(Masked):
    """Probabilities where logits are expected: softmax is taken twice. Decisions are identical."""

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities (N, K)."""
        return self.honest(x).softmax(1)


class Rounding(nn.Module):
    """Pixels rounded to equally spaced levels; the derivative is zero wherever there is one. At least 2 levels."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.steps = levels - 1

    def forward(self, x: Tensor) -> Tensor:
        """Rounded images, same shape."""
        return (x * self.steps).round() / self.steps


class Detached(nn.Module):
    """Pixels as they are, cut out of the graph: as a step in NumPy would leave them."""

    def forward(self, x: Tensor) -> Tensor:
        """The images."""
        return x.detach()


class Fronted(Masked):
    """A step before the classifier, through which no gradient comes."""

    def __init__(self, base: nn.Module, front: nn.Module) -> None:
        super().__init__(base)
        self.front = front

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        return self.honest(self.front(x))


class RoundedInputs(Fronted):
    """Input rounded to a few levels: gradients are zero. Decisions are those at the rounded image."""

    def __init__(self, base: nn.Module, levels: int = 8) -> None:
        super().__init__(base, Rounding(levels))


class ZeroGradient(Fronted):
    """A step that autograd cannot pass, without any effect on the values. Decisions are identical."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base, Detached())


class RandomInput(Masked):
    """Gaussian noise on the input, in pixel units of [0, 1], fresh in every call from torch's global generator."""

    def __init__(self, base: nn.Module, sigma: float = 0.15) -> None:
        super().__init__(base)
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        return self.honest(x + self.sigma * torch.randn_like(x))


class DeadUnits(Masked):
    """Output units that saturate: flat for every confidently classified image. Decisions are identical.

    Log-probabilities are cut off above ``log(confident)``, confident in (1/2, 1), and below ``-log(2 K)``. The largest
    of K is at least ``-log(K)``, so only classes that cannot win are cut off below, and at most one above.
    """

    def __init__(self, base: nn.Module, confident: float = 0.9) -> None:
        super().__init__(base)
        self.confident = confident

    def forward(self, x: Tensor) -> Tensor:
        """Saturated log-probabilities (N, K)."""
        logits = self.honest(x)
        return logits.log_softmax(1).clamp(-math.log(2 * logits.shape[1]), math.log(self.confident))


class CorrugatedLoss(Masked):
    """Logits times a positive factor that waves rapidly over image space. Decisions are identical.

    The factor, between exp(-amplitude) and exp(amplitude), goes through ``frequency`` radians when one pixel goes from
    black to white. Its gradient drowns that of the logits, so that the cross-entropy and the margin lead nowhere: each
    step lands at another phase of the wave. Ratios of logit differences, as in the DLR loss, do not contain the factor.
    """

    def __init__(self, base: nn.Module, amplitude: float = 1.5, frequency: float = 300.0) -> None:
        super().__init__(base)
        self.amplitude = amplitude
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        rows, columns = (torch.arange(side, device=x.device) for side in x.shape[2:])
        board = 1 - 2 * ((rows.unsqueeze(1) + columns) % 2)  # alternating signs: nearly orthogonal to what images hold
        phase = self.frequency * (x * board).flatten(1).sum(1, keepdim=True)
        return self.honest(x) * (self.amplitude * phase.sin()).exp()


class OptimisingForward(Masked):
    """Moves its input towards a more certain answer first, by gradient steps inside the forward pass.

    An adaptive test-time defense (Croce et al. 2022). Steps are in pixel units. Backward treats the movement as a
    constant, which is wrong by its derivative.
    """

    def __init__(self, base: nn.Module, steps: int = 3, step_size: float = 0.02) -> None:
        super().__init__(base)
        self.steps = steps
        self.step_size = step_size

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        moved = x.detach()
        with torch.enable_grad():
            for _ in range(self.steps):
                moved = moved.detach().requires_grad_(True)
                likely = self.honest(moved)
                (grad,) = torch.autograd.grad(F.cross_entropy(likely, likely.argmax(1), reduction="sum"), moved)
                moved = (moved - self.step_size * grad.sign()).clamp(0, 1)
        return self.honest(x + (moved - x).detach())


class _Rewritten(torch.autograd.Function):
    """Passes images on, and another gradient back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rewrite: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.rewrite = rewrite
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.rewrite(grad), None


class RewrittenGradient(Masked):
    """A backward pass written by hand, which returns something else. Decisions are identical."""

    def __init__(self, base: nn.Module, rewrite: Callable[[Tensor], Tensor]) -> None:
        super().__init__(base)
        self.rewrite = rewrite

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        return self.honest(_Rewritten.apply(x, self.rewrite))


def _drowned(grad: Tensor) -> Tensor:
    """The gradient in noise of twice its length, another in every call."""
    return grad + 2 * grad.square().mean((1, 2, 3), keepdim=True).sqrt() * torch.randn_like(grad)


def _underflown(grad: Tensor) -> Tensor:
    """As half precision leaves a small one: what is below 6e-8 is lost."""
    return (1e-8 * grad).half().to(grad) / 1e-8


class DetachedBranch(Masked):
    """The mean of two views of the image, one of them cut out of the graph: half of the gradient is lost."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        return (self.honest(x) + self.honest(x.roll(1, 3).detach().lerp(x.detach(), 0.9))) / 2


class Decoy(Masked):
    """The gradient of a random linear classifier in place of the classifier's own. Decisions are identical."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        logits = self.honest(x.detach())
        weight = torch.randn(x[0].numel(), logits.shape[1], generator=torch.Generator().manual_seed(0)).to(x)
        lead = x.flatten(1) @ weight
        return logits + lead - lead.detach()


class ScaledStraightThrough(Fronted):
    """A straight-through step whose gradient is so many times too large. Decisions are identical."""

    def __init__(self, base: nn.Module, factor: float = 3.0) -> None:
        super().__init__(base, nn.Identity())
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        front = self.front(x)
        return self.honest(front.detach() + self.factor * (front - front.detach()))


class KWinners(nn.Module):
    """Of features (N, F) the largest, the others zero (Xiao, Zhong & Zheng 2020): gradients hold for no distance.

    Attributes:
        share: Share of the features that is kept.
    """

    def __init__(self, share: float = 0.15) -> None:
        super().__init__()
        self.share = share

    def forward(self, features: Tensor) -> Tensor:
        """The winners, (N, F)."""
        k = max(round(self.share * features.shape[1]), 1)
        return torch.where(features >= features.topk(k, 1).values[:, -1:], features, 0)


WRONG_GRADIENTS: Final[dict[str, Callable[[nn.Module], nn.Module]]] = {
    "detached-branch": DetachedBranch,
    "decoy": Decoy,
    "scaled-straight-through": ScaledStraightThrough,
    "half-precision": partial(RewrittenGradient, rewrite=_underflown),
    "flipped": partial(RewrittenGradient, rewrite=torch.neg),
    "drowned": partial(RewrittenGradient, rewrite=_drowned),
}
"""Ways to put a wrong gradient around an honest classifier: it is there, finite, and that of something else. For tests
of the probe; attacks owe nothing on them."""


@dataclass(frozen=True)
class Broken:
    """A way to look robust.

    Attributes:
        wrap: Makes a broken classifier of an honest one, whose submodule ``base`` that one becomes.
        fault: The check of an evaluation's health that must name it.
        remedy: What shows attacks the model behind it; None where none is known.
    """

    name: str
    wrap: Callable[[nn.Module], nn.Module]
    fault: str
    remedy: Remedy | None
    summary: str


_FRONT: Final = Remedy(stand_ins=(("front", "identity"),))

BROKEN: Final[dict[str, Broken]] = {
    broken.name: broken
    for broken in (
        Broken(
            "scaled-logits",
            ScaledLogits,
            "logit-scale",
            Remedy(temperature=100),
            "logits times 100: the cross-entropy underflows",
        ),
        Broken(
            "probabilities",
            Probabilities,
            "outputs-are-probabilities",
            Remedy(probabilities=True),
            "probabilities where logits are expected",
        ),
        Broken(
            "rounded-inputs",
            RoundedInputs,
            "vanishing-gradients",
            _FRONT,
            "pixels rounded to 8 levels: the gradient is zero",
        ),
        Broken("zero-gradient", ZeroGradient, "detached-gradients", _FRONT, "a step that autograd cannot pass"),
        Broken("random-input", RandomInput, "stochastic-predictions", Remedy(draws=16), "fresh noise on every input"),
        Broken(
            "dead-units",
            DeadUnits,
            "vanishing-gradients",
            None,
            "output units that are flat for every confident answer",
        ),
        Broken(
            "corrugated-loss",
            CorrugatedLoss,
            "misleading-gradients",
            None,
            "logits times a rapidly waving factor: the loss surface lies",
        ),
        Broken(
            "optimising-forward",
            OptimisingForward,
            "optimisation-in-forward",
            None,
            "gradient steps towards certainty inside the forward pass",
        ),
    )
}
"""Every broken classifier by name."""
