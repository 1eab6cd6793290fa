"""A purifier that was trained for one model, in front of another (Gu & Rigazio 2014, table 3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from harness.datasets.registry import DatasetInfo
from harness.errors import UserError
from harness.models.purifier import Purified
from harness.training.on_trained import Wrapper


@dataclass(frozen=True, kw_only=True)
class Stacked(Wrapper):
    """The purifier of :attr:`harness.planning.specs.ModelSpec.front` before the base, with nothing trained.

    What it is built upon comes with that purifier already before it, so that nothing is left to do.
    """

    name = "stacked"
    summary = "another model's autoencoder before a trained model; declared in Python, with ModelSpec(front=...)"
    source = "Gu & Rigazio 2014, section 3.2, table 3"
    fronted = True

    def around(self, base: nn.Module, info: DatasetInfo) -> nn.Module:
        """The base as it comes.

        Raises:
            UserError: It comes without a purifier.
        """
        if not isinstance(base, Purified):
            raise UserError(f"{self.name}: the base comes without the purifier that is to stand before it")
        return base
