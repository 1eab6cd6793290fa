"""A team's tracking store, a real PostgreSQL behind a real MLflow server: both go away in mid-run and come back.

Needs the programs of PostgreSQL (Debian: ``apt install postgresql``); nothing listens beyond this machine.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from defenses.fast_gradient import FastGradient
from defenses.standard import Standard
from harness.attacks.fast_gradient import Gradient
from harness.attacks.noise import Noise
from harness.datasets.registry import DataSource
from harness.execution import runner
from harness.execution.jobs import Context
from harness.execution.runner import Report, Watch, run
from harness.metrics.pairs import pair_rows
from harness.planning.plan import Plan, plan, specs
from harness.planning.suite import Suite
from harness.records.boards import boards_from_home
from harness.records.home import Home
from harness.tracking.payloads import pair_metrics
from harness.tracking.reading import read_boards
from harness.tracking.tracker import Tracker

PASSWORD = "sesame-open"
USER, SECRET = "team", "twelve letters at least"


def programs() -> Path | None:
    """Folder of PostgreSQL's programs."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


pytestmark = [
    pytest.mark.skipif(programs() is None, reason="PostgreSQL is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("psycopg") is None, reason="psycopg is not installed"),
    pytest.mark.timeout(900),
]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Database:
    """A cluster of its own; PostgreSQL refuses to run as root, so then it runs as its package's user."""

    folder: Path
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        self.folder.mkdir()
        if os.geteuid() == 0:
            shutil.chown(self.folder, self.user)
            for above in self.folder.parents:
                above.chmod(above.stat().st_mode | 0o011)  # it must be able to walk there
        secret = self.folder / "secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        arguments = ["-U", "gauntlet", "-A", "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8", "--no-sync"]
        self._call("initdb", "-D", self.folder / "data", *arguments)
        self.start()

    @property
    def uri(self) -> str:
        return f"postgresql://gauntlet:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def _call(self, program: str, *arguments: object) -> None:
        where = programs()
        assert where is not None
        command = [str(where / program), *map(str, arguments)]
        done = subprocess.run(
            command,
            user=self.user if os.geteuid() == 0 else None,
            cwd=self.folder,
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c log_min_messages=panic"
        options += " -c fsync=off"  # the machine stays up: what a killed database wrote is there for the next
        self._call(
            "pg_ctl", "-D", self.folder / "data", "-o", options, "-l", self.folder / "log", "-w", "-t", "240", "start"
        )

    def stop(self) -> None:
        """As a crash does."""
        self._call("pg_ctl", "-D", self.folder / "data", "-m", "immediate", "-w", "-t", "240", "stop")


@dataclass
class Server:
    """An MLflow server with passwords."""

    folder: Path
    store: str
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.log = (self.folder / "log").open("ab")
        (self.folder / "auth.ini").write_text(
            "[mlflow]\ndefault_permission = EDIT\n"
            f"database_uri = sqlite:///{self.folder / 'users.db'}\n"
            f"admin_username = {USER}\nadmin_password = {SECRET}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        self.start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen(
            shlex.split(
                f"{sys.executable} -m mlflow server --app-name basic-auth --host 127.0.0.1 --port {self.port} "
                f"--workers 1 --backend-store-uri {self.store} --artifacts-destination {self.folder / 'artifacts'}"
            ),
            env={
                **os.environ,
                "MLFLOW_AUTH_CONFIG_PATH": str(self.folder / "auth.ini"),
                "MLFLOW_FLASK_SERVER_SECRET_KEY": "any",
                "MLFLOW_DISABLE_TELEMETRY": "true",
            },
            stdout=subprocess.DEVNULL,
            stderr=self.log,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                assert time.monotonic() < deadline, (self.folder / "log").read_text()[-1500:]
                assert self.process.poll() is None, (self.folder / "log").read_text()[-1500:]
                time.sleep(0.2)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, 9)
            self.process.wait()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "postgres")
    yield made
    with contextlib.suppress(AssertionError):  # a test that failed may have left it stopped
        made.stop()


@pytest.fixture
def server(tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    made = Server(tmp_path / "server", database.uri)
    yield made
    made.stop()
    made.log.close()


def twenty_cells() -> tuple[Plan, dict[str, DataSource]]:
    source = DataSource("digits")
    info = source.info()
    attacks = {"linf": (Noise(), Gradient(), Gradient(mode="minimal")), "l2": (Noise(), Gradient())}
    budgets = {"linf": (0.1,), "l2": (0.5,)}
    suite = Suite(name="twenty", summary="for tests", attacks=attacks, budgets=budgets, samples=20, batch=20)
    models = specs([info], ["softmax", "mlp-16"], [Standard(epochs=1), FastGradient(epochs=1)], [0])
    made = plan(suite, models, {info.name: info})
    assert len(made.cells) == 20
    return made, {info.name: source}


def carry_out(home: Path, uri: str, observe: Callable[[Watch], None] = lambda watch: None) -> tuple[Report, Tracker]:
    made, sources = twenty_cells()
    place = Home(home).create()
    tracker = Tracker(place, uri)
    context = Context(place, sources)
    return run(made, context, jobs=1, command="gauntlet run twenty", tracker=tracker, observe=observe), tracker


def assert_whole(tracker: Tracker, home: Path) -> None:
    """The store has every pair, model and command once, ended well, with the numbers of the files."""
    runs = tracker.search("attributes.status = 'FINISHED'")
    assert Counter(run.data.tags["gauntlet.kind"] for run in runs) == {"pair": 20, "model": 4, "plan": 1}
    assert len(tracker.search("")) == 25, "runs that were begun and never ended"
    kinds = [(run.data.tags["gauntlet.kind"], run) for run in runs]
    assert set(Counter((kind, run.data.tags[f"gauntlet.{kind}"]) for kind, run in kinds).values()) == {1}
    made, _ = twenty_cells()
    (board,) = boards_from_home(Home(home))
    tracked = {run.data.tags["gauntlet.pair"]: run for run in runs if run.data.tags["gauntlet.kind"] == "pair"}
    for pair in board.pairs:
        found = tracked[pair.result.cell].data.metrics
        expected = pair_metrics(pair, made.budgets["digits"])
        for name, value in expected.items():
            assert value != value or found[name] == pytest.approx(value), (pair.result.attack, name)
        run_id = tracked[pair.result.cell].info.run_id
        points = tracker.client.get_metric_history(run_id, "robust_accuracy_over_eps")
        assert len({point.step for point in points}) == len(points)
    (again,) = read_boards(tracker)
    columns = ["attack", "norm", "eps", "robust_accuracy"]
    assert pair_rows(again)[columns].equals(pair_rows(board)[columns])
    assert not any(PASSWORD.encode() in file.read_bytes() for file in home.rglob("*.json"))


def go_on(report: Report, tracker: Tracker, home: Path) -> None:
    """After an outage that lasted to the end of a run the same command delivers the rest; then all is there, once."""
    assert report.failures == ()
    if report.waiting or report.trouble:
        report, tracker = carry_out(home, tracker.uri)
    assert report.failures == ()
    assert (report.waiting, report.trouble) == (0, "")
    assert_whole(tracker, home)


def test_server_and_database_go_away_in_mid_run_and_come_back(
    tmp_path: Path, database: Database, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "PATIENCE", 0.5)
    steps: list[tuple[int, Callable[[], None]]] = [
        (3, server.stop),
        (6, server.start),
        (9, database.stop),
        (12, database.start),
        (15, server.stop),
        (15, database.stop),
        (18, database.start),
        (18, server.start),
    ]
    said: list[str] = []
    watched: list[Watch] = []

    def observe(watch: Watch) -> None:
        watched[:] = [watch]
        said.extend(watch.messages)
        watch.messages.clear()

    def outages() -> None:
        while steps:
            if watched and watched[0].cells_done >= steps[0][0]:
                steps.pop(0)[1]()
            time.sleep(0.02)

    chaos = threading.Thread(target=outages, daemon=True)
    chaos.start()
    report, tracker = carry_out(tmp_path / "home", server.uri, observe)
    chaos.join(120)
    assert not steps
    assert any("out of reach" in line for line in said), said
    go_on(report, tracker, tmp_path / "home")


def test_a_database_that_restarts_all_the_time(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "PATIENCE", 0.1)
    ended = threading.Event()
    restarts = 0

    def restart() -> None:
        nonlocal restarts
        while not ended.wait(0.4):
            database.stop()
            database.start()
            restarts += 1

    Tracker(Home(tmp_path / "home").create(), database.uri).experiment  # noqa: B018  MLflow's tables take a while
    chaos = threading.Thread(target=restart)
    chaos.start()
    try:
        report, tracker = carry_out(tmp_path / "home", database.uri)
    finally:
        ended.set()
        chaos.join()
    assert restarts > 2
    go_on(report, tracker, tmp_path / "home")


def test_a_wrong_password_is_one_line_and_results_wait(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    report, tracker = carry_out(tmp_path / "home", server.uri)
    assert report.failures == ()
    assert report.waiting == 20
    assert "\n" not in report.trouble
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    report, tracker = carry_out(tmp_path / "home", server.uri)
    assert (report.waiting, report.trouble) == (0, "")
    assert_whole(tracker, tmp_path / "home")
