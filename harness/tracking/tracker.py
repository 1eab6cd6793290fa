"""Delivery of results to MLflow: by the driver alone, from the records on disk.

One run per pair, nested under its model's run, itself under the run of the command that first asked for it. What
could not be delivered waits as a marker in ``pending/``; the next command tries again. A marker says ``begun``
before its run is created, so that an interrupted delivery is found again (by the run's tags) and neither doubled
nor left half written.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import UserError, describe
from ..leaderboard import bands_of, contradictions
from ..metrics.pairs import Board, Pair, pair_rows
from ..records import seals
from ..records.boards import boards_from_home, certificate_facts, model_state, planted_facts, probe_facts
from ..records.files import earlier, flat, is_aside, json_text, read_json, read_record, sealed, write_json, write_record
from ..records.home import Home
from ..records.plans import Spoiled, attempt, read_plan, read_plans
from ..records.results import is_finished, read_pair
from ..schema.base import Record
from ..schema.counts import plural
from ..schema.goals import UNTARGETED
from ..schema.models import KnownModel, ModelEntry, ModelName
from ..schema.plans import Marker, PlanRecord
from ..trust.grade import Trust, trust
from .connection import Connection, Judged, Unreachable
from .payloads import (
    EPS_STEPS,
    attack_table,
    certificate_metrics,
    curve_points,
    images_digest,
    left_metric,
    logged_name,
    mlflow_name,
    model_metrics,
    model_name,
    pair_metrics,
    planted_metrics,
    reproduce_note,
    sort_key,
    stale,
)

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Run


TABLES: Final = "mlflow.loggedArtifacts"
"""Tag by which the UI knows of tables among a run's artifacts."""
LAYOUT: Final = "models"
"""How summaries are laid out; a plan that was closed in another way is closed again."""


class Tracker(Connection):
    """Delivers a home's records to one MLflow store."""

    def __init__(self, home: Home, uri: str) -> None:
        super().__init__(home, uri)
        self._plans: dict[str, PlanRecord] = {}
        self._there: set[tuple[str, str]] = set()

    def reconcile(self) -> int:
        """Forget runs that the store has no more, so that they are delivered again, and remove those it has twice.

        Stores are deleted, put back from a copy, or emptied in MLflow's UI; and a home may lose its ``runs.json``,
        which then are found by their tags. Only while no other process works on the home.

        Returns:
            Runs of this home that the store had lost.

        Raises:
            Unreachable: The store did not answer.
        """
        if self.vanished():
            self.reopened()
        folders = {"pair": "cells", "model": "models", "plan": "plans"}
        found = self.tracked()
        self._there = {(one.kind, one.key) for one in found}
        lost, again = 0, set()
        for kind, folder in folders.items():
            has: dict[str, set[str]] = {}
            for one in found:
                if one.kind == kind:
                    has.setdefault(one.key, set()).add(one.run)
            for place in (self.home.path / folder).glob("*/"):
                if is_aside(place):
                    continue
                runs, there = self.runs(place), has.get(place.name, set())
                known = runs.get(self.store)
                if known is None:
                    again |= {place.name} if there else set()
                elif known not in there:
                    lost += 1
                    again.add(place.name)
                    write_json(place / "runs.json", {at: run for at, run in runs.items() if at != self.store})
                else:
                    for twice in there - {known}:
                        self.guard(self.client.delete_run, twice)
        if again:
            self.reopen()
            for record in read_plans(self.home, lambda path, error: None):
                self.mark_untracked(record.plan, (cell.cell for cell in record.cells if cell.cell in again))
        if lost:
            self.notes.append(f"{plural(lost, 'run')} of this home had gone from the tracking store: delivered again")
        return lost

    def mark(self, plan: str, cell: str) -> None:
        """Note that a cell's result is to be delivered."""
        again = bool(earlier(self.home.cell(cell)))  # an earlier result was tracked, perhaps
        marker = self.home.pending / f"{cell}.json"
        begun = _failed(marker).exists() or ("pair", cell) in self._there
        begun = begun or bool(earlier(self.home.cell(cell) / "runs.json"))
        write_record(marker, Marker(plan=plan, cell=cell, begun=begun, again=again))

    def mark_untracked(self, plan: str, cells: Iterable[str]) -> None:
        """Note those of a plan's finished results that this store has never seen: another was used before, perhaps."""
        for cell in cells:
            folder = self.home.cell(cell)
            untracked = is_finished(folder) and self.store not in self.runs(folder)
            if untracked and not (self.home.pending / f"{cell}.json").exists():
                self.mark(plan, cell)

    def waiting(self) -> list[Path]:
        """Markers of results not delivered yet, oldest first."""
        return sorted(self.home.pending.glob("*.json"), key=lambda file: (file.stat().st_mtime, file.name))

    def deliver(self, marker: Path) -> None:
        """Deliver one result and remove its marker.

        Raises:
            Unreachable: The store did not answer; the marker stays.
            UserError: The store refused, or a file is damaged; the marker stays.
        """
        note = read_record(marker, Marker, "the marker")
        folder = self.home.cell(note.cell)
        if is_finished(folder) and self.store not in self.runs(folder):
            pair = read_pair(folder)
            plan = self._plan(note.plan)
            parent = self._model_run(plan, pair.result.model)
            run_id = None
            if note.begun or note.again:
                adopt = not note.again
                run_id = self._left("pair", pair.result.cell, lambda run: adopt and run.info.status == "FINISHED")
            if run_id is None:
                write_record(marker, note.model_copy(update={"begun": True}))
                run_id = self.guard(self._log_pair, pair, plan, parent)
            self._remember(folder, run_id)
        for file in (marker, _failed(marker)):
            file.unlink(missing_ok=True)

    def give_up(self, marker: Path) -> None:
        """Leave a result that cannot be delivered; the next command that asks for its pair tries again."""
        marker.rename(_failed(marker))

    def _plan(self, key: str) -> PlanRecord:
        if key not in self._plans:
            self._plans[key] = read_plan(self.home.plans / f"{key}.json")
        return self._plans[key]

    def _remember(self, folder: Path, run_id: str) -> None:
        write_json(folder / "runs.json", {**self.runs(folder), self.store: run_id})

    def _find(self, kind: str, key: str) -> list[Run]:
        where = f"tags.`gauntlet.{kind}` = '{key}' and tags.`gauntlet.origin` = '{self.origin}'"
        where += f" and tags.`gauntlet.kind` = '{kind}'"
        return list(self.guard(self.client.search_runs, [self.experiment], where))

    def _left(self, kind: str, key: str, whole: Callable[[Run], bool]) -> str | None:
        """Id of a whole run that a process left which did not live to remember it; others are removed."""
        found = None
        for run in self._find(kind, key):
            if whole(run):
                found = str(run.info.run_id)
            else:
                self.guard(self.client.delete_run, run.info.run_id)
        return found

    def _create(
        self, kind: str, key: str, name: str, parent: str | None, tags: Mapping[str, Any], start: int | None = None
    ) -> str:
        every = {"gauntlet.kind": kind, f"gauntlet.{kind}": key, "gauntlet.origin": self.origin, **tags}
        if parent is not None:
            every["mlflow.parentRunId"] = parent
        text = {name: str(value)[:5000] for name, value in every.items() if value not in (None, "")}
        run = self.client.create_run(self.experiment, start, run_name=name, tags=text)
        return str(run.info.run_id)

    def _plan_run(self, plan: PlanRecord) -> str:
        """Run of a command: made once, found again by the command that goes on with it."""
        folder = self.home.plans / plan.plan
        known = self.runs(folder).get(self.store)
        if known is None:
            known = self._left("plan", plan.plan, _complete) or self.guard(self._log_plan, plan)
            self._remember(folder, known)
        return known

    def _model_run(self, plan: PlanRecord, key: str) -> str:
        """Run of a model: made once, under the command that first used it."""
        folder = self.home.model(key)
        known = self.runs(folder).get(self.store)
        if known is None:
            parent = self._plan_run(plan)
            entry = next(model for model in plan.models if model.model == key)
            known = self._left("model", key, _complete) or self.guard(self._log_model, folder, entry, plan, parent)
            self._remember(folder, known)
        return known

    def _log_plan(self, plan: PlanRecord) -> str:
        name = f"{plan.suite} on {', '.join(sorted(plan.budgets))}"
        tags = {
            "suite": plan.suite,
            "goal": plan.goal,
            "command": plan.command,
            "mlflow.note.content": reproduce_note(plan.command),
        }
        # when it was first asked for, not when it was delivered: a store that is rebuilt keeps the order of plans
        asked = (self.home.plans / f"{plan.plan}.json").stat().st_mtime_ns // 10**6
        run_id = self._create("plan", plan.plan, name, None, tags, asked)
        self.client.log_text(run_id, json_text(sealed(plan)), "plan.json")
        self.client.set_tag(run_id, "gauntlet.complete", "yes")
        return run_id

    def _log_model(self, folder: Path, entry: ModelEntry, plan: PlanRecord, parent: str) -> str:
        tags = dict(ModelName.of(entry))
        run_id = self._create("model", entry.model, model_name(entry), parent, {**tags, "suite": plan.suite})
        card = model_state(self.home, entry.model).card
        values = [
            (f"train/{name}", value, line.epoch)
            for line in (card.history if card is not None else ())
            for name, value in {**dict(line), **line.logged}.items()
            if name != "logged"
        ]
        if card is not None:
            values += [(f"clean/{name}", getattr(card, name), 0) for name in ("train_accuracy", "test_accuracy")]
        metrics = [value for value in values if value[0] != "train/epoch"]
        self.log(run_id, metrics=metrics, params=flat(entry.declaration))
        if (folder / "card.json").exists():
            self.client.log_artifact(run_id, str(folder / "card.json"))
        self.log(run_id, tags={"gauntlet.complete": "yes"})
        return run_id

    def _log_pair(self, pair: Pair, plan: PlanRecord, parent: str) -> str:
        result = pair.result
        named = ("dataset", "architecture", "defense", "seed", "attack", "toolkit", "norm", "eps", "source", "goal")
        tags = {name: getattr(result, name) for name in named} | {
            "suite": plan.suite,
            "status": result.status,
            "gauntlet.model": result.model,
            "git_commit": result.git_commit,
            "command": result.command,
            "mlflow.note.content": reproduce_note(result.command),
            **{f"version.{name}": version for name, version in result.versions.items()},
        }
        about = f", {result.goal}" if result.goal != UNTARGETED else ""
        run_id = self._create("pair", result.cell, f"{result.attack} {result.threat}{about}", parent, tags)
        values = pair_metrics(pair, plan.budgets[result.dataset])
        metrics = [(name, value, 0) for name, value in values.items()]
        metrics += [
            (f"{left_metric(result.goal)}_over_eps", value, round(EPS_STEPS * eps))
            for eps, value in curve_points(pair, plan.budgets[result.dataset])
        ]
        self.log(run_id, metrics=metrics, params=flat(result.declaration))
        for name in ("result.json", "samples.parquet", "gallery.safetensors"):
            if (file := self.home.cell(result.cell) / name).exists():
                self.client.log_artifact(run_id, str(file))
        self.client.set_terminated(run_id, "FINISHED")
        return run_id

    def sort_key(self) -> str:
        """The metric that the UI sorts models by, "" if there is none.

        Raises:
            Unreachable: The store did not answer.
        """
        where = "tags.`gauntlet.kind` = 'model'"
        found = self.guard(self.client.search_runs, [self.experiment], where, max_results=100)
        return sort_key({name for run in found for name in run.data.metrics})

    def is_closed(self, plan: PlanRecord) -> bool:
        """Whether :meth:`close` was done for that plan in this store, with nothing new since; damage means no."""
        path = self.home.plans / plan.plan / "closed.json"
        found = attempt(lambda: read_json(path), path, lambda *_: None) if path.exists() else None
        return isinstance(found, list) and self.store in found and LAYOUT in found

    def close_all(self, spoiled: Spoiled | None = None) -> None:
        """Close every plan that has something new, also those whose results were delivered only now.

        Raises:
            UserError: The store refused, or a file is damaged and nobody is to be told.
            Unreachable: The store did not answer.
        """
        plans = [record for record in read_plans(self.home, spoiled) if not self.is_closed(record)]
        found = boards_from_home(self.home, spoiled=spoiled) if plans else []
        for record in plans:
            self.close(record, [board for board in found if board.suite == record.suite])

    def close(self, plan: PlanRecord, boards: Sequence[Board]) -> None:
        """Give every model's run its summary, from what its suite has by now, and end the runs of a command.

        The model's run, and an MLflow model of it, carry ``<attack> <norm> <eps> <suite>``, ``worst <norm> ...``,
        ``score/<norm> <suite>`` (the worst case at the eps that defenses train at, which the report ranks by),
        ``score/clean <suite>``, ``cost/...``; the run has the images as its input, and the
        attacks as the table ``attacks.json``: what the UI's charts and comparison show. ``certified/<norm> <eps>`` is
        what is proved to stand, ``certified_attacked/...`` what no attack broke of the same images. The name
        of a suite with targets ends with its goal. A model with a pair missing or
        failed, or with an image both certified and broken, has no worst case, its run says why in the tag ``no_rank``
        and ends as failed. One of which not all of the suite's pairs were asked for has none either and says so, and
        is no failure.

        Raises:
            UserError: The store refused, or a file is damaged.
            Unreachable: The store did not answer.
        """
        for board in boards:
            rows = pair_rows(board)
            for key, entry in board.models.items():
                if key not in board.by_model or not any(model.model == key for model in plan.models):
                    continue
                pairs = board.by_model[key]
                run_id = self._model_run(plan, key)
                mine = rows[(rows[list(ModelName.model_fields)] == list(entry.names)).all(axis=1)]
                trouble = [f"{p.result.attack}: {p.result.status}" for p in pairs if p.result.failed]
                trouble += [f"{name}: not run" for name in board.missing.get(key, ())]
                trouble += contradictions(board, key)
                unasked = board.unasked.get(key, ())
                why = [*trouble, *(f"{name}: not asked for" for name in unasked)]
                budgets, reference = board.budgets[entry.dataset], plan.reference.get(entry.dataset, {})
                grades = {norm: trust(board, key, norm) for norm in budgets}
                doubted = [norm for norm, grade in grades.items() if grade is not None and grade.grade == "D"]
                values = model_metrics(pairs, mine, board, reference, whole=not why, doubted=doubted)
                grid = [(norm, eps) for norm in budgets for eps in budgets[norm]]
                bands = [one for norm, eps in grid for one in bands_of(board, {key: pairs}, norm, eps)]
                values |= certificate_metrics(bands)
                remarks = {one.norm: one.remark for one in bands if one.remark}
                values |= planted_metrics(board.health.get(key, {}))
                tags = {mlflow_name(f"certificate.{plan.suite}.{norm}"): said for norm, said in remarks.items()}
                tags |= _tags(why, plan, grades)
                self.guard(self._summarise, run_id, entry, pairs, values, mine, plan, tags)
                asked: dict[str, dict[str, Record | None]] = {
                    "health": {one.probe: probe_facts(self.home, one.probe) for one in plan.probes if one.model == key},
                    "certificates": {
                        one.certificate: certificate_facts(self.home, one)
                        for one in plan.certificates
                        if one.model == key
                    },
                    "planted": {
                        one.probe: planted_facts(self.home, one.probe) for one in plan.plantings if one.model == key
                    },
                }
                for kind, each in asked.items():
                    if facts := {name: found.model_dump() for name, found in each.items() if found is not None}:
                        self._log_facts(run_id, f"{kind}-{plan.plan}.json", facts)
                self.guard(self.client.set_terminated, run_id, "FAILED" if trouble else "FINISHED")
        trained = {m.model: model_state(self.home, m.model).status == "ok" for m in plan.models}
        judged = {pair.result.model for board in boards for pair in board.pairs}
        for key in [key for key, there in trained.items() if there and key not in judged]:  # sources of transfers
            self.guard(self.client.set_terminated, self._model_run(plan, key), "FINISHED")
        done = all(is_finished(self.home.cell(cell.cell)) for cell in plan.cells)
        failed = not (done and all(trained.values()))
        self.guard(self.client.set_terminated, self._plan_run(plan), "FAILED" if failed else "FINISHED")
        if not failed:
            write_json(self.home.plans / plan.plan / "closed.json", [self.store, LAYOUT])

    def _summarise(
        self,
        run_id: str,
        entry: KnownModel,
        pairs: Sequence[Pair],
        values: Mapping[str, float],
        rows: pd.DataFrame,
        plan: PlanRecord,
        tags: Mapping[str, str],
    ) -> None:
        run = self.client.get_run(run_id)
        known = {name: value for name, value in run.data.metrics.items() if math.isfinite(value)}
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        if gone := stale(known, finite, plan.suite):
            self.withdraw(run_id, gone)
        widest = max(pairs, key=lambda pair: pair.n)
        named = {"defense": entry.defense, "architecture": entry.architecture, "seed": str(entry.seed)}
        named["dataset"] = entry.dataset
        whose = {"gauntlet.model": widest.result.model, "gauntlet.origin": self.origin}
        model, told = self.logged_model(run, logged_name(entry), named, whose)
        of = Judged(model, entry.dataset, images_digest(widest))
        new = [
            name
            for name, value in finite.items()
            if known.get(name) != value or (of.link(name) and told.get(name) != value)
        ]
        if new:
            self.log_dataset(run_id, of, {"dataset": entry.dataset, "part": widest.result.part, "n": widest.n})
        aim = "" if plan.goal == UNTARGETED else "-" + re.sub(r"[^a-z0-9]+", "-", plan.goal)
        file = f"attacks{aim}.json"
        self.client.log_dict(run_id, attack_table(rows, values, plan.goal), file)
        tables = {one["path"]: one for one in json.loads(run.data.tags.get(TABLES, "[]"))}
        tags = {**tags, TABLES: json.dumps([*(tables | {file: {"path": file, "type": "table"}}).values()])}
        self.log(run_id, metrics=((name, finite[name], 0) for name in new), tags=tags, of=of)

    def _log_facts(self, run_id: str, name: str, facts: Mapping[str, Any]) -> None:
        """Log facts by their keys as a sealed artifact."""
        self.guard(self.client.log_text, run_id, json_text({**facts, seals.NAME: seals.BLANK}), name)

    def rebuild(self, spoiled: Spoiled | None = None) -> int:
        """Deliver whatever this store lacks of the home's records. Only while no other process works on the home.

        Returns:
            Results delivered.

        Raises:
            UserError: The store refused, or a file is damaged and nobody is to be told.
            Unreachable: The store did not answer; what is left waits in ``pending/``.
        """
        self.reconcile()
        for record in read_plans(self.home, spoiled):
            self.mark_untracked(record.plan, (cell.cell for cell in record.cells))
        delivered = 0
        for marker in self.waiting():
            folder = self.home.cell(marker.stem)
            before = self.runs(folder)
            attempt(lambda m=marker: self.offer(m), folder, spoiled)  # type: ignore[misc]
            delivered += self.runs(folder) != before
        if delivered:
            self.reopen()
        self.close_all(spoiled)
        return delivered

    def offer(self, marker: Path) -> None:
        """:meth:`deliver`; whatever goes wrong is one result's trouble.

        Raises:
            Unreachable: The store did not answer; the marker stays.
            UserError: Anything else; the marker stays.
        """
        try:
            self.deliver(marker)
        except Unreachable:
            raise
        except Exception as error:
            reason = str(error) if isinstance(error, UserError) else describe(error)
            raise UserError(f"cannot track {marker.stem}: {reason}") from error


def _tags(no_rank: Sequence[str], plan: PlanRecord, grades: Mapping[str, Trust | None]) -> dict[str, str]:
    """What a model's run says in words of a suite's results."""
    name = "no_rank" if plan.goal == UNTARGETED else f"no_rank.{plan.goal}"
    tags = {mlflow_name(name): "; ".join(no_rank)}
    for norm, grade in grades.items():
        if grade is not None:
            tags[mlflow_name(f"trust.{plan.suite}.{norm}")] = "; ".join((grade.grade, *grade.reasons))
    return tags


def _complete(run: Run) -> bool:
    """Whether a run was written whole."""
    return bool(run.data.tags.get("gauntlet.complete"))


def _failed(marker: Path) -> Path:
    """Where a marker lies that was given up: its run may have been begun."""
    return marker.with_suffix(".failed")


def undelivered(home: Home) -> int:
    """How many results wait for the tracking store."""
    return len(list(home.pending.glob("*.json")))
