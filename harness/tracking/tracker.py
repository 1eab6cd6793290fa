"""MLflow: the only module that imports it. Written by the driver alone, from the records on disk.

One run a pair, nested under its model's run, itself under the run of the command that first asked for it. What
could not be delivered waits as a marker in ``pending/``; the next command tries again. A marker says ``begun``
before its run is created, so that an interrupted delivery is found again (by the run's tags) and neither doubled
nor left half written.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import sqlite3
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlparse
from urllib.request import url2pathname

from ..errors import UserError, describe
from ..external.mlflow_model import quiet_environment
from ..metrics.pairs import Board, Pair, pair_rows
from ..records.boards import boards, boards_from_home, model_state, probe_facts, read_runs
from ..records.files import (
    T,
    earlier,
    finite,
    flat,
    read_json,
    read_record,
    set_aside,
    write_bytes,
    write_json,
    write_record,
)
from ..records.home import Home
from ..records.plans import Spoiled, attempt, read_plan, read_plans
from ..records.results import is_finished, read_pair
from ..redaction import without_password, without_password_of
from ..schema.models import Card, ModelEntry, ModelName, ModelState
from ..schema.plans import Marker, PlanRecord
from ..schema.probes import ProbeFacts
from ..trust.grade import Trust, trust
from .payloads import (
    EPS_STEPS,
    attack_table,
    chunks,
    curve_points,
    model_metrics,
    pair_metrics,
    reproduce_note,
)

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT: Final = "gauntlet"

BATCH: Final = 900
"""Metrics a call: MLflow takes 1000."""


def default_uri(home: Home) -> str:
    """The store used when nobody names another: SQLite in the home directory."""
    return f"sqlite:///{(home.path / 'mlflow.db').resolve()}"


def tracking_uri(home: Home, given: str | None, *, part: str | None = None) -> str:
    """``--tracking-uri``, else ``MLFLOW_TRACKING_URI``, else :func:`default_uri`.

    A part of a run leaves the environment's store to ``gauntlet sync``, which would deliver all of it once more.
    """
    return given or (os.environ.get("MLFLOW_TRACKING_URI") if part is None else None) or default_uri(home)


SCHEMES: Final = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")


def check_uri(uri: str) -> None:
    """Raise UserError for an address that no store can have, before anything is run."""
    scheme, colon, _ = uri.partition(":")
    if not colon or scheme.partition("+")[0] not in SCHEMES:
        shown = without_password(uri)
        raise UserError(f"no tracking store at {shown!r}; write it as one of {', '.join(f'{s}:' for s in SCHEMES)}")


class Unreachable(RuntimeError):
    """The tracking store did not answer, or lets nobody in. Results are safe on disk and are delivered later."""


CLOSED: Final = ("TEMPORARILY_UNAVAILABLE", "PERMISSION_DENIED", "UNAUTHENTICATED")
"""Answers of a store that takes nothing from this user just now, whatever it is."""


def _lost(error: BaseException | None) -> bool:
    """Whether a connection was lost, be it for a moment, or is refused: the store may answer again when it is asked."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import OperationalError

    while error is not None:
        if isinstance(error, OperationalError | ConnectionError | TimeoutError | RequestException):
            return True
        if isinstance(error, MlflowException) and error.error_code in CLOSED:
            return True
        error = error.__cause__ or error.__context__
    return False


class Tracker:
    """Delivers records to one MLflow store.

    Args:
        home: Whose records.
        uri: The store; see :func:`tracking_uri`.
    """

    def __init__(self, home: Home, uri: str) -> None:
        check_uri(uri)
        self.home = home
        self.uri = uri
        # the home's own store keeps its name when the home is moved
        self.store = "home" if uri == default_uri(home) else without_password(uri).rstrip("/")
        self._plans: dict[str, PlanRecord] = {}

    @functools.cached_property
    def client(self) -> MlflowClient:
        """The connection, opened on first use.

        Raises:
            Unreachable: The store did not answer.
        """
        quiet_environment()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mlflow
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        if self.uri == default_uri(self.home):
            self._guard(self._create_database, mlflow.MlflowClient)
        client: MlflowClient = self._guard(mlflow.MlflowClient, tracking_uri=self.uri)
        self._guard(client.search_experiments, max_results=1)
        return client

    def _create_database(self, connect: Callable[..., MlflowClient]) -> None:
        """Make the home's database if there is none: beside its place, because a killed migration is never mended."""
        place = self.home.path / "mlflow.db"
        if not place.exists():
            part = place.with_name(f".{place.name}.{os.getpid()}.part")
            connect(tracking_uri=f"sqlite:///{part.resolve()}").search_experiments(max_results=1)
            with contextlib.suppress(FileExistsError):  # another process was faster, and has perhaps written to it
                os.link(part, place)
                self._forget()
            part.unlink()
        artifacts = self._artifact_root().as_uri()
        with contextlib.closing(sqlite3.connect(place, timeout=30)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")  # halves the write time; the setting stays in the file
            found = connection.execute("SELECT artifact_location FROM experiments WHERE name = ?", (EXPERIMENT,))
            for (before,) in found.fetchall():
                if before != artifacts:  # the home was moved, and MLflow keeps absolute addresses
                    for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
                        change = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
                        connection.execute(change, (before, artifacts))
            connection.commit()

    def _artifact_root(self) -> Path:
        return (self.home.path / "mlflow-artifacts").resolve()

    def _forget(self) -> None:
        """A new database knows nothing: whatever was delivered to the one before is to be delivered again."""
        for file in self.home.path.glob("*/*/runs.json"):
            write_json(file, {store: run for store, run in self._runs(file.parent).items() if store != "home"})
        self.reopen()

    @functools.cached_property
    def experiment(self) -> str:
        """Id of the experiment, created if need be."""
        found = self._guard(self.client.get_experiment_by_name, EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if self.uri == default_uri(self.home):
            location = self._artifact_root().as_uri()
        return str(self._guard(self.client.create_experiment, EXPERIMENT, artifact_location=location))

    @functools.cached_property
    def origin(self) -> str:
        """A name of this home that stays with it, so that several homes can share a store."""
        path = self.home.path / "origin"
        if not path.exists():
            write_bytes(path, uuid.uuid4().hex.encode())
        return path.read_text()

    def _guard(self, call: Any, *arguments: Any, **named: Any) -> Any:
        """Call MLflow; if it fails for want of a connection, or the store answers nothing else, it is out of reach.

        Raises:
            Unreachable: It is.
            UserError: The store answers, and does not take this.
        """
        from mlflow.exceptions import MlflowException

        try:
            return call(*arguments, **named)
        except Exception as error:
            if _lost(error) or not self._answers():
                raise Unreachable(self._said(error)) from error
            if isinstance(error, MlflowException):
                raise UserError(self._said(error)) from error
            raise

    def _said(self, error: Exception) -> str:
        """Which store said what, without the password."""
        return f"{without_password(self.uri)}: {without_password_of(self.uri, describe(error))}"[:300]

    def _answers(self) -> bool:
        """Whether the store is there."""
        client = self.__dict__.get("client")
        if client is None:
            return False  # it was never opened
        try:
            client.search_experiments(max_results=1)
        except Exception:
            return False
        return True

    # -- writing ---------------------------------------------------------------------------------------------

    def mark(self, plan: str, cell: str) -> None:
        """Note that a cell's result is to be delivered."""
        again = bool(earlier(self.home.cell(cell)))  # an earlier result was tracked, perhaps
        marker = self.home.pending / f"{cell}.json"
        begun = _failed(marker).exists() or bool(earlier(self.home.cell(cell) / "runs.json"))
        write_record(marker, Marker(plan=plan, cell=cell, begun=begun, again=again))

    def mark_untracked(self, plan: str, cells: Iterable[str]) -> None:
        """Note those of a plan's finished results that this store has never seen: another was used before, perhaps."""
        for cell in cells:
            folder = self.home.cell(cell)
            untracked = is_finished(folder) and self.store not in self._runs(folder)
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
        if is_finished(folder) and self.store not in self._runs(folder):
            pair = read_pair(folder)
            plan = self._plan(note.plan)
            parent = self._model_run(plan, pair.result.model)
            run_id = None
            if note.begun or note.again:
                run_id = self._interrupted("pair", pair.result.cell, adopt=not note.again)
            if run_id is None:
                write_record(marker, note.model_copy(update={"begun": True}))
                run_id = self._guard(self._log_pair, pair, plan, parent)
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

    def _runs(self, folder: Path) -> dict[str, str]:
        """:func:`read_runs`; a damaged record is set aside, for the runs are found again by their tags."""
        try:
            return read_runs(folder)
        except UserError:
            set_aside(folder / "runs.json")
            return {}

    def _remember(self, folder: Path, run_id: str) -> None:
        write_json(folder / "runs.json", {**self._runs(folder), self.store: run_id})

    def _find(self, kind: str, key: str) -> list[Run]:
        where = f"tags.`gauntlet.{kind}` = '{key}' and tags.`gauntlet.origin` = '{self.origin}'"
        where += f" and tags.`gauntlet.kind` = '{kind}'"
        return list(self._guard(self.client.search_runs, [self.experiment], where))

    def _interrupted(self, kind: str, key: str, *, adopt: bool) -> str | None:
        """What became of runs begun before: the id of a finished one, if it may be adopted; the others are removed."""
        finished = None
        for run in self._find(kind, key):
            if adopt and run.info.status == "FINISHED":
                finished = run.info.run_id
            else:
                self._guard(self.client.delete_run, run.info.run_id)
        return finished

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
        known = self._runs(folder).get(self.store)
        if known is None:
            known = self._complete("plan", plan.plan) or self._guard(self._log_plan, plan)
            self._remember(folder, known)
        return known

    def _model_run(self, plan: PlanRecord, key: str) -> str:
        """Run of a model: made once, under the command that first used it."""
        folder = self.home.model(key)
        known = self._runs(folder).get(self.store)
        if known is None:
            parent = self._plan_run(plan)
            entry = next(model for model in plan.models if model.model == key)
            known = self._complete("model", key) or self._guard(self._log_model, folder, entry, plan, parent)
            self._remember(folder, known)
        return known

    def _complete(self, kind: str, key: str) -> str | None:
        """Id of a run that was written whole by a process that did not live to remember it; others are removed."""
        found = None
        for run in self._find(kind, key):
            if run.data.tags.get("gauntlet.complete"):
                found = str(run.info.run_id)
            else:
                self._guard(self.client.delete_run, run.info.run_id)
        return found

    def _log_plan(self, plan: PlanRecord) -> str:
        name = f"{plan.suite} on {', '.join(sorted(plan.budgets))}"
        tags = {
            "suite": plan.suite,
            "command": plan.command,
            "mlflow.note.content": reproduce_note(plan.command),
        }
        # when it was first asked for, not when it was delivered: a store that is rebuilt keeps the order of plans
        asked = (self.home.plans / f"{plan.plan}.json").stat().st_mtime_ns // 10**6
        run_id = self._create("plan", plan.plan, name, None, tags, asked)
        self.client.log_dict(run_id, finite(plan.model_dump()), "plan.json")
        self.client.set_tag(run_id, "gauntlet.complete", "yes")
        return run_id

    def _log_model(self, folder: Path, entry: ModelEntry, plan: PlanRecord, parent: str) -> str:
        from mlflow.entities import Metric, Param, RunTag

        tags = dict(ModelName.of(entry))
        name = f"{entry.architecture} {entry.defense} seed {entry.seed} ({entry.dataset})"
        run_id = self._create("model", entry.model, name, parent, {**tags, "suite": plan.suite})
        card = model_state(self.home, entry.model).card
        values = [(f"train/{name}", value, line.epoch) for line in card.history for name, value in line] if card else []
        if card is not None:
            values += [(f"clean/{name}", getattr(card, name), 0) for name in ("train_accuracy", "test_accuracy")]
        metrics = [
            Metric(name, value, 0, epoch)
            for name, value, epoch in values
            if name != "train/epoch" and math.isfinite(value)
        ]
        params = [Param(name, str(value)[:5000]) for name, value in sorted(flat(entry.declaration).items())]
        for part in chunks(metrics, BATCH):
            self.client.log_batch(run_id, metrics=part)
        if (folder / "card.json").exists():
            self.client.log_artifact(run_id, str(folder / "card.json"))
        self.client.log_batch(run_id, params=params[:100], tags=[RunTag("gauntlet.complete", "yes")])
        return run_id

    def _log_pair(self, pair: Pair, plan: PlanRecord, parent: str) -> str:
        from mlflow.entities import Metric, Param

        result = pair.result
        named = ("dataset", "architecture", "defense", "seed", "attack", "toolkit", "norm", "eps", "source", "status")
        tags = {name: getattr(result, name) for name in named} | {
            "suite": plan.suite,
            "gauntlet.model": result.model,
            "git_commit": result.git_commit,
            "command": result.command,
            "mlflow.note.content": reproduce_note(result.command),
            **{f"version.{name}": version for name, version in result.versions.items()},
        }
        run_id = self._create("pair", result.cell, f"{result.attack} {result.threat}", parent, tags)
        values = pair_metrics(pair, plan.budgets[result.dataset])
        metrics = [Metric(name, value, 0, 0) for name, value in values.items() if math.isfinite(value)]
        metrics += [
            Metric("robust_accuracy_over_eps", value, 0, round(EPS_STEPS * eps))
            for eps, value in curve_points(pair, plan.budgets[result.dataset])
        ]
        params = [Param(name, str(value)[:5000]) for name, value in sorted(flat(result.declaration).items())]
        self.client.log_batch(run_id, metrics=metrics, params=params[:100])
        for name in ("result.json", "samples.parquet", "gallery.safetensors"):
            if (file := self.home.cell(result.cell) / name).exists():
                self.client.log_artifact(run_id, str(file))
        self.client.set_terminated(run_id, "FINISHED")
        return run_id

    def is_closed(self, plan: PlanRecord) -> bool:
        """Whether :meth:`close` was done for that plan in this store, with nothing new since; damage means no."""
        path = self.home.plans / plan.plan / "closed.json"
        found = attempt(lambda: read_json(path), path, lambda *_: None) if path.exists() else None
        return isinstance(found, list) and self.store in found

    def reopen(self) -> None:
        """There is something new: summaries are to be made again, for any plan may share models with it."""
        for file in self.home.plans.glob("*/closed.json"):
            file.unlink(missing_ok=True)

    def close_all(self, spoiled: Spoiled | None = None) -> None:
        """Close every plan that has something new, also those whose results were delivered only now.

        Args:
            spoiled: Told of damaged files, which are left out.

        Raises:
            UserError: The store refused, or a file is damaged and nobody is to be told.
            Unreachable: The store did not answer.
        """
        plans = [record for record in read_plans(self.home, spoiled) if not self.is_closed(record)]
        found = boards_from_home(self.home, spoiled=spoiled) if plans else []
        for record in plans:
            self.close(record, [board for board in found if board.suite == record.suite])

    def close(self, plan: PlanRecord, boards: Sequence[Board]) -> None:
        """Give every model's run its summary, and end the runs of a command.

        The model's run carries ``acc/<attack> <norm> <eps>``, ``worst/<norm> <eps>``, ``score/worst_case`` (the
        lowest of its norms, each at the eps that defenses train at), ``score/clean``, ``cost/...`` and the
        attacks as the table ``attacks.json``: what the UI's charts and comparison show. A model with a pair missing
        or failed has no worst case, its run says why in the tag ``no_rank`` and ends as failed. One of which not all
        of the suite's pairs were asked for has none either and says so, and is no failure.

        Args:
            plan: The command.
            boards: What its suite has by now, also from other commands.

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
                unasked = board.unasked.get(key, ())
                why = [*trouble, *(f"{name}: not asked for" for name in unasked)]
                budgets, reference = board.budgets[entry.dataset], plan.reference.get(entry.dataset, {})
                values = model_metrics(pairs, mine, budgets, reference, whole=not why)
                grades = {norm: trust(board, key, norm) for norm in budgets}
                self._guard(self._summarise, run_id, values, mine, why, plan.suite, grades)
                looks = {look.probe: probe_facts(self.home, look.probe) for look in plan.probes if look.model == key}
                if facts := {look: found.model_dump() for look, found in looks.items() if found is not None}:
                    self._guard(self.client.log_dict, run_id, finite(facts), f"health-{plan.plan}.json")
                self._guard(self.client.set_terminated, run_id, "FAILED" if trouble else "FINISHED")
        trained = {m.model: model_state(self.home, m.model).status == "ok" for m in plan.models}
        judged = {pair.result.model for board in boards for pair in board.pairs}
        for key in [key for key, there in trained.items() if there and key not in judged]:  # sources of transfers
            self._guard(self.client.set_terminated, self._model_run(plan, key), "FINISHED")
        done = all(is_finished(self.home.cell(cell.cell)) for cell in plan.cells)
        failed = not (done and all(trained.values()))
        self._guard(self.client.set_terminated, self._plan_run(plan), "FAILED" if failed else "FINISHED")
        if not failed:
            write_json(self.home.plans / plan.plan / "closed.json", [self.store])

    def _summarise(
        self,
        run_id: str,
        values: Mapping[str, float],
        rows: pd.DataFrame,
        no_rank: Sequence[str],
        suite: str,
        grades: Mapping[str, Trust | None],
    ) -> None:
        from mlflow.entities import Metric, RunTag

        known = self.client.get_run(run_id).data.metrics
        fresh = [Metric(name, v, 0, 0) for name, v in values.items() if math.isfinite(v) and known.get(name) != v]
        for part in chunks(fresh, BATCH):
            self.client.log_batch(run_id, metrics=part)
        self.client.log_dict(run_id, attack_table(rows, values), "attacks.json")
        marker = RunTag("mlflow.loggedArtifacts", '[{"path": "attacks.json", "type": "table"}]')
        tags = [marker, RunTag("no_rank", "; ".join(no_rank)[:5000])]
        for norm, grade in grades.items():
            if grade is not None:
                words = "; ".join((grade.grade, *grade.reasons))
                tags += [RunTag(f"trust.{suite}.{norm}", words[:5000])]
        self.client.log_batch(run_id, tags=tags)

    def rebuild(self, spoiled: Spoiled | None = None) -> int:
        """Deliver whatever this store lacks of the home's records. Only while no other process works on the home.

        Args:
            spoiled: Told of damaged results, which are left out.

        Returns:
            Results delivered.

        Raises:
            UserError: The store refused, or a file is damaged and nobody is to be told.
            Unreachable: The store did not answer; what is left waits in ``pending/``.
        """
        for record in read_plans(self.home, spoiled):
            self.mark_untracked(record.plan, (cell.cell for cell in record.cells))
        delivered = 0
        for marker in self.waiting():
            folder = self.home.cell(marker.stem)
            before = self._runs(folder)
            attempt(lambda m=marker: self.offer(m), folder, spoiled)  # type: ignore[misc]
            delivered += self._runs(folder) != before
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

    # -- reading ---------------------------------------------------------------------------------------------

    def read_boards(self, spoiled: Spoiled | None = None) -> list[Board]:
        """Boards from the tracked runs of this home.

        Args:
            spoiled: Told of damaged files, which are then left out.

        Raises:
            UserError: Nothing was tracked there, or a file is damaged and nobody is to be told.
            Unreachable: The store did not answer.
        """
        where = f"tags.`gauntlet.kind` = 'plan' and tags.`gauntlet.origin` = '{self.origin}'"
        found = self._search(where)
        plans = [self._record(run, "plan.json", PlanRecord) for run in reversed(found)]
        if not plans:
            raise UserError(f"no tracked runs of {self.home.path} in {self.store}; or read its files with --from home")
        ours = f"tags.`gauntlet.origin` = '{self.origin}' and tags.`gauntlet.kind`"
        pair_runs = self._search(f"{ours} = 'pair' and attributes.status = 'FINISHED'")
        model_runs = self._search(f"{ours} = 'model'")
        pairs = {run.data.tags["gauntlet.pair"]: run for run in pair_runs}
        models = {run.data.tags["gauntlet.model"]: run for run in model_runs}

        def pair(key: str) -> Pair | None:
            if key not in pairs:
                return None
            run = pairs[key]
            folder = self._artifacts(run)
            return attempt(lambda: read_pair(folder, run.info.run_id, self._url(run)), folder, spoiled)

        def model(key: str) -> ModelState:
            local = model_state(self.home, key, spoiled)
            if local.status == "ok" or key not in models:
                return local
            return ModelState(card=self._record(models[key], "card.json", Card))

        def facts(key: str, probe: str) -> ProbeFacts | None:
            local = probe_facts(self.home, probe)
            if local is not None or key not in models:
                return local
            for file in sorted(self._artifacts(models[key]).glob("health-*.json")):
                if probe in (found := read_json(file)):
                    return ProbeFacts.model_validate_json(json.dumps(found[probe]))
            return None

        return boards(plans, pair, model, facts)

    def _search(self, where: str) -> list[Run]:
        found: list[Run] = []
        token = None
        while True:
            page = self._guard(self.client.search_runs, [self.experiment], where, max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def _artifacts(self, run: Run) -> Path:
        """Folder with a run's artifacts, fetched if they are not on this machine."""
        uri = run.info.artifact_uri
        if uri and uri.startswith("file://"):
            return Path(url2pathname(urlparse(str(uri)).path))
        target = self.home.path / "fetched" / str(run.info.run_id)
        if not (target / "done").exists():
            target.mkdir(parents=True, exist_ok=True)
            self._guard(self.client.download_artifacts, run.info.run_id, "", str(target))
            write_bytes(target / "done", b"")
        return target

    def _record(self, run: Run, name: str, kind: type[T]) -> T:
        path = self._artifacts(run) / name
        if not path.exists():
            raise UserError(f"the tracked run {run.info.run_id} has no {name}; --from home reads the result files")
        return read_record(path, kind)

    def _url(self, run: Run) -> str:
        if not self.uri.startswith("http"):
            return ""
        return f"{self.store}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def _failed(marker: Path) -> Path:
    """Where a marker lies that was given up: its run may have been begun."""
    return marker.with_suffix(".failed")


def undelivered(home: Home) -> int:
    """How many results wait for the tracking store."""
    return len(list(home.pending.glob("*.json")))
