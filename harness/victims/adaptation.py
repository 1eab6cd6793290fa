"""Adaptive-attack settings (remedies): log-probabilities, temperature, EOT draws, BPDA stand-ins.

A remedy changes only what attacks see. The referee judges the model as it is, so that a remedy can find more
adversarial images but can never make one up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

from ..errors import UserError
from ..options import check_choices

Gradients = Literal["sound", "wrong", "missing"]

VOTES: Final = 25
"""Draws behind every label of a stochastic model, unless its remedy says otherwise: the one it gives most often."""


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """How attacks see a model.

    Attributes:
        probabilities: The outputs are probabilities: attacks see their logarithm.
        temperature: Attacks see the logits divided by this; above 1 where saturated logits make gradients vanish.
        draws: The model is stochastic: attacks see the mean logits of so many draws, and so the mean gradient (EOT,
            Athalye et al. 2018). 1 for a deterministic model, and for one that averages on its own account.
        votes: The model is stochastic: the referee asks so many times for each label. ``None``: :data:`VOTES` times if
            attacks see several draws; if not, the model is deterministic and asked once.
        stand_ins: ``(module, function)`` pairs for parts without a useful gradient (BPDA, Athalye et al. 2018): the
            named submodule computes forward, the function's gradient is used backward. ``"identity"`` passes it on.
        gradients: The model's own, as far as is known. Where they are wrong (or zero) plans ask more attacks that need
            none; where they are missing those that follow them, which would raise, are left out as well
            (:mod:`harness.planning.gradient_free`). What a victim answers stays as it is.
        grid: The model answers files otherwise than the floats beside them: attacks see each image rounded to so many
            steps of [0, 1] (255: a file of 8 bits), and the gradient there is that of the image. ``None``: as it is.

    Raises:
        UserError: A temperature that is not positive and finite, fewer draws or votes than one.
    """

    name: ClassVar[str] = "remedy"

    probabilities: bool = False
    temperature: float = 1.0
    draws: int = 1
    stand_ins: tuple[tuple[str, str], ...] = ()
    votes: int | None = field(default=None, metadata={"identity": "set"})
    grid: int | None = field(default=None, metadata={"identity": "set"})
    gradients: Gradients = field(default="sound", metadata={"identity": "set"})

    def __post_init__(self) -> None:
        check_choices(self)
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"temperature must be positive and finite, got {self.temperature}")
        if self.draws < 1:
            raise UserError(f"draws must be at least 1, got {self.draws}")
        if self.votes is not None and self.votes < 1:
            raise UserError(f"votes must be at least 1, got {self.votes}")
        if self.grid is not None and self.grid < 1:
            raise UserError(f"grid must be at least 1, got {self.grid}")

    @property
    def stochastic(self) -> bool:
        """Whether the model draws at random: what one call says of an image another may not."""
        return self.draws > 1 or self.votes is not None

    @property
    def calls(self) -> int | None:
        """Calls behind each label that the referee asks for; None for a deterministic model."""
        return self.votes or (VOTES if self.draws > 1 else None)

    def __bool__(self) -> bool:
        return self != Remedy()

    def __str__(self) -> str:
        parts = ["logarithm of its probabilities"] if self.probabilities else []
        parts += [f"logits / {self.temperature:g}"] if self.temperature != 1 else []
        parts += [f"gradients averaged over {self.draws} draws"] if self.draws > 1 else []
        parts += [f"{function} for the gradient of {module}" for module, function in self.stand_ins]
        parts += [f"images rounded to steps of 1/{self.grid}"] if self.grid else []
        parts += (
            [f"more questions about its answers, for gradients are {self.gradients}"]
            if self.gradients != "sound"
            else []
        )
        parts += [f"labels by {self.votes} {'votes' if self.votes > 1 else 'vote'}"] if self.votes else []
        return ", ".join(parts)
