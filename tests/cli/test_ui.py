"""``gauntlet ui``: waits for its server, says last where to look, and shows no password."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import ui
from harness.errors import UserError
from harness.records.home import Home
from harness.tracking.connection import default_uri
from harness.tracking.tracker import Tracker
from tests.helpers.commands import call, complaint

SERVER = """
import os, sys, http.server, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        threading.Thread(target=self.server.shutdown).start()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
sys.exit(0 if os.environ["MLFLOW_BACKEND_STORE_URI"].startswith("sqlite") else 3)
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.slow
def test_it_waits_and_says_where_last(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path).create()
    assert Tracker(home, default_uri(home)).experiment
    given = [sys.executable, "-c", SERVER, str(port)]
    monkeypatch.setattr(ui, "command", lambda host, port: given)
    result = call("ui", "--home", tmp_path, "--port", port)
    assert result.exit_code == 0, result.output
    last = result.output.splitlines()[-1]
    assert f"http://127.0.0.1:{port}/#/experiments/1/models?" in last
    monkeypatch.setattr(ui, "command", lambda host, port: [sys.executable, "-c", "raise SystemExit(7)"])
    assert "status 7" in complaint(call("ui", "--home", tmp_path, "--port", port))


def test_a_server_that_says_nothing(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "PATIENCE", 0.3)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with pytest.raises(UserError, match="did not answer"):
            ui.wait(child, f"http://127.0.0.1:{port}")
    finally:
        child.kill()
        child.wait()


def test_passwords_are_not_in_the_process_list() -> None:
    uri = "postgresql://ana:secret@db/mlflow"
    assert ui.environment(uri)["MLFLOW_BACKEND_STORE_URI"] == uri
    assert not any("secret" in word or "postgresql" in word for word in ui.command("127.0.0.1", 5000))


def test_a_taken_port_is_named(port: int) -> None:
    ui.check_port("127.0.0.1", port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(UserError, match=f"{port}.*choose another --port"):
            ui.check_port("127.0.0.1", port)
