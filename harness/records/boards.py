"""Boards: results of a suite, gathered from plans, results and model cards.

A plan is written to ``plans/KEY.json`` before anything runs. Reports and the tracking store are made from these
files, the cells' results and the models' cards alone, so both can be rebuilt at any time.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from ..errors import UserError
from ..metrics.pairs import Board, Pair
from ..schema.certificates import CertificateEntry, CertificateFacts, CertificateRecord, together
from ..schema.models import FailedTraining, KnownModel, ModelEntry, ModelName, ModelState
from ..schema.pairs import BatteryPair
from ..schema.plans import PlanRecord
from ..schema.probes import PlantedFacts, PlantedRecord, ProbeFacts, ProbeRecord
from . import seals
from .checkpoints import read_card, weights_standing
from .files import read_json, read_record
from .home import Home, no_runs
from .plans import Spoiled, attempt, read_plans
from .results import Damaged, is_finished, read_pair


def boards(
    plans: Sequence[PlanRecord],
    pair: Callable[[str], Pair | None],
    model: Callable[[str], ModelState],
    facts: Callable[[str, str], ProbeFacts | None],
    proved: Callable[[CertificateEntry], CertificateFacts | None] = lambda _: None,
    planted: Callable[[str, str], PlantedFacts | None] = lambda model, planting: None,
) -> list[Board]:
    """One board a suite, data set and number of images, from every plan of it.

    A model is complete once every pair of the suite's newest battery is done, also those that no command asked for
    (``--attack`` picks some): a model that met fewer attacks must not rank above one that met all. The board tells the
    two apart: a pair that was asked for and has no result is missing, one that nobody asked for is unasked.

    Attacks that a plan leaves out of its batteries on purpose (``left_out``) are no part of them. What an earlier plan
    found with one of them counts nevertheless: adversarials do not go away because nobody looks.

    Where a trainer or an attack was declared anew under the same name (a bumped version, a changed default), the newest
    plan's model or pair stands and the older one is left out. Plans come oldest first; of budgets the newest count. A
    pair that was run in a cascade and in full counts twice.
    Images that somebody submitted are in the battery of their model alone, and no later plan takes them out.
    """
    found = []
    asked = frozenset(cell.cell for record in plans for cell in record.cells)
    for suite in dict.fromkeys(record.suite for record in plans):
        mine = [record for record in plans if record.suite == suite]
        sets = dict.fromkeys((cell.dataset, cell.n) for record in mine for cell in record.battery if not cell.submitted)
        found += [_board(mine, asked, suite, dataset, n, pair, model, facts, proved, planted) for dataset, n in sets]
    return found


_Slot = tuple[str, float | None, int]
"""What a pair is called, its eps (a name rounds it), and how many pairs of its plan and model are called so before."""


def _slots(cells: Sequence[BatteryPair]) -> Iterator[tuple[_Slot, BatteryPair]]:
    """Pairs of one plan by slots that tell them apart."""
    counts: Counter[tuple[str, str, float | None]] = Counter()
    for cell in cells:
        called = (cell.model, cell.pair_name, cell.eps)
        yield (cell.pair_name, cell.eps, counts[called]), cell
        counts[called] += 1


def _board(
    plans: Sequence[PlanRecord],
    wanted: Collection[str],
    suite: str,
    dataset: str,
    n: int,
    pair: Callable[[str], Pair | None],
    model: Callable[[str], ModelState],
    facts: Callable[[str, str], ProbeFacts | None],
    proved: Callable[[CertificateEntry], CertificateFacts | None],
    planted: Callable[[str, str], PlantedFacts | None],
) -> Board:
    models: dict[tuple[str, str, int], ModelEntry] = {}
    battery: dict[str, dict[tuple[_Slot, bool], BatteryPair]] = {}  # by model key; in a cascade or not
    budgets: dict[str, tuple[float, ...]] = {}
    newest: dict[_Slot, BatteryPair] = {}
    probes: dict[str, dict[str, str]] = {}
    certificates: dict[str, dict[str, CertificateEntry]] = {}
    screens: dict[str, dict[str, CertificateEntry]] = {}
    plantings: dict[str, dict[str, str]] = {}
    submitted: dict[str, dict[str, BatteryPair]] = {}  # by model key, by key of the pair
    out: dict[str, tuple[str, ...]] = {}  # by model key, what its newest plan leaves out
    for record in plans:
        here = [cell for cell in record.battery if (cell.dataset, cell.n) == (dataset, n)]
        for cell in here:
            if cell.submitted:
                submitted.setdefault(cell.model, {})[cell.cell] = cell
        here = [cell for cell in here if not cell.submitted]
        if not here:
            continue
        budgets = record.budgets[dataset]
        slots = list(_slots(here))
        newest = dict(slots)
        judged = {cell.model for cell in here}
        here_named = {(m.architecture, m.defense, m.seed): m for m in record.models if m.model in judged}
        renamed = {m.model for m in here_named.values()}  # a model may be called otherwise by now
        models = {name: m for name, m in models.items() if m.model not in renamed or name in here_named} | here_named
        asked: dict[str, set[_Slot]] = {}
        for slot, cell in slots:
            asked.setdefault(cell.model, set()).add(slot)
        # a plan lists all that its suite asks of a model: what it lacks is asked no more, unless it says why
        left = record.left_out
        for key, wanted_here in asked.items():
            before = battery.get(key, {}).items()
            battery[key] = {place: cell for place, cell in before if place[0] in wanted_here or cell.attack in left}
            out[key] = left
        for slot, cell in slots:
            known = battery[cell.model]
            other = known.get((slot, not cell.cascade))
            done = other is not None and pair(other.cell) is not None
            # both count where both are done: what one broke the attacks after it in a cascade were not shown
            if done and cell.cascade and pair(cell.cell) is None:
                continue
            known[slot, cell.cascade] = cell
            if not done:
                known.pop((slot, not cell.cascade), None)
        for look in record.probes:
            if look.model in judged:
                probes.setdefault(look.model, {})[look.norm] = look.probe
        for one in record.certificates:
            if one.model in judged:
                (screens if one.screen else certificates).setdefault(one.model, {})[one.norm] = one
        for look in record.plantings:
            if look.model in judged:
                plantings.setdefault(look.model, {})[look.norm] = look.probe
    pairs: list[Pair] = []
    missing: dict[str, list[str]] = {}
    unasked: dict[str, list[str]] = {}
    left_out: dict[str, list[str]] = {}
    first = {name[:-1]: place for place, name in reversed(list(enumerate(models)))}
    # seeds in their order, whichever plan came first: a mean over them is the same to the last bit
    models = dict(sorted(models.items(), key=lambda item: (first[item[0][:-1]], item[0][-1])))
    for entry in models.values():
        key = entry.model
        mine, left = [*battery[key].values(), *submitted.get(key, {}).values()], out[key]
        results = [(cell, pair(cell.cell)) for cell in mine]
        pairs += [_as_called(result, entry) for _, result in results if result is not None]
        none = [cell for cell, result in results if result is None and cell.attack not in left]
        nobodys = [cell.pair_name for cell in none if cell.cell not in wanted]
        absent = [cell.pair_name for cell in none if cell.cell in wanted]
        there = {slot for slot, _ in battery[key]}
        absent += sorted(
            cell.pair_name
            for slot, cell in newest.items()
            if slot not in there and cell.attack not in left and not _spared(cell, entry)
        )
        ran = {label: [result is not None for cell, result in results if cell.attack == label] for label in left}
        never = [label for label, ends in ran.items() if not ends or not all(ends)]
        for kind, labels in ((missing, absent), (unasked, nobodys), (left_out, never)):
            if labels:
                kind[key] = labels
    health = {
        key: {norm: found for norm, probe in looks.items() if (found := facts(key, probe)) is not None}
        for key, looks in probes.items()
    }
    certain, screened = (
        {
            key: {norm: proof for norm, asked_for in each.items() if (proof := proved(asked_for)) is not None}
            for key, each in entries.items()
        }
        for entries in (certificates, screens)
    )
    for key, looks in plantings.items():
        for norm, planting in looks.items():
            if norm in health.get(key, {}) and (grown := planted(key, planting)) is not None:
                health[key][norm] = health[key][norm].model_copy(update={"planted": grown})
    return Board(
        suite=suite,
        budgets={dataset: budgets},
        pairs=pairs,
        missing=missing,
        models={entry.model: known_model(entry, model(entry.model)) for entry in models.values()},
        health=health,
        unasked=unasked,
        left_out=left_out,
        certificates=certain,
        screens=screened,
    )


def _as_called(pair: Pair, entry: ModelEntry) -> Pair:
    """A pair under the name that its model has today."""
    name = ModelName.of(entry)
    if ModelName.of(pair.result) == name:
        return pair
    return dataclasses.replace(pair, result=pair.result.model_copy(update=dict(name)))


def known_model(name: ModelName, state: ModelState) -> KnownModel:
    """What a board knows of a model."""
    return KnownModel(**dict(ModelName.of(name)), **dict(state))


def _spared(cell: BatteryPair, entry: ModelEntry) -> bool:
    """Whether a pair of another model's battery is none of this one's.

    It may be a transfer from this very model, and a model that draws has no boundary to walk along.
    """
    return bool(cell.source or (cell.needs_a_boundary and entry.stochastic))


def model_state(home: Home, key: str, spoiled: Spoiled | None = None) -> ModelState:
    """Whether a model was trained, and its card; one whose files are damaged was not, if there is somebody to tell.

    Raises:
        UserError: A file is damaged and nobody is to be told.
    """
    folder = home.model(key)

    def read() -> ModelState:
        if (folder / "card.json").exists():
            return ModelState(card=read_card(folder / "card.json"))
        failed = folder / "failed.json"
        error = read_record(failed, FailedTraining).error if failed.exists() else "not trained"
        return ModelState(status="failed", error=error)

    return attempt(read, folder, spoiled) or ModelState(status="failed", error="its card is damaged")


def boards_from_home(home: Home, store: str | None = None, spoiled: Spoiled | None = None) -> list[Board]:
    """Boards from the result directories, with run ids of the tracking store, of any for None.

    Whatever is damaged is told and left out: a pair counts as not run, a model as not trained.

    Raises:
        UserError: Nothing was run there, or a file is damaged and nobody is to be told.
    """
    plans = read_plans(home, spoiled)
    if not plans:
        raise no_runs(home.path)

    declared = {cell.cell: cell for record in plans for cell in (*record.cells, *record.battery)}

    def pair(key: str) -> Pair | None:
        folder = home.cell(key)
        if not is_finished(folder):
            return None
        runs = read_runs(folder)
        run_id = runs.get(store, "") if store is not None else next(iter(runs.values()), "")
        found = read_pair(folder, run_id=run_id)
        if other := found.result.misplaced(declared[key]):
            raise Damaged(f"{folder / 'result.json'} is damaged (its {other} is not that of its plan)")
        if declared[key].submitted and (now := weights_standing(home, found.result.weights)).state != "fresh":
            raise Damaged(f"{folder} is of other weights ({now.reason}): submit its images again")
        return found

    return boards(
        plans,
        lru_cache(maxsize=None)(lambda key: attempt(lambda: pair(key), home.cell(key), spoiled)),
        lambda key: model_state(home, key, spoiled),
        lambda _, probe: attempt(lambda: probe_facts(home, probe), home.health(probe), spoiled),
        lambda entry: attempt(
            lambda: certificate_facts(home, entry), home.certificate(entry.certificate, 0).parent, spoiled
        ),
        lambda _, planting: attempt(lambda: planted_facts(home, planting), home.planted(planting), spoiled),
    )


def probe_facts(home: Home, probe: str) -> ProbeFacts | None:
    """What a probe found, None if it was not run."""
    path = home.health(probe)
    return read_probe(path).facts if path.exists() else None


def read_probe(path: Path) -> ProbeRecord:
    """The record of a probe.

    Raises:
        UserError: It is damaged, or another's; the message names it.
    """
    found = read_record(path, ProbeRecord, "the probe's record")
    seals.in_place(found.key, path, path.stem)
    return found


def certificate_facts(home: Home, entry: CertificateEntry) -> CertificateFacts | None:
    """What a certificate proves, None unless all of its shards are there."""
    paths = [home.certificate(entry.certificate, shard) for shard in range(entry.shards)]
    if not paths or not all(path.exists() for path in paths):
        return None
    return together(tuple(read_record(path, CertificateRecord, "the certificate").facts for path in paths))


def planted_facts(home: Home, planting: str) -> PlantedFacts | None:
    """What attacks found of planted adversarials, None if it was not asked."""
    path = home.planted(planting)
    return read_record(path, PlantedRecord, "the record of planted adversarials").facts if path.exists() else None


def read_runs(folder: Path) -> dict[str, str]:
    """MLflow run ids of a plan, model or pair, by the tracking store."""
    path = folder / "runs.json"
    runs = read_json(path) if path.exists() else {}
    if not isinstance(runs, dict):
        raise UserError(f"{path} is damaged (not a JSON object)")
    return runs
