"""What an attack works on (:class:`Bench`) and what it returns (:class:`Proposal`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

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


class Clean(NamedTuple):
    """What a model answers to clean images.

    Attributes:
        labels: Int64 (N,).
        logits: (N, K); None of a model that draws.
        unsteady: Images that it gave another label when it was asked again.
        lasts: Whether it will answer so again: it does not draw, or every draw gave the same logits bit for bit under
            the same seed.
    """

    labels: Tensor
    logits: Tensor | None
    unsteady: int
    lasts: bool


@dataclass(frozen=True)
class Bench:
    """A model set up for judging: one copy for the attack to work on, one that only the referee touches.

    An attack that changes the weights of its copy fools itself, not the referee, and :func:`craft` says so.
    """

    attacked: Victim
    referee: Victim
    _known: dict[bytes, Clean] = field(default_factory=dict, repr=False, compare=False)

    def clean(self, x: Tensor, ask: Callable[[Clean | None], Clean], *, again: bool) -> Clean:
        """What a model answers to clean images (N, C, H, W), asked once for all cells where the answer lasts.

        Args:
            x: The images.
            ask: Asks the referee; given is what it said before, or None.
            again: Whether a model that draws is asked once more although the answer is known.
        """
        key = hashlib.sha256(x.cpu().contiguous().numpy().data).digest() + bytes(str(tuple(x.shape)), "ascii")
        known = self._known.get(key)
        if known is None or (again and known.logits is None):
            known = ask(known)
        self._known.pop(key, None)
        if known.lasts:
            self._known[key] = known
        return known

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
