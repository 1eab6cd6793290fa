"""``gauntlet reproduce``: run what a study lacks and gather its measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from .. import environment
from ..datasets.registry import Dataset
from ..execution.estimate import estimate
from ..leaderboard import leaderboard
from ..metrics.pairs import Board, Pair
from ..records.boards import boards_from_home, model_state
from ..records.home import Home
from ..records.results import check_result, is_finished, read_pair
from ..schema.base import Cost
from ..schema.models import Card
from ..schema.pairs import Result
from .deciding import SeedCost
from .experiment import Experiment
from .findings import Finding, Findings, MeasurementSource, digest_of_keys
from .quantities import Gallery
from .record import JUDGEMENT_COLUMNS, StudyRecord, by_place
from .study import Measure


def gather(experiment: Experiment, home: Home, *, device: str = "cpu", data: Dataset | None = None) -> StudyRecord:
    """Read back what was measured; what was not run is missing, not guessed.

    Args:
        experiment: What was asked for.
        home: Where it was run.
        device: What it was run on, for the record.
        data: The data set, whose digest is recorded.
    """

    @cache
    def pair(key: str) -> Pair | None:
        folder = home.cell(key)
        return read_pair(folder) if is_finished(folder) else None

    def found(measure: Measure, seed: int) -> Pair | None:
        return pair(experiment.cells[measure, seed].key)

    @cache
    def card(model: str, seed: int) -> Card | None:
        return model_state(home, experiment.model(model, seed).key).card

    def samples(measure: Measure, seed: int) -> pd.DataFrame | None:
        one = found(measure, seed)
        return None if one is None else one.samples

    def cost(measure: Measure, seed: int) -> Cost | None:
        one = found(measure, seed)
        return None if one is None else one.result

    def trouble(measure: Measure, seed: int) -> str:
        one = found(measure, seed)
        return "" if one is None or one.result.status in ("ok", "unclipped") else f"seed {seed}: {one.result.status}"

    def commit(measure: Measure, seed: int) -> str:
        if measure.attack is None:
            one = card(measure.model, seed)
            return "" if one is None else one.git_commit
        judged = found(measure, seed)
        return "" if judged is None else judged.result.git_commit

    def gallery(measure: Measure, seed: int) -> Gallery:
        one = found(measure, seed)
        return {} if one is None else one.gallery

    source = MeasurementSource(
        card,
        samples,
        cost,
        trouble,
        experiment.seeds,
        experiment.info.test_size,
        commit,
        partial(_key, experiment),
        gallery,
    )
    shown = dict.fromkeys(picture.measure for item in experiment.study.items for picture in item.pictures)
    galleries = {measure: images for measure in shown if (images := gallery(measure, experiment.seeds[0]))}
    pairs = [one for cell in experiment.cells.values() if (one := pair(cell.key)) is not None]
    folders = {home.cell(cell.key) for plan in experiment.judgements for cell in plan.battery}
    judging = [check_result(folder) for folder in folders if is_finished(folder)]
    costs = _costs(experiment, home, pair)
    return StudyRecord(
        study=experiment.study,
        findings=by_place(Findings(experiment.study, source, experiment.profile_name, experiment.info.name).rows()),
        judgement=judgement(experiment, home),
        facts=_facts(experiment, home, pairs, judging, costs, device, "" if data is None else data.sha256()),
        galleries=galleries,
    )


def _costs(experiment: Experiment, home: Home, pair: Callable[[str], Pair | None]) -> dict[str, SeedCost]:
    """What one seed of every item and claim takes; those that could not even be foreseen are left out."""
    found = {}
    for name in experiment.study.names:
        part = replace(experiment, study=experiment.study.chosen((name,)))
        cost = _measured_cost(part, home, pair) or _foreseen_cost(part)
        if cost is not None:
            found[name] = cost
    return found


def _measured_cost(part: Experiment, home: Home, pair: Callable[[str], Pair | None]) -> SeedCost | None:
    """The mean over the seeds that are there as a whole, None if none is."""
    found = []
    for seed in part.seeds:
        plan = replace(part, seeds=(seed,)).plan
        cards = [card for spec in plan.models if (card := model_state(home, spec.key).card) is not None]
        pairs = [(cell.n, one.result.seconds) for cell in plan.cells if (one := pair(cell.key)) is not None]
        if len(cards) == len(plan.models) and len(pairs) == len(plan.cells):
            scaled = sum(seconds for n, seconds in pairs if n == part.images)
            fixed = sum(seconds for n, seconds in pairs if n != part.images)
            found.append((sum(card.seconds for card in cards) + fixed, scaled))
    if not found:
        return None
    fixed, scaled = (round(sum(each) / len(found), 1) for each in zip(*found, strict=True))
    return SeedCost(fixed, scaled, part.images, len(found))


def _foreseen_cost(part: Experiment) -> SeedCost | None:
    """An upper bound, from a probe on random images; all pairs count as those of the profile's number of them."""
    with TemporaryDirectory() as nowhere:
        found = estimate([replace(part, seeds=part.seeds[:1]).plan], Home(Path(nowhere)), limit=2.0)
    if found.training_hours is None or found.attack_hours is None:
        return None
    fixed, scaled = (round(3600 * hours, 1) for hours in (found.training_hours, found.attack_hours))
    return SeedCost(fixed, scaled, part.images, 0)


def asked(experiment: Experiment) -> list[Finding]:
    """What a study asks for now, as findings without numbers: for the keys behind each."""

    def nothing(*_: object) -> None:
        return None

    source = MeasurementSource(
        nothing, nothing, nothing, lambda *_: "", experiment.seeds, key=partial(_key, experiment)
    )
    return list(Findings(experiment.study, source, experiment.profile_name, experiment.info.name).rows())


def _key(experiment: Experiment, measure: Measure, seed: int) -> str:
    model = experiment.model(measure.model, seed)
    return model.key if measure.attack is None else experiment.cells[measure, seed].key


def judgement(experiment: Experiment, home: Home) -> pd.DataFrame:
    """What today's batteries leave: a frame of :data:`~harness.studies.record.JUDGEMENT_COLUMNS`.

    A seed that not all attacks of a battery have met is left out: what stands before some of them is no judgement.
    """
    suites = {suite.name for suite in experiment.batteries}
    called = {spec.key: name for name, _, spec in experiment.judged}
    n = min(experiment.profile.battery_samples, experiment.info.test_size)
    rows, digests = [], battery_keys(experiment)
    for board in boards_from_home(home) if called else []:
        if board.suite not in suites:
            continue
        for name in dict.fromkeys(called.values()):
            whole = {key for key in called if called[key] == name and not board.missing.get(key)}
            part = _part(board, whole)
            frame, commits = leaderboard(part), _commits(part)
            frame = frame[frame["n"] == n]
            keys = [digests.get((name, board.suite, norm), "") for norm in frame["norm"]]
            rows.append(frame.assign(model=name, commits=frame["norm"].map(commits), keys=keys))
    columns = list(JUDGEMENT_COLUMNS)
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def _commits(board: Board) -> dict[str, str]:
    """Commits that a board's pairs were made at, by norm, separated by spaces."""
    found: dict[str, set[str]] = {}
    for pair in board.pairs:
        found.setdefault(pair.result.norm, set()).add(pair.result.git_commit)
    return {norm: " ".join(sorted(commits - {""})) for norm, commits in found.items()}


def battery_keys(experiment: Experiment) -> dict[tuple[str, str, str], str]:
    """Digests of the keys of the pairs that batteries ask for, by what the study calls the model, suite and norm."""
    called = {spec.key: name for name, _, spec in experiment.judged}
    keys: dict[tuple[str, str, str], set[str]] = {}
    for plan in experiment.judgements:
        for cell in plan.battery:
            if name := called.get(cell.victim.key):
                keys.setdefault((name, plan.suite.name, cell.threat.norm), set()).add(cell.key)
    return {place: digest_of_keys(found) for place, found in keys.items()}


def _part(board: Board, keys: set[str]) -> Board:
    """A board with some of its models alone."""
    return Board(
        suite=board.suite,
        budgets=board.budgets,
        pairs=[pair for pair in board.pairs if pair.result.model in keys],
        missing={key: names for key, names in board.missing.items() if key in keys},
        models={key: entry for key, entry in board.models.items() if key in keys},
        health={key: facts for key, facts in board.health.items() if key in keys},
        unasked={key: names for key, names in board.unasked.items() if key in keys},
        left_out={key: names for key, names in board.left_out.items() if key in keys},
    )


def _facts(
    experiment: Experiment,
    home: Home,
    pairs: Sequence[Pair],
    judging: Sequence[Result],
    costs: Mapping[str, SeedCost],
    device: str,
    data_sha256: str,
) -> dict[str, Any]:
    cards = [card for spec in experiment.plan.models if (card := model_state(home, spec.key).card) is not None]
    made: list[Card | Result] = [*cards, *(pair.result for pair in pairs), *judging]
    asked = {spec.key for spec in (*experiment.plan.models, *(spec for _, _, spec in experiment.judged))}
    return {
        "study": experiment.study.name,
        "profile": experiment.profile_name,
        "summary": experiment.profile.summary,
        "dataset": experiment.info.name,
        "stands_in_for": "" if experiment.info.name == experiment.profile.dataset else experiment.profile.dataset,
        "data_sha256": data_sha256,
        "seeds": list(experiment.seeds),
        "samples": experiment.images,
        "test_size": experiment.info.test_size,
        "command": experiment.command,
        "only": list(experiment.only),
        "skipped": [called for name, called in experiment.whole.defended if name in experiment.profile.skipped],
        "models": len(experiment.plan.models),
        "pairs": len(experiment.plan.cells),
        "training_seconds": round(sum(card.seconds for card in cards)),
        "attack_seconds": round(sum(pair.result.seconds for pair in pairs)),
        "costs": {name: asdict(cost) for name, cost in costs.items()},
        "versions": environment.versions(),
        "device": device,
        "machines": sorted({one.machine for one in made} - {""}),
        "days": sorted({one.made for one in made} - {""}),
        "commits": sorted({one.git_commit for one in made} - {""}),
        "declared": {
            name: f"{spec.architecture}: {spec.label(experiment.info)}"
            for (name, seed), spec in experiment.models.items()
            if seed == experiment.seeds[0] and spec.key in asked
        },
    }
