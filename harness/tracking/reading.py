"""Boards from the runs of an MLflow store."""

from __future__ import annotations

import json
from typing import TypeVar

from ..errors import UserError
from ..metrics.pairs import Board, Pair
from ..records.boards import boards, certificate_facts, model_state, planted_facts, probe_facts
from ..records.files import parse_record, read_json
from ..records.plans import Spoiled, attempt
from ..records.results import read_pair
from ..schema.certificates import CertificateEntry, CertificateFacts
from ..schema.models import Card, ModelState
from ..schema.plans import PlanRecord
from ..schema.probes import PlantedFacts, ProbeFacts
from .connection import Connection

Kept = TypeVar("Kept", ProbeFacts, CertificateFacts, PlantedFacts)


def read_boards(connection: Connection, spoiled: Spoiled | None = None) -> list[Board]:
    """Boards from the tracked runs of this home.

    Raises:
        UserError: Nothing was tracked there, or a file is damaged and nobody is to be told.
        Unreachable: The store did not answer.
    """
    where = f"tags.`gauntlet.kind` = 'plan' and tags.`gauntlet.origin` = '{connection.origin}'"
    found = connection.search(where)
    plans = [connection.record(run, "plan.json", PlanRecord) for run in reversed(found)]
    if not plans:
        raise UserError(
            f"no tracked runs of {connection.home.path} in {connection.store}; or read its files with --from home"
        )
    ours = f"tags.`gauntlet.origin` = '{connection.origin}' and tags.`gauntlet.kind`"
    pair_runs = connection.search(f"{ours} = 'pair' and attributes.status = 'FINISHED'")
    model_runs = connection.search(f"{ours} = 'model'")
    pairs = {run.data.tags["gauntlet.pair"]: run for run in pair_runs}
    models = {run.data.tags["gauntlet.model"]: run for run in model_runs}

    def pair(key: str) -> Pair | None:
        if key not in pairs:
            return None
        run = pairs[key]
        folder = connection.artifacts(run)
        return attempt(lambda: read_pair(folder, run.info.run_id, connection.url(run)), folder, spoiled)

    def model(key: str) -> ModelState:
        local = model_state(connection.home, key, spoiled)
        if local.status == "ok" or key not in models:
            return local
        return ModelState(card=connection.record(models[key], "card.json", Card))

    def tracked(kind: str, of: type[Kept], key: str, name: str) -> Kept | None:
        """Facts of a model by their key, from the artifacts of that kind that its run has."""
        files = sorted(connection.artifacts(models[key]).glob(f"{kind}-*.json")) if key in models else []
        for file in files:
            if name in (found := read_json(file)):
                return parse_record(json.dumps(found[name]), of, file)
        return None

    def facts(key: str, probe: str) -> ProbeFacts | None:
        return probe_facts(connection.home, probe) or tracked("health", ProbeFacts, key, probe)

    def proved(entry: CertificateEntry) -> CertificateFacts | None:
        local = certificate_facts(connection.home, entry)
        return local or tracked("certificates", CertificateFacts, entry.model, entry.certificate)

    def planted(key: str, planting: str) -> PlantedFacts | None:
        return planted_facts(connection.home, planting) or tracked("planted", PlantedFacts, key, planting)

    return boards(plans, pair, model, facts, proved, planted)
