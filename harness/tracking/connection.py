"""Connection to an MLflow store: address, availability, logging and reading. Imports MLflow."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import sqlite3
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlparse
from urllib.request import url2pathname

from ..errors import UserError, describe
from ..external.mlflow_model import quiet_environment
from ..records.boards import read_runs
from ..records.files import T, check_plain, read_record, set_aside, write_bytes
from ..records.home import Home
from ..redaction import without_password, without_password_of
from . import database
from .database import EXPERIMENT, Tracked
from .payloads import is_judgement

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

DATABASE: Final = "mlflow.db"
"""The home's own store."""

LOG: Final = "mlflow.log"
"""What MLflow says, with its tracebacks, in the home."""

OTHER_SCHEMA: Final = ("out-of-date database schema", "Can't locate revision")
"""What MLflow says of a database that another version of it has made."""

BROKEN: Final = ("malformed", "not a database")
"""What SQLite says of a file that it cannot read."""

THERE_ALREADY: Final = ("unique", "duplicate")
"""What SQLite, PostgreSQL and MySQL say of a row that another process made between MLflow's look and its own."""

MOVED: Final = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)
"""Where a database holds addresses below the home."""

BATCH: Final = 900
"""Metrics a call: MLflow takes 1000."""


WITHOUT_MODELS: Final = ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED", "FEATURE_DISABLED")
"""Answers of a server that knows no MLflow models: it is older than the client."""


class Judged(NamedTuple):
    """What numbers are of: an MLflow model ("": none), and the images it was judged on, by name and digest."""

    model: str
    dataset: str
    digest: str

    def link(self, metric: str) -> dict[str, str]:
        """What a metric says of it, if it is one that models are compared by."""
        if not self.model or not is_judgement(metric):
            return {}
        return {"model_id": self.model, "dataset_name": self.dataset, "dataset_digest": self.digest}


def default_uri(home: Home) -> str:
    """The store used when nobody names another: SQLite in the home directory."""
    return database.address(home.path / DATABASE)


def store_uri(home: Home, given: str | None, *, part: str | None = None) -> str:
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


class _WithoutPassword(logging.Formatter):
    """Lines of a log without the password of an address."""

    def __init__(self, uri: str, form: str) -> None:
        super().__init__(form)
        self._uri = uri

    def format(self, record: logging.LogRecord) -> str:
        """As every formatter."""
        return without_password_of(self._uri, super().format(record))


class _Log(logging.FileHandler):
    """A log that is not worth a traceback where it cannot be written, on a full disk or in a home that is gone."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Nothing."""


class Connection:
    """One MLflow store, as a home uses it. The only code that tracks by MLflow; the tracker says what."""

    def __init__(self, home: Home, uri: str) -> None:
        check_uri(uri)
        self.home = home
        self.uri = uri
        # the home's own store keeps its name when the home is moved
        self.own = uri == default_uri(home)
        self.store = "home" if self.own else without_password(uri).rstrip("/")
        self.file = home.path / DATABASE if self.own else database.file_of(uri)
        self.notes: list[str] = []
        self._opened: tuple[int, int] | None = None

    @functools.cached_property
    def client(self) -> MlflowClient:
        """The connection, opened on first use.

        Raises:
            Unreachable: The store did not answer.
        """
        try:
            self.uri.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(self.uri).decode(errors="replace")
            raise Unreachable(
                f"{shown}: MLflow takes no path that is not UTF-8; name a store with --tracking-uri"
            ) from None
        quiet_environment()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mlflow
        self._keep_log()
        self._mend()
        if self.file is not None:
            self.guard(self._make_database, self.file, mlflow.MlflowClient)
            self._opened = database.identity(self.file)
        client: MlflowClient = self.guard(mlflow.MlflowClient, tracking_uri=self.uri)
        self.guard(client.search_experiments, max_results=1)
        return client

    def _keep_log(self) -> None:
        """Let MLflow say what it has to say, tracebacks of its server's errors too, in a file of the home."""
        path = str((self.home.path / LOG).resolve())
        for name in ("mlflow", "alembic", "urllib3"):
            logger = logging.getLogger(name)
            logger.setLevel(logging.WARNING)
            if not any(getattr(one, "baseFilename", "") == path for one in logger.handlers):
                for one in list(logger.handlers):
                    logger.removeHandler(one)
                    if isinstance(one, logging.FileHandler):
                        one.close()
                handler = _Log(path, encoding="utf-8", errors="backslashreplace", delay=True)
                handler.setFormatter(_WithoutPassword(self.uri, "%(asctime)s %(name)s %(levelname)s %(message)s"))
                logger.addHandler(handler)
                logger.propagate = False

    def _mend(self) -> None:
        """Put a database of the home's own aside that cannot be used, for it is filled again.

        Raises:
            Unreachable: A broken one is another's; the message says what to do.
        """
        if self.file is None:
            return
        fault = database.fault(self.file)
        if fault and not self.own:
            raise Unreachable(self._broken(fault))
        if self.own and (fault or database.outdated(self.file)):
            target = database.put_aside(self.file)
            self.reopened()
            why = f"was broken ({fault})" if fault else "was made by another version of MLflow"
            self.notes.append(f"{self.file} {why}: kept as {target.name}, and filled again from the results")

    def _broken(self, fault: str) -> str:
        return (
            f"{without_password(self.uri)} is broken ({fault}): move the file away, or put a sound copy in its place; "
            "the next command fills it from the results"
        )

    def vanished(self) -> bool:
        """Whether the database was deleted or replaced since it was opened: what is written now would be lost."""
        return self.file is not None and "client" in self.__dict__ and database.identity(self.file) != self._opened

    def reopened(self) -> None:
        """Forget the connection: what is asked next is asked of the file that lies there now."""
        client = self.__dict__.pop("client", None)
        self.__dict__.pop("experiment", None)
        store = getattr(getattr(client, "_tracking_client", None), "store", None)
        engines = [getattr(store, "engine", None)]
        if client is None and self.file is not None:
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            engines.append(getattr(SqlAlchemyStore, "_engine_map", {}).get(self.uri))
        for engine in engines:
            if engine is not None:
                engine.dispose()  # MLflow keeps one for each address; its connections hold the file that was

    def tracked(self) -> list[Tracked]:
        """Every run that the store has of this home.

        Raises:
            Unreachable: The store did not answer.
        """
        if self.file is not None:
            if "client" not in self.__dict__:
                self._mend()
            if (found := database.tracked(self.file, self.origin)) is not None:
                return found
        runs = self.search(f"tags.`gauntlet.origin` = '{self.origin}'")
        kinds = [(run, run.data.tags.get("gauntlet.kind", "")) for run in runs]
        return [Tracked(run.info.run_id, kind, run.data.tags.get(f"gauntlet.{kind}", "")) for run, kind in kinds]

    def _make_database(self, place: Path, connect: Callable[..., MlflowClient]) -> None:
        """Make the database if there is none; the home's own has its addresses brought up to date."""
        database.make(place, connect)
        if not self.own:
            return
        artifacts = self._artifact_root().as_uri()
        with contextlib.closing(sqlite3.connect(place, timeout=30)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")  # halves the write time; the setting stays in the file
            found = connection.execute("SELECT artifact_location FROM experiments WHERE name = ?", (EXPERIMENT,))
            for (before,) in found.fetchall():
                if before != artifacts:  # the home was moved, and MLflow keeps absolute addresses
                    for table, column in MOVED:
                        change = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
                        connection.execute(change, (before, artifacts))
            connection.commit()

    def _artifact_root(self) -> Path:
        return (self.home.path / "mlflow-artifacts").resolve()

    @functools.cached_property
    def experiment(self) -> str:
        """Id of the experiment; created if need be, and taken out of MLflow's bin if somebody put it there."""
        found = self.guard(self.client.get_experiment_by_name, EXPERIMENT)
        if found is None:
            location = self._artifact_root().as_uri() if self.own else None
            try:
                return str(self.guard(self.client.create_experiment, EXPERIMENT, artifact_location=location))
            except UserError:  # another process was faster
                found = self.guard(self.client.get_experiment_by_name, EXPERIMENT)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            self.guard(self.client.restore_experiment, found.experiment_id)
            self.notes.append(f"the experiment {EXPERIMENT!r} was deleted in {self.store}: it is there again")
        return str(found.experiment_id)

    @functools.cached_property
    def origin(self) -> str:
        """A name of this home that stays with it, so that several homes can share a store."""
        path = self.home.path / "origin"
        if not path.exists():
            # the home's own store knows the name that was lost
            known = database.origins(self.file) if self.own and self.file is not None else []
            write_bytes(path, (known[0] if len(known) == 1 else uuid.uuid4().hex).encode())
        return path.read_text()

    def guard(self, call: Any, *arguments: Any, **named: Any) -> Any:
        """Call MLflow; if it fails for want of a connection, or the store answers nothing else, it is out of reach.

        Raises:
            Unreachable: It is.
            UserError: The store answers, and does not take this.
        """
        from mlflow.exceptions import MlflowException

        try:
            return call(*arguments, **named)
        except Exception as error:
            if any(said in str(error) for said in BROKEN):
                raise Unreachable(self._said(error) if self.own else self._broken(describe(error))) from error
            if any(said in str(error) for said in OTHER_SCHEMA):
                shown = without_password(self.uri)
                raise Unreachable(
                    f"{shown} was made by another version of MLflow: make a copy of it, then mlflow db upgrade {shown}"
                ) from error
            if _lost(error) or not self._answers():
                raise Unreachable(self._said(error)) from error
            if isinstance(error, MlflowException):
                raise UserError(self._said(error)) from error
            raise

    def _said(self, error: Exception) -> str:
        """Which store said what, without the password, and where the rest can be read."""
        log = self.home.path / LOG
        more = f"; more in {log}" if log.exists() else ""
        return f"{without_password(self.uri)}: {without_password_of(self.uri, describe(error))}"[:300] + more

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

    def reopen(self) -> None:
        """There is something new: summaries are to be made again, for any plan may share models with it."""
        for file in self.home.plans.glob("*/closed.json"):
            file.unlink(missing_ok=True)

    def runs(self, folder: Path) -> dict[str, str]:
        """:func:`read_runs`; a damaged record is set aside, for the runs are found again by their tags."""
        try:
            return read_runs(folder)
        except UserError:
            set_aside(folder / "runs.json")
            return {}

    def log(
        self,
        run: str,
        *,
        metrics: Iterable[tuple[str, float, int]] = (),
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        of: Judged | None = None,
    ) -> None:
        """Log to a run: metrics (name, value, step), the first hundred params (MLflow takes no more), tags.

        Of metrics those that are finite. What says how well a model was judged is its MLflow model's as well, ``of``
        which it is said. These are dated: of two values of one date MLflow shows the larger, and a number that fell
        would stand.
        """
        from mlflow.entities import Metric, Param, RunTag

        now = 0 if of is None else time.time_ns() // 10**6
        finite = [
            Metric(name, value, now, step, **(of.link(name) if of is not None else {}))
            for name, value, step in metrics
            if math.isfinite(value)
        ]
        for start in range(BATCH, len(finite), BATCH):
            self.client.log_batch(run, metrics=finite[start : start + BATCH])
        self.client.log_batch(
            run,
            metrics=finite[:BATCH],
            params=[Param(name, str(value)[:5000]) for name, value in sorted((params or {}).items())][:100],
            tags=[RunTag(name, value[:5000]) for name, value in (tags or {}).items()],
        )

    def logged_model(
        self, run: Run, name: str, params: Mapping[str, str], tags: Mapping[str, str]
    ) -> tuple[str, dict[str, float]]:
        """Id of the MLflow model of a model's run, "" where the server has none, and its numbers; made if need be."""
        from mlflow.entities import LoggedModelOutput
        from mlflow.exceptions import MlflowException

        run_id = run.info.run_id
        try:
            for model in self._logged_models(run_id):
                dated = sorted(model.metrics or (), key=lambda metric: metric.timestamp)
                return str(model.model_id), {metric.key: metric.value for metric in dated}
            made = self.client.create_logged_model(
                self.experiment, name, run_id, dict(tags), dict(params), model_type="classifier"
            )
            self.client.log_outputs(run_id, [LoggedModelOutput(made.model_id, 0)])
            self.client.finalize_logged_model(made.model_id, "READY")
        except MlflowException as error:
            if error.error_code in WITHOUT_MODELS:
                return "", {}
            raise
        return str(made.model_id), {}

    def _logged_models(self, run: str) -> list[LoggedModel]:
        where = f"source_run_id = '{run}'"
        found = self.client.search_logged_models(experiment_ids=[self.experiment], filter_string=where)
        return list(found)

    def withdraw(self, run: str, names: Iterable[str]) -> None:
        """Take back metrics of a run that hold no more; its MLflow model, which cannot forget any, is deleted."""
        from mlflow.entities import Metric

        now = time.time_ns() // 10**6
        self.client.log_batch(run, metrics=[Metric(name, math.nan, now, 0) for name in names])
        for model in self._logged_models(run):
            self.client.delete_logged_model(model.model_id)

    def log_dataset(self, run: str, judged: Judged, source: Mapping[str, Any]) -> None:
        """Log the images that a run's model was judged on as its input."""
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        text = json.dumps(source, sort_keys=True)
        dataset = Dataset(
            judged.dataset, judged.digest, "gauntlet", text, profile=json.dumps({"num_rows": source["n"]})
        )
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "eval")])]
        try:
            self.client.log_inputs(run, inputs)
        except MlflowException as error:
            if not any(said in str(error).lower() for said in THERE_ALREADY):
                raise
            self.client.log_inputs(run, inputs)  # another process has just made the data set: now it is found

    def search(self, where: str) -> list[Run]:
        """Runs of the experiment that a filter string of MLflow finds, newest first."""
        found: list[Run] = []
        token = None
        while True:
            page = self.guard(self.client.search_runs, [self.experiment], where, max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def artifacts(self, run: Run) -> Path:
        """Folder with a run's artifacts, fetched if they are not on this machine."""
        uri = run.info.artifact_uri
        if uri and uri.startswith("file://"):
            folder = Path(url2pathname(urlparse(str(uri)).path))
            if self.store == "home":
                self._check_inside(folder)
            return folder
        target = self.home.path / "fetched" / str(run.info.run_id)
        if not (target / "done").exists():
            target.mkdir(parents=True, exist_ok=True)
            self.guard(self.client.download_artifacts, run.info.run_id, "", str(target))
            write_bytes(target / "done", b"")
        return target

    def _check_inside(self, folder: Path) -> None:
        """Make sure that a run's files lie in the home: the home may be a stranger's, and its database say anything.

        Raises:
            UserError: They do not, or are no plain files.
        """
        if self._artifact_root() not in folder.resolve().parents:
            raise UserError(f"{folder} is outside of {self.home.path}, whose tracked runs name it; use --from home")
        if not folder.is_dir():
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                check_plain(entry)

    def record(self, run: Run, name: str, kind: type[T]) -> T:
        """A run's artifact as a record.

        Raises:
            UserError: It is missing or damaged.
        """
        path = self.artifacts(run) / name
        if not path.exists():
            raise UserError(f"the tracked run {run.info.run_id} has no {name}; --from home reads the result files")
        return read_record(path, kind)

    def url(self, run: Run) -> str:
        """Where a run can be looked at, "" where nowhere."""
        if not self.uri.startswith("http"):
            return ""
        return f"{self.store}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
