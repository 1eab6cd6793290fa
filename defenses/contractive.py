"""Deep contractive networks: a penalty on the Jacobian of every layer (Gu & Rigazio 2014)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import torch.nn.functional as F
from torch import Tensor

from harness.errors import UserError
from harness.models.stages import Stages
from harness.training.defense import Loss, require
from harness.training.jacobian_penalty import exact, has_closed_form, squared_norm, steps, trace
from harness.training.noise import Where, hidden_noise, noisy
from harness.training.pretraining import Decoder, autoencoder_loss
from harness.training.trainer import Trainer

FLOOR: Final = 1e-12
"""Added under the root of an unsquared norm, whose slope at zero is infinite."""


@dataclass(frozen=True, kw_only=True)
class Contractive(Trainer):
    """Cross-entropy plus the norms of the Jacobians of all layers, each by the layer below (eq. 6).

    Both are means over the batch. A layer is a hidden representation, or the output. Stages trained without labels get
    the contractive autoencoder's penalty then (eq. 4), and afterwards, where they are fine-tuned, that of eq. 6.

    The paper does not give its lambda. On MNIST, after 5 epochs of mlp-200-200 and 3 of convnet-gu, the test error, the
    mean norm of the logits' Jacobian by the image, and the median margin over the norm of its gradient:

    ======  =====  ====  ====  =====  ====  ====
    weight    MLP              conv.
    ------  -----------------  -----------------
    0       2.2 %  28.0  0.66  1.4 %  12.0  1.60
    1e-4    2.2 %  18.6  0.90  1.6 %   9.1  1.70
    3e-4    2.3 %  14.8  1.02  2.3 %   8.3  1.59
    1e-3    2.7 %  11.1  1.10  3.4 %   7.3  1.42
    ======  =====  ====  ====  =====  ====  ====

    A convolution's norm is a sum over positions, so the same weight is more to it. Unsquared norms take ten times the
    weight of squared ones to contract as much, with about the same error.

    Attributes:
        weight: Lambda of eq. 6: one for all layers, or a tuple of one for each (hidden layers, then the output). The
            default costs either network little.
        squared: Penalise squared Frobenius norms, as section 4.1 has it in words, and Rifai et al. (2011) in their
            formula; False for eqs. 4 to 6 as they are printed.
        penalty: ``"layers"`` is eq. 6, whose layers are independent and mostly have a formula; ``"exact"`` is eq. 5,
            the output's Jacobian by the image, at the cost of a backward pass for each class.
        output: What the output is to the penalty: ``"softmax"`` as in the paper, or ``"logits"``.
        draws: Random projections for layers without a formula (:func:`harness.training.jacobian_penalty.estimate`).
        sigma: Standard deviation of noise added in training, in pixel units of [0, 1]: "DCN+GN" of table 6. The
            Jacobian is the one at the noisy image.
        where: Where the noise is added, as in ``gaussian-noise``.
    """

    name = "contractive"
    summary = "penalty on the Jacobian of every layer"
    source = "Gu & Rigazio 2014, eqs. 4-6"

    weight: float | tuple[float, ...] = 1e-4
    squared: bool = True
    penalty: Literal["layers", "exact"] = "layers"
    output: Literal["softmax", "logits"] = "softmax"
    draws: int = 1
    sigma: float = 0.0
    where: Where = "input"

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = self.weight if isinstance(self.weight, tuple) else (self.weight,)
        # of a tuple, Trainer has not asked whether they are finite
        require(self, "weight", all(0 <= weight < float("inf") for weight in weights), "at least 0")
        one = not isinstance(self.weight, tuple)
        require(self, "weight", self.penalty == "layers" or one, "one number for the exact penalty")
        require(self, "draws", self.draws >= 1, "at least 1")
        require(self, "where", self.where == "input" or self.sigma > 0, "input without noise (sigma)")
        require(self, "sigma", self.sigma >= 0, "at least 0")

    def loss(self, model: Stages, x: Tensor, y: Tensor) -> Loss:
        """The objective; one forward pass serves cross-entropy and penalty.

        Raises:
            UserError: As many weights as the model has layers were not given.
        """
        whole = self.penalty == "exact"
        tap = hidden_noise(model, self.sigma, self.where)
        logits, layers = trace(model, noisy(x, self.sigma), tap, leaf=whole)
        value = F.cross_entropy(logits, y)
        if whole:
            outputs = logits.softmax(1) if self.output == "softmax" else logits
            assert isinstance(self.weight, float | int)
            return Loss(value + self.weight * self._mean(exact(layers[0].before, outputs)), logits)
        for layer, weight in zip(layers, self._weights(len(layers)), strict=True):
            if weight and (self.fine_tuned or layer.name not in model.unsupervised):
                softmax = self.output == "softmax" and layer is layers[-1]
                norms = squared_norm(layer.module, layer.before, layer.after, softmax=softmax, draws=self.draws)
                value = value + weight * self._mean(norms)
        return Loss(value, logits)

    def reconstruction(self, model: Stages, stage: str, decoder: Decoder, x: Tensor) -> Tensor:
        """The contractive autoencoder's objective (eq. 4), its norm by formula or as in :meth:`loss`.

        Raises:
            UserError: As many weights as the model has layers were not given.
        """
        module, layers = model.stages[stage], list(steps(model))
        weight = self._weights(len(layers))[layers.index(stage)]
        before = noisy(x, self.sigma).detach().requires_grad_(not has_closed_form(module))
        after = module(before)
        value = autoencoder_loss(decoder, after, x)
        return value + weight * self._mean(squared_norm(module, before, after, draws=self.draws))

    def _weights(self, layers: int) -> tuple[float, ...]:
        weights = self.weight if isinstance(self.weight, tuple) else (self.weight,) * layers
        if len(weights) != layers:
            raise UserError(f"{self.name}: weight must be one number or {layers}, one a layer, got {len(weights)}")
        return weights

    def _mean(self, squares: Tensor) -> Tensor:
        if self.squared:
            return squares.mean()
        return (squares.clamp(min=0) + FLOOR).sqrt().mean()  # rounding may leave a norm of zero just below it
