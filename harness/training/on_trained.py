"""Defenses that are built upon a model that is trained already."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import nn

from ..datasets.registry import Dataset, DatasetInfo
from ..errors import UserError
from .trainer import Progress, Trained, Trainer


@dataclass(frozen=True, kw_only=True)
class Upon(Trainer):
    """A defense that takes a trained model, its base, and returns another that holds it.

    Override :meth:`around`; training, if there is any, goes into ``fit``.
    """

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

    def around(self, base: nn.Module, info: DatasetInfo) -> nn.Module:
        """The model that is judged, around its base, with parts of its own as they are before training."""
        raise NotImplementedError

    def build(self, architecture: str, info: DatasetInfo, base: nn.Module | None = None) -> nn.Module:
        """The model in its judged form: what a checkpoint's weights are loaded into.

        Raises:
            UserError: No base, or one that does not suit.
        """
        return self.resolve(info).around(self.needed(base), info)


@dataclass(frozen=True, kw_only=True)
class Untrained(Upon):
    """A defense that acts at inference time alone.

    Raises:
        UserError: A hyperparameter of training is set.
    """

    epochs: int | None = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in dataclasses.fields(Untrained):
            if getattr(self, field.name) != field.default:
                raise UserError(f"{self.name}: {field.name} means nothing here, for nothing is trained")

    def resolve(self, info: DatasetInfo) -> Self:
        """Nothing is left to the data set: nothing is trained."""
        return self

    def fit(
        self,
        architecture: str,
        data: Dataset,
        *,
        device: torch.device | str = "cpu",
        base: nn.Module | None = None,
        progress: Progress | None = None,
    ) -> Trained:
        """Put the defense around the base; no image is looked at.

        Raises:
            UserError: No base, or one that does not suit.
        """
        return Trained(self.build(architecture, data.info, base).to(device).eval(), [])
