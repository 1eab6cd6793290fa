"""Randomised smoothing (Cohen, Rosenfeld & Kolter 2019): votes under Gaussian noise, and what they prove in L2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from scipy.special import betaincinv, ndtri
from torch import Tensor, nn

from harness.certify import Certificate
from harness.models.stages import Stages
from harness.schema.eps import limit
from harness.threat import Threat
from harness.training.defense import Loss, require
from harness.training.noise import noisy
from harness.training.trainer import Trainer
from harness.victims.adaptation import Remedy

EOT: Final = 16
"""Draws that attacks see the mean logits of."""
VOTES: Final = 100
"""Draws behind each label that the referee asks for; the paper's smallest number for a prediction (section 3.2.1)."""
SELECTION: Final = 100
"""Draws that guess an image's class (n0) ..."""
ESTIMATION: Final = 10_000
"""... and draws that bound its probability from below (n); the paper takes 100,000 (section 4)."""
FIRST: Final = 1000
"""Draws that are asked first where it is enough to know whether a radius is reached."""
ALPHA: Final = 0.001
"""Largest probability that what is certified of an image does not hold (section 4)."""
ROWS: Final = 1000
"""Noisy images in one pass."""


class Smoothed(nn.Module):
    """A classifier under fresh Gaussian noise: one draw a call. Its majority over draws is the smoothed classifier.

    Args:
        base: The classifier.
        sigma: Standard deviation of the noise in pixel units; noisy images are not clipped.
    """

    alpha: Final = ALPHA
    certificate_passes: Final = SELECTION + ESTIMATION

    def __init__(self, base: nn.Module, sigma: float) -> None:
        super().__init__()
        self.base = base
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of the images under one draw of the noise each."""
        logits: Tensor = self.base(noisy(x, self.sigma))
        return logits

    @torch.no_grad()
    def ballots(self, x: Tensor, draws: int) -> Tensor:
        """How often each class was given to each image under so many draws, int64 (N, K)."""
        each = max(ROWS // max(len(x), 1), 1)
        total: Tensor | int = 0
        for part in torch.arange(draws).split(each):  # type: ignore[no-untyped-call]
            logits = self(x.repeat(len(part), *[1] * (x.dim() - 1)))
            labels = logits.argmax(1).view(len(part), len(x))
            total = total + F.one_hot(labels, logits.shape[1]).sum(0)
        assert isinstance(total, Tensor)
        return total

    def radii(self, x: Tensor, y: Tensor, between: tuple[float, float] | None = None) -> Tensor:
        """L2 radii around images in which the smoothed classifier gives them the true label, float64 (N,) on the CPU.

        CERTIFY of the paper (section 3.2.2): some draws guess the class, others bound its probability from below with
        confidence 1 - alpha (Clopper & Pearson 1934), and the radius is sigma times the bound's normal quantile
        (theorem 1). -inf where it abstains, because the bound is no more than 1/2, or guesses another class than ``y``.

        Args:
            x: Images (N, C, H, W).
            y: Labels (N,).
            between: The smallest and the largest radius that are asked about. A tenth of the draws is looked at first
                then: an image that reaches the largest, or is far from the smallest, keeps the radius that these prove.
                Each look has half of alpha, so that both may be believed.
        """
        guess = self.ballots(x, SELECTION).argmax(1)
        if between is None:
            return self._proved(x, y, guess, ESTIMATION, ALPHA)
        radii = self._proved(x, y, guess, FIRST, ALPHA / 2)
        # where so few draws prove no such radius, none is too far from it
        slack = self.sigma / 2 if self._reach(FIRST, ALPHA / 2) >= between[0] else math.inf
        rows = ((radii < between[1]) & (radii >= between[0] - slack)).nonzero().squeeze(1)
        here = rows.to(x.device)
        radii[rows] = torch.maximum(radii[rows], self._proved(x[here], y[here], guess[here], ESTIMATION, ALPHA / 2))
        return radii

    def _proved(self, x: Tensor, y: Tensor, guess: Tensor, draws: int, alpha: float) -> Tensor:
        """Radii (N,) of one look at so many draws, each with probability 1 - alpha."""
        counts = self.ballots(x, draws).gather(1, guess.unsqueeze(1)).squeeze(1).double().cpu()
        low = torch.from_numpy(betaincinv(counts.clamp_min(1).numpy(), (draws - counts + 1).numpy(), alpha))
        sure = (counts > 0) & (low > 0.5) & (guess == y).cpu()
        return torch.where(sure, self.sigma * torch.from_numpy(ndtri(low.numpy())), -math.inf)

    def _reach(self, draws: int, alpha: float) -> float:
        """The radius of an image that every one of so many draws gives its label: no look proves more."""
        return self.sigma * float(ndtri(alpha ** (1 / draws)))

    def certificates(
        self, x: Tensor, y: Tensor, threats: Sequence[Threat], *, quick: bool = False
    ) -> list[Certificate]:
        """What the same draws prove within each threat, each image with probability 1 - alpha at least.

        A ball in L1 lies in that of its radius in L2, one in L-infinity in that of sqrt(d) times its radius. Margins
        are what is left of the radius, in L2; smaller if it is ``quick``, where easy images get fewer draws.
        """
        needed = []
        for threat in threats:
            assert threat.eps is not None
            scale = {"linf": math.sqrt(x[0].numel()), "l2": 1.0, "l1": 1.0}[threat.norm]
            needed.append(scale * limit(threat.eps))
        reach = self._reach(ESTIMATION, ALPHA / 2 if quick else ALPHA)
        within = [radius for radius in needed if radius < reach]  # where more is needed, none is drawn
        radii = torch.full((len(x),), -math.inf, dtype=torch.float64)
        if within:
            radii = self.radii(x, y, (min(within), max(within)) if quick else None)
        return [Certificate(radii > radius, radii - radius) for radius in needed]


@dataclass(frozen=True, kw_only=True)
class RandomizedSmoothing(Trainer):
    """Train under Gaussian noise, and predict the class that is most often given under it.

    The fair form of defenses that add noise: the noise stays at inference, a prediction is a vote, and the vote proves
    a radius. The referee takes the majority of :data:`VOTES` draws, without abstaining. That is another function than
    the smoothed classifier of the theorem, which has infinitely many votes: near its boundary a finite majority may be
    wrong within a certified radius, and this is counted against it.

    Attributes:
        sigma: Standard deviation of the noise in pixel units of [0, 1], the same in training and prediction.
    """

    name = "randomized-smoothing"
    summary = "votes under Gaussian noise that it was trained with, with certified L2 radii"
    source = "Cohen, Rosenfeld & Kolter 2019"
    by_batch = True

    sigma: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "sigma", self.sigma > 0, "positive")

    @property
    def remedy(self) -> Remedy:
        """Attacks average over draws; labels are votes."""
        return Remedy(draws=EOT, votes=VOTES)

    def loss(self, model: Stages, x: Tensor, y: Tensor) -> Loss:
        """Cross-entropy on noisy images, a fresh draw each (section 3.3)."""
        logits = model(noisy(x, self.sigma))
        return Loss(F.cross_entropy(logits, y), logits)

    def wrap(self, model: Stages, base: nn.Module | None) -> Smoothed:
        """The network under noise."""
        return Smoothed(model, self.sigma)
