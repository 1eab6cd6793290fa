"""Several networks as one: the mean of their logits, or of their losses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import UserError

Average = Literal["logits", "loss"]

AVERAGES: Final[tuple[Average, ...]] = get_args(Average)


class Ensemble(nn.Module):
    """Networks whose logits are averaged.

    Attributes:
        members: The networks; each takes images (N, C, H, W) and gives logits (N, K), K the same for all.
        average: ``"loss"`` tells attacks that climb a loss to climb its mean over the members instead
            (:func:`harness.victims.victim.input_gradient`); what the ensemble answers is the mean of the logits all the
            same.
    """

    def __init__(self, members: Iterable[nn.Module], average: Average = "logits") -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.average = average

    def forward(self, x: Tensor) -> Tensor:
        """Mean logits (N, K).

        Raises:
            UserError: The members have different numbers of classes.
        """
        each = [member(x) for member in self.members]
        if len({logits.shape for logits in each}) > 1:
            raise UserError(f"an ensemble of models with {', '.join(str(logits.shape[1]) for logits in each)} classes")
        return torch.stack(each).mean(0)
