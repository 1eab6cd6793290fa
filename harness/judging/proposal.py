"""What an attack works on (:class:`Bench`) and what it returns (:class:`Proposal`)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..victims.adaptation import Remedy
from ..victims.harvest import Harvest
from ..victims.victim import Victim


@dataclass(frozen=True)
class Proposal:
    """What an attack returned for the images it was given, and what that cost.

    Attributes:
        x_adv: Whatever came back; None if the attack raised.
        seconds: Wall time of the call.
        forwards: Images sent forward through the model in all.
        backwards: Images sent backward.
        errors: What was raised, as ``"Type: message"``.
        harvest: What the attack met on its way; None if nobody looked, as where images are crafted for other models.
    """

    x_adv: object
    seconds: float
    forwards: int
    backwards: int
    errors: tuple[str, ...] = ()
    harvest: Harvest | None = None


@dataclass(frozen=True)
class Bench:
    """A model set up for judging: one copy for the attack to work on, one that only the referee touches.

    An attack that changes the weights of its copy fools itself, not the referee, and :func:`craft` says so.
    """

    attacked: Victim
    referee: Victim
    _clean: dict[bytes, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def clean(self, x: Tensor) -> Tensor:
        """The referee's logits (N, K) of clean images (N, C, H, W), for all cells alike: a batch is asked about once.

        Not for a model that draws, whose every draw counts.
        """
        key = hashlib.sha256(x.cpu().contiguous().numpy().data).digest() + bytes(str(tuple(x.shape)), "ascii")
        if key not in self._clean:
            self._clean[key] = self.referee.logits(x)
        return self._clean[key]

    @classmethod
    def of(
        cls, model: nn.Module, classes: int | None, device: torch.device | str, remedy: Remedy | None = None
    ) -> Bench:
        """Set up copies of a model, which stays as it is; the referee's is asked :attr:`Remedy.calls` times."""
        votes = remedy.calls if remedy is not None else None
        return cls(
            Victim(model, classes=classes, device=device, remedy=remedy, fast=True),
            Victim(model, classes=classes, device=device, votes=votes),
        )
