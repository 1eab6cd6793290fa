"""An ensemble of trained models as a model of its own: what transfers may be crafted on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ..datasets.registry import Dataset, DatasetInfo
from ..errors import UserError
from ..models.ensemble import Average, Ensemble
from .defense import Defense, Progress, Trained


@dataclass(frozen=True, kw_only=True)
class Averaging(Defense):
    """Nothing is trained: the members of :attr:`harness.planning.specs.ModelSpec.members` are.

    Source: Dong et al. 2018, "Boosting Adversarial Attacks with Momentum", section 3.2, average logits or losses; the
    idea is that of Liu et al. 2017, "Delving into Transferable Adversarial Examples", section 5.

    Attributes:
        average: What is averaged, see :class:`harness.models.ensemble.Ensemble`.
    """

    name: ClassVar[str] = "ensemble"
    summary: ClassVar[str] = "the mean of several models"

    average: Average = "logits"

    def build(self, architecture: str, info: DatasetInfo, base: nn.Module | None = None) -> nn.Module:
        """The members, handed over as an ensemble, with what is averaged."""
        if not isinstance(base, Ensemble):
            raise UserError("an ensemble has members: ModelSpec(members=...)")
        base.average = self.average
        return base

    def fit(
        self,
        architecture: str,
        data: Dataset,
        *,
        device: torch.device | str = "cpu",
        base: nn.Module | None = None,
        progress: Progress | None = None,
    ) -> Trained:
        """The members as they are; no image is looked at."""
        return Trained(self.build(architecture, data.info, base).to(device).eval(), [])
