"""Which weights, packages and commit a result is made of."""

from __future__ import annotations

from .. import environment
from ..planning.specs import Cell, ModelSpec
from ..schema.base import Provenance
from .checkpoints import digests
from .home import Home


def provenance(home: Home, cell: Cell, *, judged: bool = True) -> Provenance:
    """What a shard was made with. Another one of any is another shard.

    Args:
        home: Where the models are.
        cell: The pair.
        judged: Whether the victim takes part; preparing, and crafting for transfer, know the crafter alone.
    """
    return made_of(home, cell.crafter, *([cell.victim] if judged else []))


def made_of(home: Home, *specs: ModelSpec) -> Provenance:
    """What is made now of these models."""
    weights = digests(home, {spec.key: spec for spec in specs}.values())
    return Provenance(weights=weights, versions=environment.versions(), git_commit=environment.git_commit())
