"""Base of defenses: what every declaration of one says, whether it trains a model, wraps one or stands for one."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from ..datasets.registry import Dataset, DatasetInfo
from ..errors import UserError
from ..options import check_choices, written
from ..victims.adaptation import Remedy


class Diverged(RuntimeError):
    """Training produced a loss that is not finite."""


class Loss(NamedTuple):
    """One evaluation of a training objective.

    Attributes:
        value: Its mean over the batch, a scalar.
        logits: Those it saw, (N, K).
        logged: What else the training history is to say, by name: means over the batch, scalars without a graph.
    """

    value: Tensor
    logits: Tensor
    logged: Mapping[str, Tensor] = MappingProxyType({})


class Epoch(NamedTuple):
    """One line of a training history; accuracies are fractions, validation fields NaN without a split.

    ``logged``: what the defense adds, as means over the images of the epoch.
    """

    epoch: int
    loss: float
    accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float
    logged: Mapping[str, float] = MappingProxyType({})


class Trained(NamedTuple):
    """What training returns: the model to be judged (in eval mode) and a line for every epoch."""

    model: nn.Module
    history: list[Epoch]


Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called as ``progress(epochs_done, epochs_total, {"loss": ..., "accuracy": ...})`` after each epoch."""


@dataclass(frozen=True, kw_only=True)
class Defense(ABC):
    """A way to come by a model.

    Fields are hyperparameters and belong to the model's identity. ``None`` stands for the data set's own value, which
    :meth:`resolve` fills in before a key is taken. A field that means nothing to a defense is not there, or refused.

    Raises:
        UserError: A hyperparameter outside its range.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    summary: ClassVar[str] = ""
    """One line for ``gauntlet list defenses``."""
    source: ClassVar[str] = ""
    """Where the method is from."""
    trainable: ClassVar[bool] = True
    """Whether it makes models; False where it stands for one made elsewhere."""
    also: ClassVar[Mapping[str, Any]] = {}
    """What counts in the identity beside the fields, so that keys from before a field was gone stand."""

    def __post_init__(self) -> None:
        check_choices(self, f" for {self.name}")
        for declared in dataclasses.fields(self):
            value = getattr(self, declared.name)
            finite = not isinstance(value, float) or math.isfinite(value) or declared.metadata.get("infinite", False)
            require(self, declared.name, finite, "finite")

    def resolve(self, info: DatasetInfo) -> Self:
        """Replace every ``None`` that stands for the data set's own value."""
        return self

    @property
    def remedy(self) -> Remedy:
        """How attacks are to see its models: a defense that draws at inference time says over how many draws."""
        return Remedy()

    def seed_identity(self) -> Defense:
        """What random numbers of attacks on its models may depend on."""
        return self

    def label(self, info: DatasetInfo) -> str:
        """Name for people: the defense and every hyperparameter that is not its default on that data set."""
        usual, mine = type(self)().resolve(info), self.resolve(info)
        changed = [
            f"{f.name}={_short(getattr(mine, f.name))}"
            for f in dataclasses.fields(self)
            if getattr(mine, f.name) != getattr(usual, f.name)
        ]
        return f"{self.name}({', '.join(changed)})" if changed else self.name

    def part(self, data: Dataset) -> Dataset:
        """The data set with what the defense looks at of its training part.

        Raises:
            UserError: It asks for more than there is.
        """
        return data

    def images_shown(self, info: DatasetInfo) -> int:
        """Images that training shows a model, all epochs together; 0 where nothing is trained, or nobody counted."""
        return 0

    @abstractmethod
    def build(self, architecture: str, info: DatasetInfo, base: nn.Module | None = None) -> nn.Module:
        """The model in its judged form, untrained: what a checkpoint's weights are loaded into, around any base.

        Raises:
            UserError: No base where one is needed, or one that does not suit.
        """

    @abstractmethod
    def fit(
        self,
        architecture: str,
        data: Dataset,
        *,
        device: torch.device | str = "cpu",
        base: nn.Module | None = None,
        progress: Progress | None = None,
    ) -> Trained:
        """Make a model; all randomness comes from torch's global generator, which the caller seeds.

        The test part of the data is not looked at; ``progress`` is called after every epoch.

        Raises:
            Diverged: The loss stopped being finite, or the weights of the last update give none that is.
            UserError: No base where one is needed, or one that does not suit; more images wanted than there are.
        """


def require(declaration: Any, name: str, holds: bool, wanted: str) -> None:
    """Raise a one-line error unless a hyperparameter is in its range."""
    if not holds:
        raise UserError(f"{declaration.name}: {name} must be {wanted}, got {getattr(declaration, name)}")


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return written(tuple(map(_short, value)))
    # in full if it must be: models of one label are read as seeds of one defense
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
