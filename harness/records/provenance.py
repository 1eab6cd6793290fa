"""Provenance of a result: weights, package versions, commit."""

from __future__ import annotations

from .. import environment, identity
from ..datasets.registry import DatasetInfo
from ..planning.specs import Cell, ModelSpec
from ..schema.base import Provenance
from ..schema.pairs import Declared
from .checkpoints import digests
from .home import Home
from .plans import pair_record
from .prepared import prepared_record


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


def declare(
    home: Home, cell: Cell, info: DatasetInfo, suite: str, argument: str | None = None, *, command: str = ""
) -> Declared:
    """What is known of a pair's result before its shards are merged.

    Args:
        home: Where its models and its attack's preparation are.
        cell: The pair.
        info: Its data set.
        suite: Name of the suite.
        argument: How the data set is named on the command line, if not by its own name.
        command: Measures it again; "" for that of the pair alone.
    """
    planned = pair_record(cell, info, suite, argument)
    prepared = None if cell.prepared_key is None else prepared_record(home.prepared(cell.prepared_key))
    return Declared(
        **{**dict(planned), "command": command or planned.command},
        **dict(provenance(home, cell)),
        declaration=identity.canonical(cell),
        preparation=None if prepared is None else prepared.cost,
    )
