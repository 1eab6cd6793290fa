"""Boards from the runs of an MLflow store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn, TypeVar

from ..errors import UserError
from ..metrics.pairs import Board, Pair
from ..records.boards import boards, certificate_facts, model_state, planted_facts, probe_facts, read_runs
from ..records.files import is_aside, parse_record, read_json
from ..records.home import Home
from ..records.merge import same_numbers
from ..records.plans import Spoiled, attempt
from ..records.results import Damaged, is_finished, read_pair
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
        found = attempt(lambda: read_pair(folder, run.info.run_id, connection.url(run)), folder, spoiled)
        if found is not None and found.result.cell != key:
            wrong = Damaged(f"{folder / 'result.json'} is damaged (it is that of {found.result.cell})")
            return attempt(lambda: _raise(wrong), folder, spoiled)
        if found is not None and (other := _otherwise(connection.home.cell(key), found)):
            return attempt(lambda: _raise(other), folder, spoiled)
        return found

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


def _raise(error: UserError) -> NoReturn:
    raise error


def _otherwise(folder: Path, tracked: Pair) -> UserError | None:
    """The error where a tracked result is not the one in the home; None where it is, or the home has none to trust."""
    if not is_finished(folder):
        return None
    try:
        here = read_pair(folder)
    except UserError:
        return None  # what was tracked is whole, and --from home names the damage
    if same_numbers(here, tracked):
        return None
    return UserError(f"the tracked run {tracked.run_id} says otherwise than {folder}, which --from home reads")


def tracked_otherwise(home: Home) -> list[str]:
    """Lines on results of a home that its own MLflow store holds otherwise. Asks no server."""
    found = []
    for folder in sorted(home.path.glob("cells/*/")):
        if is_aside(folder) or not is_finished(folder):
            continue
        run = attempt(lambda f=folder: read_runs(f), folder, lambda *_: None)  # type: ignore[misc]
        root = home.path / "mlflow-artifacts"
        copy = root / str((run or {}).get("home")) / "artifacts" / "result.json"
        if root.resolve() not in copy.resolve().parents:
            continue  # a stranger's home may name anything
        if copy.is_file() and copy.read_bytes() != (folder / "result.json").read_bytes():
            found.append(f"{folder} says otherwise than what was tracked of it in {copy.parent}")
    return found
