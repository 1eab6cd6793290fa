"""Provenance of a result: weights, package versions, commit."""

from __future__ import annotations

from collections.abc import Iterable

from .. import environment, identity
from ..planning.plan import Plan
from ..planning.specs import Cell, ModelSpec
from ..schema.base import Origin, Provenance
from ..schema.pairs import Declared
from .checkpoints import digests
from .home import Home
from .plans import command, pair_record
from .prepared import prepared_record


def provenance(home: Home, cell: Cell, *, judged: bool = True, before: Iterable[ModelSpec] = ()) -> Provenance:
    """What a shard was made with. Another one of any is another shard.

    Not ``judged``, it is made by the crafter alone: preparing, and crafting for transfer, do not know the victim.
    ``before`` are the models that images of earlier attacks of a cascade were crafted on: what these left depends on
    them.
    """
    return made_of(home, cell.crafter, *([cell.victim, *before] if judged else []))


def made_of(home: Home, *specs: ModelSpec) -> Provenance:
    """What is made now of these models."""
    weights = digests(home, {spec.key: spec for spec in specs}.values())
    return Provenance(weights=weights, versions=environment.versions(), git_commit=environment.git_commit())


def origin() -> Origin:
    """This machine and day."""
    return Origin(machine=environment.machine(), made=environment.today())


def declare(home: Home, cell: Cell, plan: Plan) -> Declared:
    """What is known of a pair's result before its shards are merged."""
    prepared = None if cell.prepared_key is None else prepared_record(home.prepared(cell.prepared_key))
    return Declared(
        **dict(pair_record(cell, plan.infos[cell.victim.dataset], command(plan, cell))),
        **dict(provenance(home, cell, before=plan.sources_before(cell))),
        **dict(origin()),
        declaration=identity.canonical(cell),
        preparation=None if prepared is None else prepared.cost,
    )
