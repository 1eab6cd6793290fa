"""Dropout (Srivastava et al. 2014), the regulariser that all four papers compare with."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from harness.models.stages import Stages
from harness.training.defense import Loss, require
from harness.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Dropout(Trainer):
    """Plain training with units dropped at random; at inference nothing is dropped.

    Attributes:
        p: Probability to drop a unit that leaves a hidden stage, in [0, 1).
        input_p: Probability to drop a pixel, in [0, 1).
    """

    name = "dropout"
    summary = "random units dropped during training"
    source = "Srivastava et al. 2014"
    by_batch = True

    p: float = 0.5
    input_p: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "p", 0 <= self.p < 1, "in [0, 1)")
        require(self, "input_p", 0 <= self.input_p < 1, "in [0, 1)")

    def loss(self, model: Stages, x: Tensor, y: Tensor) -> Loss:
        """Cross-entropy of the thinned network."""

        def drop(stage: str, output: Tensor) -> Tensor:
            return F.dropout(output, self.p) if stage in model.hidden else output

        logits = model(F.dropout(x, self.input_p), tap=drop)
        return Loss(F.cross_entropy(logits, y), logits)
