"""Noise added while a model predicts, its predictions averaged (Gu & Rigazio 2014, section 3.1, figure 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from harness.datasets.registry import DatasetInfo
from harness.errors import UserError
from harness.models.stages import Stages
from harness.training.defense import require
from harness.training.noise import Where, hidden_noise, noisy
from harness.training.on_trained import Wrapper
from harness.victims.adaptation import Remedy

TOGETHER: Final = 100
"""Images up to which runs share a pass: it takes a fifth of the time on one image, and more than its share on 250."""


class Averaged(nn.Module):
    """The mean of a classifier's probabilities over runs with fresh Gaussian noise.

    Args:
        base: The classifier.
        sigma: Standard deviation of the noise.
        where: ``"input"``, or ``"all"`` of input and hidden representations; then the base has to be a
            :class:`~harness.models.stages.Stages`.
        runs: Runs that are averaged.
    """

    def __init__(self, base: nn.Module, sigma: float, where: Where, runs: int) -> None:
        super().__init__()
        self.base = base
        self.sigma = sigma
        self.where = where
        self.runs = runs

    def forward(self, x: Tensor) -> Tensor:
        """Logarithms (N, K) of the mean probabilities; the gradient is that of the mean."""
        n = len(x)
        tap = hidden_noise(self.base, self.sigma, self.where) if isinstance(self.base, Stages) else None
        parts = []
        for runs in torch.arange(self.runs).split(max(TOGETHER // max(n, 1), 1)):  # type: ignore[no-untyped-call]
            many = noisy(x.repeat(len(runs), 1, 1, 1), self.sigma)
            logits = self.base(many, tap=tap) if tap is not None else self.base(many)
            parts.append(logits.log_softmax(1).view(len(runs), n, -1))
        return torch.cat(parts).logsumexp(0) - math.log(self.runs)


@dataclass(frozen=True, kw_only=True)
class NoiseInjection(Wrapper):
    """Noise at the input ("L1" in figure 1) or at the input and all hidden layers ("L*") of a trained model.

    Noisy images are not clipped to [0, 1]. The mean over the runs is the model: attacks differentiate through all of
    them, so that each gradient is an expectation over that many draws, and the referee takes one mean as the
    prediction, as the paper did.

    Attributes:
        sigma: Standard deviation of the noise, in pixel units of [0, 1] at the input and in units of the activations
            behind it. The paper's figure runs over many; 0.1 is the one its text speaks of.
        where: ``"input"``, or ``"all"``: hidden layers as well, after their nonlinearity.
        runs: Forward passes that a prediction is averaged over.
    """

    name = "noise-injection"
    summary = "predictions of a trained model averaged over Gaussian noise"
    source = "Gu & Rigazio 2014, section 3.1"

    sigma: float = 0.1
    where: Where = "input"
    runs: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "sigma", self.sigma >= 0, "at least 0")
        require(self, "runs", self.runs >= 1, "at least 1")

    @property
    def remedy(self) -> Remedy:
        """It draws at random, and averages on its own account: nothing is added but that one mean is the label."""
        return Remedy(votes=1) if self.sigma else Remedy()

    def around(self, base: nn.Module, info: DatasetInfo) -> Averaged:
        """The averaging around the base.

        Raises:
            UserError: ``where="all"`` upon a model without named hidden layers.
        """
        if self.where == "all" and not isinstance(base, Stages):
            raise UserError(
                f"{self.name}: where=all needs a base with hidden layers of its own, not {type(base).__name__}"
            )
        return Averaged(base, self.sigma, self.where, self.runs)
