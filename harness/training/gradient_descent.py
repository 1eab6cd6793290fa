"""Training by gradient descent: optimizer, learning rate and epochs, for classifiers and autoencoders alike."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..datasets.registry import Dataset, DatasetInfo
from ..errors import UserError
from .defense import Defense, Diverged, require
from .optim import set_lr

Optimizer = Literal["adam", "sgd"]
Schedule = Literal["constant", "cosine"]
Decayed = Literal["all", "dense"]

MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class GradientDescent(Defense):
    """A defense that trains weights by gradient descent.

    Attributes:
        epochs: Passes over the training part; ``None``: :attr:`DatasetInfo.epochs`.
        weight_decay: L2 penalty in the optimizer, on weights and biases; none without labels.
        decayed: What :attr:`weight_decay` acts on: ``"all"`` parameters, or those of ``"dense"`` layers alone, which
            leaves convolutions out (Gu & Rigazio 2014, section 2.2).
        schedule: ``"constant"``, or ``"cosine"`` to zero over all steps.
    """

    epochs: int | None = None
    batch_size: int = 128
    optimizer: Optimizer = "adam"
    lr: float = 1e-3
    momentum: float = MOMENTUM
    weight_decay: float = 0.0
    decayed: Decayed = field(default="all", metadata={"identity": "set"})
    schedule: Schedule = "constant"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "epochs", self.epochs is None or self.epochs >= 0, "at least 0")
        require(self, "batch_size", self.batch_size >= 1, "at least 1")
        require(self, "lr", self.lr > 0, "positive")
        require(self, "momentum", 0 <= self.momentum < 1, "in [0, 1)")
        require(self, "weight_decay", self.weight_decay >= 0, "at least 0")
        require(self, "subset", self.subset is None or self.subset >= 1, "at least 1")
        if self.momentum != MOMENTUM and self.optimizer != "sgd":
            raise UserError(f"{self.name}: momentum means nothing to {self.optimizer}; it is of optimizer=sgd")
        if self.decayed != "all" and not self.weight_decay:
            raise UserError(f"{self.name}: decayed means nothing without weight_decay")

    def resolve(self, info: DatasetInfo) -> Self:
        """Fill in the data set's epochs."""
        return self if self.epochs is not None else dataclasses.replace(self, epochs=info.epochs)

    @property
    def subset(self) -> int | None:
        """Training images that are used, None for all: a field of derived classes, whose labels name it last."""
        return None

    def part(self, data: Dataset) -> Dataset:
        """What :attr:`subset` leaves of the training part.

        Raises:
            UserError: It asks for more than there is.
        """
        return data if self.subset is None else data.first(self.subset)

    def held(self, images: int) -> int:
        """How many of the training images are held out."""
        return 0

    def images_shown(self, info: DatasetInfo) -> int:
        """Epochs times the images that are not held out."""
        there = min(info.train_size, self.subset or info.train_size)
        return (self.resolve(info).epochs or 0) * (there - (self.held(there) if there > 1 else 0))

    def scheduled(self, optimizer: torch.optim.Optimizer, steps: int) -> Callable[[], None]:
        """What sets the learning rate before each of so many steps."""
        done = 0

        def advance() -> None:
            nonlocal done
            if self.schedule == "cosine":
                set_lr(optimizer, self.lr * (1 + math.cos(math.pi * done / steps)) / 2)
            done += 1

        return advance

    def run_epoch(self, what: str, rows: Tensor, device: torch.device | str, step: Callable[[Tensor], Tensor]) -> float:
        """One pass in random order, see :func:`one_epoch`; returns the mean of the losses, ``what`` to complain about.

        Raises:
            Diverged: The mean is not finite.
        """
        mean = one_epoch(rows, self.batch_size, device, step)
        if not math.isfinite(mean):
            raise Diverged(f"{self.name}: {what} became {mean}; try a lower lr")
        return mean

    def new_optimizer(self, model: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
        """An optimizer of the weights that are not frozen."""
        dense = {id(p) for part in model.modules() if isinstance(part, nn.Linear) for p in part.parameters()}
        groups: dict[float, list[nn.Parameter]] = {}
        for parameter in model.parameters():
            if parameter.requires_grad:
                spared = self.decayed == "dense" and id(parameter) not in dense
                groups.setdefault(0.0 if spared else weight_decay, []).append(parameter)
        grouped = [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()]
        if self.optimizer == "adam":
            return torch.optim.Adam(grouped, lr=self.lr)
        return torch.optim.SGD(grouped, lr=self.lr, momentum=self.momentum)


def one_epoch(rows: Tensor, batch_size: int, device: torch.device | str, step: Callable[[Tensor], Tensor]) -> float:
    """One pass in random order: the mean over images ``rows`` (N,) of what ``step`` returns for each batch of them."""
    total = torch.zeros((), device=device)
    for batch in rows[torch.randperm(len(rows))].to(device).split(batch_size):  # type: ignore[no-untyped-call]
        # summed on the device: reading a value every step would stall a GPU
        total += step(batch) * len(batch)
    return float(total) / len(rows)


@torch.no_grad()
def score(
    model: nn.Module,
    data: Dataset,
    images: Tensor,
    labels: Tensor,
    index: Tensor | None = None,
    batch: int | None = None,
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in eval mode on uint8 images (N, C, H, W), all or some; (NaN, NaN) for none.

    Batches hold 1000 images on a GPU, 128 on a CPU, where more of them leave the cache (a convolutional net takes twice
    the time with 1000); they are halved while they are too large for the memory.

    Raises:
        torch.OutOfMemoryError: There was not even room for one.
    """
    batch = batch or (1000 if images.is_cuda else 128)
    chosen = torch.arange(len(images), device=images.device) if index is None else index
    if not len(chosen):
        return math.nan, math.nan
    model.eval()
    batch = min(batch, len(chosen))
    while True:
        try:
            return _score(model, data, images, labels, chosen, batch)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch = (batch + 1) // 2


def _score(
    model: nn.Module, data: Dataset, images: Tensor, labels: Tensor, chosen: Tensor, batch: int
) -> tuple[float, float]:
    loss, correct = 0.0, 0
    for part in chosen.split(batch):  # type: ignore[no-untyped-call]
        logits = model(data.to_float(images[part]))
        loss += float(F.cross_entropy(logits, labels[part], reduction="sum"))
        correct += int((logits.argmax(1) == labels[part]).sum())
    return loss / len(chosen), correct / len(chosen)
