"""Passwords within addresses: in nothing that is stored or shown."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from sqlalchemy.engine import make_url

from harness.environment import command_line
from harness.errors import UserError
from harness.external.mlflow_model import fetch
from harness.records.home import Home
from harness.redaction import without_password, without_password_of
from harness.tracking.connection import Unreachable
from harness.tracking.tracker import Tracker

HALVES = ("s3cr", "w0rd")
ODBC = "DRIVER={ODBC Driver 18};SERVER=db;UID=ana;PWD=s3cr;w0rd"


def hidden(text: str) -> bool:
    return not any(half in text for half in HALVES)


SCHEMES = ("postgresql", "mysql+pymysql", "http")
NAMES = ("ana", "ana@corp", "")
PLACES = ("host/db", "host:5432/db?sslmode=require", "[::1]/db")


@pytest.mark.parametrize("between", ["", *"/#?[]:&=!%+ ;~", "@", "?x=", "@?", "/@", "?token=", "//"])
def test_a_password_before_the_host(between: str) -> None:
    for scheme, name, place in product(SCHEMES, NAMES, PLACES):
        address = f"{scheme}://{name}:s3cr{between}w0rd@{place}"
        assert hidden(without_password(address))
        if not between.startswith("?token"):
            assert without_password(address) == f"{scheme}://{name}@{place}"
        if scheme != "http" and "@" not in between:
            assert make_url(address).password == f"s3cr{between}w0rd"  # SQLAlchemy takes it for one too
        assert hidden(without_password_of(address, f"no way to {address}: s3cr{between}w0rd"))


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://host/db?user=ana&password=s3crw0rd", "postgresql://host/db?user=ana"),
        ("postgresql://host/db?PassWord=s3crw0rd&user=ana", "postgresql://host/db?user=ana"),
        ("postgresql://host/db?p%61ssword=s3crw0rd", "postgresql://host/db"),
        ("postgresql://ana@host/db?sslpassword=s3cr@w0rd", "postgresql://ana@host/db"),
        ("postgresql://host:5432/db?user=ana&password=s3cr@w0rd", "postgresql://host"),
        ("mysql://host/db?passwd=s3crw0rd&charset=utf8", "mysql://host/db?charset=utf8"),
        (f"mssql+pyodbc:///?odbc_connect={quote_plus(ODBC)}", "mssql+pyodbc:///"),
        (f"mssql+pyodbc:///?odbc_connect={quote(ODBC)}&timeout=3", "mssql+pyodbc:///?timeout=3"),
        ("https://host/mlflow?token=s3crw0rd", "https://host/mlflow"),
        ("https://ana:s3crw0rd@host:5000/a@b", "https://ana@host:5000/a@b"),
        ("postgresql://ana:s3crw0rd@host/db?application_name=a@b", "postgresql://ana@host/db?application_name=a@b"),
    ],
)
def test_other_places_for_a_password(address: str, shown: str) -> None:
    assert without_password(address) == shown
    assert hidden(without_password_of(address, f"{address} refused s3crw0rd" if "s3crw0rd" in address else address))


@pytest.mark.parametrize(
    "text",
    [
        *("http://host:5000", "https://host/mlflow/#/experiments/1", "http://host:5000/a@b", "http://[::1]:5000/a@b"),
        *("sqlite:////home/a@b/x:y@z/mlflow.db", "sqlite:///C:/a@b/mlflow.db", "sqlite:///runs/mlflow.db?timeout=20"),
        *("postgresql://ana@host:5432/db?sslmode=require", "databricks://profile", "databricks"),
        *("net.py:make?token=3", "models:/net@prod", "standard:epochs=1", "images:a@b", "", "://", "a:b@c"),
    ],
)
def test_what_holds_no_password_stays_as_it_is(text: str) -> None:
    assert without_password(text) == text
    assert without_password_of(text, f"about {text}") == f"about {text}"


def test_an_odbc_password_is_left_out_of_messages() -> None:
    address = f"mssql+pyodbc:///?odbc_connect={quote_plus('SERVER=db;PWD={s3cr};UID=ana')}"
    assert without_password_of(address, "login with s3cr failed") == "login with *** failed"


def test_the_recorded_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["run", "quick", "--tracking-uri", "postgresql://ana:s3cr/w0rd@host/db"]
    monkeypatch.setattr(sys, "argv", ["gauntlet", *words, "--tracking-uri=postgresql://host/db?password=s3crw0rd"])
    assert command_line() == (
        "gauntlet run quick --tracking-uri postgresql://ana@host/db --tracking-uri=postgresql://host/db"
    )


def test_what_a_tracker_stores_and_says(tmp_path: Path) -> None:
    tracker = Tracker(Home(tmp_path), "mysql+nodriver://ana:s3cr/w0rd@127.0.0.1:9/db")
    assert tracker.store == "mysql+nodriver://ana@127.0.0.1:9/db"
    with pytest.raises(Unreachable) as raised:
        tracker.client  # noqa: B018
    assert hidden(str(raised.value))
    with pytest.raises(UserError, match="no tracking store at 'oracle://ana@host'") as refused:
        Tracker(Home(tmp_path), "oracle://ana:s3cr#w0rd@host")
    assert hidden(str(refused.value))


def test_a_model_that_cannot_be_fetched(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot fetch models:/net/1 from mysql") as raised:
        fetch("models:/net/1", "mysql+nodriver://ana:s3cr/w0rd@127.0.0.1:9/db", tmp_path)
    assert hidden(str(raised.value))
