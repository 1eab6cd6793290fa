"""Defenses applied to an already trained base model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..datasets.registry import Dataset, DatasetInfo
from ..errors import UserError
from .defense import Defense, Progress, Trained


@dataclass(frozen=True, kw_only=True)
class OnTrainedModel(Defense):
    """A defense that takes a trained model, its base, and returns another that holds it."""

    fronted: ClassVar[bool] = False
    """Whether another model's purifier has to stand before the base, see
    :attr:`harness.planning.specs.ModelSpec.front`."""

    def needed(self, base: nn.Module | None) -> nn.Module:
        """The base.

        Raises:
            UserError: There is none.
        """
        if base is None:
            raise self.baseless()
        return base

    def baseless(self) -> UserError:
        """What to say to somebody who names no base."""
        return UserError(
            f"{self.name} is built upon a trained model, and none is named: "
            f"--defense standard+{self.name}, or ModelSpec(base=...)"
        )

    @abstractmethod
    def around(self, base: nn.Module, info: DatasetInfo) -> nn.Module:
        """The model that is judged, around its base, with parts of its own as they are before training."""

    def build(self, architecture: str, info: DatasetInfo, base: nn.Module | None = None) -> nn.Module:
        """The model around its base; see :meth:`Defense.build`."""
        return self.resolve(info).around(self.needed(base), info)


@dataclass(frozen=True, kw_only=True)
class Wrapper(OnTrainedModel):
    """A defense that acts at inference time alone: nothing is trained."""

    also: ClassVar[Mapping[str, Any]] = {
        **{"epochs": 0, "batch_size": 128, "optimizer": "adam", "lr": 1e-3, "momentum": 0.9, "weight_decay": 0.0},
        **{"schedule": "constant", "validation": 0.0, "patience": None},
    }

    def fit(
        self,
        architecture: str,
        data: Dataset,
        *,
        device: torch.device | str = "cpu",
        base: nn.Module | None = None,
        progress: Progress | None = None,
    ) -> Trained:
        """Put the defense around the base; no image is looked at."""
        return Trained(self.build(architecture, data.info, base).to(device).eval(), [])
