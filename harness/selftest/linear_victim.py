"""Linear victim with closed-form optimal perturbations in every norm."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor, nn

from ..threat import EXPONENT, Norm, dual_exponent, per_sample, steepest
from ..victims.victim import Victim


class LinearVictim(Victim):
    """Linear logits z = W x + b of images (C, H, W), with W (K, C * H * W).

    All closed forms are those of the unbounded space: they hold for images so far inside the box that the optimal
    perturbation does not touch it. :meth:`images` draws such images.
    """

    def __init__(self, weight: Tensor, bias: Tensor, shape: tuple[int, int, int]) -> None:
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        super().__init__(nn.Sequential(nn.Flatten(), layer), classes=len(weight), own=True)
        self.weight, self.bias, self.shape = layer.weight.detach(), layer.bias.detach(), shape

    @classmethod
    def random(
        cls, classes: int = 2, shape: tuple[int, int, int] = (1, 4, 4), *, scale: float = 4.0, seed: int = 0
    ) -> Self:
        """Gaussian weights with rows of L2 norm about ``scale``; grey (all pixels 0.5) has equal logits."""
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(classes, math.prod(shape), generator=generator) * (scale / math.sqrt(math.prod(shape)))
        return cls(weight, -0.5 * weight.sum(1), shape)

    def images(self, n: int, *, spread: float = 0.05, seed: int = 1) -> tuple[Tensor, Tensor]:
        """``n`` images uniform within ``spread`` of grey, and the labels predicted for them."""
        generator = torch.Generator().manual_seed(seed)
        x = 0.5 + spread * (2 * torch.rand(n, *self.shape, generator=generator) - 1)
        return x, self.predict(x)

    def boundaries(self, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
        """Signed distance to the boundary between y and each class, (N, K); infinite for y itself.

        The distance to a hyperplane is the margin over the dual norm of its normal.
        """
        difference = self.weight[y].unsqueeze(1) - self.weight
        margin = (difference * x.flatten(1).unsqueeze(1)).sum(2) + self.bias[y].unsqueeze(1) - self.bias
        slope = torch.linalg.vector_norm(difference, ord=dual_exponent(EXPONENT[norm]), dim=2)
        distance: Tensor = margin / slope
        return distance.scatter(1, y.unsqueeze(1), math.inf)

    def distance(self, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
        """Distance to the nearest boundary of the region of class y, (N,); negative if already outside it.

        Raises:
            ValueError: ``"l0"``, which has no dual norm.
        """
        return self.boundaries(x, y, norm).amin(1)

    def perturbation(self, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
        """A shortest perturbation to the nearest boundary, like ``x``."""
        nearest = self.boundaries(x, y, norm).min(1)
        normal = (self.weight[nearest.indices] - self.weight[y]).view_as(x)
        return per_sample(nearest.values, x) * steepest(normal, EXPONENT[norm])
