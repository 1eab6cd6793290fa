"""What the attacked copy of a model is given so that an attack meets its true weakness, not its disguise.

A remedy changes only what attacks see. The referee judges the model as it is, so that a remedy can find more
adversarial images but can never make one up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

from .errors import UserError

VOTES: Final = 25
"""Draws behind every label of a stochastic model: the one it gives most often is its label."""


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """How attacks see a model.

    Attributes:
        probabilities: The outputs are probabilities: attacks see their logarithm.
        temperature: Attacks see the logits divided by this; above 1 where saturated logits make gradients vanish.
        draws: The model is stochastic: attacks see the mean logits of so many draws, and so the mean gradient (EOT,
            Athalye et al. 2018), and the referee asks :data:`VOTES` times. 1 for a deterministic model.
        stand_ins: ``(module, function)`` pairs for parts without a useful gradient (BPDA, Athalye et al. 2018): the
            named submodule computes forward, the function's gradient is used backward. ``"identity"`` passes it on.

    Raises:
        UserError: A temperature that is not positive and finite, fewer draws than one.
    """

    name: ClassVar[str] = "remedy"

    probabilities: bool = False
    temperature: float = 1.0
    draws: int = 1
    stand_ins: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"temperature must be positive and finite, got {self.temperature}")
        if self.draws < 1:
            raise UserError(f"draws must be at least 1, got {self.draws}")

    def __bool__(self) -> bool:
        return self != Remedy()

    def __str__(self) -> str:
        parts = ["logarithm of its probabilities"] if self.probabilities else []
        parts += [f"logits / {self.temperature:g}"] if self.temperature != 1 else []
        parts += [f"gradients averaged over {self.draws} draws"] if self.draws > 1 else []
        parts += [f"{function} for the gradient of {module}" for module, function in self.stand_ins]
        return ", ".join(parts)
