"""Networks as sequences of named stages whose activations can be tapped."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]
Tap = Callable[[str, Tensor], Tensor]


class Stages(nn.Module):
    """A classifier as an ordered sequence of named stages, the last of which gives the logits.

    Args:
        stages: Name and module of each stage, in order.
        hidden: Names of the stages whose output is a hidden representation (after its nonlinearity).
        unsupervised: Names of the stages that a trainer fits without labels, in order, each as the encoder of an
            autoencoder, and then leaves as they are (:meth:`harness.training.trainer.Trainer.pretrain`). What enters
            and leaves them lies in [0, 1].

    Raises:
        ValueError: ``hidden`` or ``unsupervised`` names a stage that is none.
    """

    def __init__(
        self, stages: OrderedDict[str, nn.Module], hidden: tuple[str, ...], unsupervised: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        missing = {*hidden, *unsupervised} - set(stages)
        if missing:
            raise ValueError(f"no stage named {', '.join(sorted(missing))}")
        self.stages = nn.ModuleDict(stages)
        self.hidden = hidden
        self.unsupervised = unsupervised

    def forward(self, x: Tensor, tap: Tap | None = None) -> Tensor:
        """Logits of a batch.

        Args:
            x: Images (N, C, H, W) in [0, 1].
            tap: Called as ``tap(name, output)`` after each stage; what it returns goes to the next stage.
        """
        for name, stage in self.stages.items():
            x = stage(x)
            if tap is not None:
                x = tap(name, x)
        return x

    def entering(self, name: str, x: Tensor) -> Tensor:
        """What enters the stage of that name, from images (N, C, H, W) in [0, 1].

        Raises:
            KeyError: No such stage.
        """
        for stage, module in self.stages.items():
            if stage == name:
                return x
            x = module(x)
        raise KeyError(name)


class Standardize(nn.Module):
    """(x - mean) / std per channel, inside the model, so that attacks see [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Standardised images, same shape."""
        return (x - self.mean) / self.std
