"""An MLflow server behind a proxy that fails: 500, hangs, resets, is slow, lies; and stores that go away."""

from __future__ import annotations

import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from tests.helpers.commands import call

from .common import LINE, Ledger, alarm, compare, in_store, numbers

FAULTS = ("500", "hang", "reset", "slow", "lie")
EACH = 8


class Proxy(BaseHTTPRequestHandler):
    """Hands requests on, but for those of a range of numbers, which it spoils in one way."""

    server_address: ClassVar[str] = ""
    way: ClassVar[str] = ""
    spoiled: ClassVar[range] = range(0)
    seen: ClassVar[int] = 0
    protocol_version = "HTTP/1.1"

    def _do(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        number = Proxy.seen
        Proxy.seen += 1
        if number in Proxy.spoiled and self._spoil():
            return
        asked = urllib.request.Request(Proxy.server_address + self.path, content or None, method=self.command)
        for name, value in self.headers.items():
            if name.lower() not in ("host", "content-length", "connection", "accept-encoding"):
                asked.add_header(name, value)
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                self._answer(answer.status, answer.read(), answer.headers.get("Content-Type", ""))
        except urllib.error.HTTPError as error:
            self._answer(error.code, error.read(), error.headers.get("Content-Type", ""))
        except OSError:
            self._answer(502, b"", "text/plain")

    def _spoil(self) -> bool:
        match Proxy.way:
            case "500":
                self._answer(500, b"<html>boom</html>", "text/html")
            case "hang":
                time.sleep(3)  # longer than the client waits
                self.close_connection = True
            case "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
            case "slow":
                time.sleep(0.3)
                return False
            case "lie":
                self._answer(200, b"{}", "application/json")
        return True

    def _answer(self, status: int, content: bytes, kind: str) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except OSError:  # the client has gone
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _do  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing."""


def untracked(reference: Path, home: Path) -> Path:
    """A home whose results no store has."""
    shutil.copytree(reference, home, ignore=shutil.ignore_patterns("mlflow*", "report", "runs.json", "closed.json"))
    (home / "origin").write_text(uuid.uuid4().hex)
    return home


def stores(folder: Path, reference: Path, ledger: Ledger) -> None:
    """Deliver a home's results through the proxy while it fails, and once more when it does not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    database = folder / "server.db"
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
         "--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(folder / "artifacts")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )  # fmt: skip
    Proxy.server_address = f"http://127.0.0.1:{port}"
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{proxy.server_port}"
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(f"{Proxy.server_address}/health", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "the MLflow server does not start"
                time.sleep(0.2)
        moment = random.Random(3)
        for number in range(EACH * len(FAULTS)):
            way = FAULTS[number % len(FAULTS)]
            home = untracked(reference, folder / f"store-{number}")
            first = moment.randrange(0, 60)
            Proxy.way, Proxy.seen = way, 0
            Proxy.spoiled = range(first, first + moment.choice([1, 2, 5, 10**6]))
            line = [*LINE, "--jobs", "1", "--home", home, "--tracking-uri", uri]
            os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "2"
            with alarm():
                disturbed = call(*line)
            Proxy.spoiled = range(0)
            os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "120"  # a busy machine is no fault
            behind = in_store(database, (home / "origin").read_text(), home)["lost"]
            with alarm():
                healed = call(*line)
            found = Counter(lost=int(healed.exit_code != 0)) + compare(numbers.__wrapped__(home), numbers(reference))
            found += in_store(database, (home / "origin").read_text(), home)
            waits = bool(list((home / "pending").glob("*")))
            # status 0 while something was undelivered is silence
            found += Counter(lost=int(waits), silent=int(disturbed.exit_code == 0 and bool(behind)))
            said = disturbed.output + healed.output
            for result in (disturbed, healed):
                if result.exception is not None and not isinstance(result.exception, SystemExit):
                    said += f"Traceback (most recent call last) {result.exception!r}"
            ledger.book(way, found, said)
            shutil.rmtree(home)
            print(f"  {number + 1}: {way} from {first}: {disturbed.exit_code}, then {healed.exit_code}", flush=True)
    finally:
        proxy.shutdown()
        server.terminate()
        server.wait()
