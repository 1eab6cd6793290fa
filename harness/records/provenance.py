"""Which weights and which earlier results a result was made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import environment
from ..planning.specs import Cell, ModelSpec
from .checkpoints import has_model, weights_digest
from .home import Home


def provenance(home: Home, cell: Cell, *, judged: bool = True) -> dict[str, Any]:
    """What a shard was made with: digests of the weights, versions, commit. Another one of any is another shard.

    Args:
        home: Where the models are.
        cell: The pair.
        judged: Whether the victim takes part; preparing, and crafting for transfer, know the crafter alone.
    """
    specs = {cell.crafter.key: cell.crafter} | ({cell.victim.key: cell.victim} if judged else {})
    made = {"versions": environment.versions(), "git_commit": environment.git_commit()}
    return {"weights": digests(home, specs), **made}


def digests(home: Home, specs: Mapping[str, ModelSpec]) -> dict[str, str]:
    """Digests of the weights of those models that are there, by key."""
    return {key: weights_digest(home, spec) for key, spec in specs.items() if has_model(home, spec)}
