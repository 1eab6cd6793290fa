"""Whatever happens to the bytes of a record: it is named and left out, and nothing else is touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import UserError
from harness.leaderboard import leaderboard
from harness.metrics.pairs import pair_rows
from harness.records.boards import boards_from_home
from harness.records.diff import differences
from harness.records.explain import explain
from harness.records.files import write_record
from harness.records.home import Home
from harness.records.merge import merge
from harness.records.results import samples_to_bytes
from tests.helpers.boards import plan, sound, write_pair
from tests.helpers.commands import call

often = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

Damage = Callable[[bytes], bytes]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home of one model and some pairs, written by hand."""
    home = Home(tmp_path / "home").create()
    board = sound(n=20, without=("fgsm", "apgd", "square", "transfer:pgd"))
    made = {"versions": {"torch": "1"}, "command": "gauntlet run quick --attack x"}
    cells = [write_pair(home, pair, cell=f"c{place:03d}", **made) for place, pair in enumerate(board.pairs)]
    write_record(home.plans / "p.json", plan(*cells, reference={"mnist": {"linf": 0.1}}))
    return home


def state(home: Home) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in home.path.rglob("*") if file.is_file()}


bytes_ = st.one_of(
    st.binary(max_size=60).map(lambda content: lambda _: content),
    st.floats(0, 1).map(lambda share: lambda content: content[: int(share * len(content))]),
    st.tuples(st.floats(0, 0.9999), st.integers(1, 255)).map(
        lambda at: lambda content: _flip(content, int(at[0] * len(content)), at[1])
    ),
    st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=20)).map(
        lambda at: lambda content: content[: int(at[0] * len(content))] + at[1] + content[int(at[0] * len(content)) :]
    ),
)
"""Ways to damage any file."""

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def _flip(content: bytes, at: int, mask: int) -> bytes:
    return content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :] if content else b""


def look(home: Home, into: Path) -> tuple[int, list[Path]]:
    """Every reader of a home, over it; how many pairs a report shows, and what was left out of it."""
    told: list[Path] = []
    try:
        boards = boards_from_home(home, spoiled=lambda path, error: told.append(path) or _one_line(error))
    except UserError as error:  # its only plan is damaged
        _one_line(error)
        boards = []
    shown = 0
    for board in boards:
        shown += len(board.pairs)
        pair_rows(board)
        leaderboard(board)
    done = merge(home, Home(into / "into").create())
    assert all("\n" not in line for line in (*done.damaged, *done.refused))
    behind = sum("/cells/" in line for line in (*done.damaged, *done.refused))
    assert done.new["cells"] + behind == len(list(home.path.glob("cells/*")))
    differences(home, Home(into / "into"), lambda _, error: _one_line(error))
    for key in ("c000", "m0"):
        try:
            explain(home, key)
        except UserError as error:  # nothing is left that knows the key
            _one_line(error)
    shutil.rmtree(into / "into")
    return shown, told


def _one_line(error: UserError) -> None:
    assert str(error)
    assert "\n" not in str(error)


def check(home: Home, tmp_path: Path, file: Path, damage: Damage) -> tuple[int, list[Path]]:
    """Damage one file, look at the home, find all of it as it was, and mend it."""
    content = file.read_bytes()
    file.write_bytes(damage(content))
    try:
        before = state(home)
        found = look(home, tmp_path)
        assert state(home) == before
        return found
    finally:
        file.write_bytes(content)


@often
@given(damage=bytes_)
@pytest.mark.parametrize("name", ["result.json", "samples.parquet"])
def test_damaged_bytes(home: Home, tmp_path: Path, name: str, damage: Damage) -> None:
    whole = len(list(home.path.glob("cells/*")))
    shown, told = check(home, tmp_path, home.cell("c000") / name, damage)
    assert shown == whole - len(told)
    assert set(told) <= {home.cell("c000")}


@often
@given(name=st.data(), value=values)
def test_a_result_that_says_something_else(home: Home, tmp_path: Path, name: st.DataObject, value: Any) -> None:
    def damage(content: bytes) -> bytes:
        record = json.loads(content)
        key = name.draw(st.sampled_from(sorted(record)))
        return json.dumps(record | {key: value}).encode()

    whole = len(list(home.path.glob("cells/*")))
    shown, told = check(home, tmp_path, home.cell("c000") / "result.json", damage)
    assert shown == whole - len(told)


@often
@given(name=st.data())
def test_a_result_that_lacks_something(home: Home, tmp_path: Path, name: st.DataObject) -> None:
    def damage(content: bytes) -> bytes:
        record = json.loads(content)
        del record[name.draw(st.sampled_from(sorted(record)))]
        return json.dumps(record).encode()

    check(home, tmp_path, home.cell("c000") / "result.json", damage)


@often
@given(damage=bytes_)
def test_a_damaged_plan(home: Home, tmp_path: Path, damage: Damage) -> None:
    check(home, tmp_path, home.plans / "p.json", damage)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"9" * 100_000, b'{"n": NaN}', b"\xff\xfe", b"null", b"[]", b""])
@pytest.mark.parametrize("name", ["result.json", "samples.parquet"])
def test_bytes_that_are_no_record(home: Home, tmp_path: Path, name: str, content: bytes) -> None:
    _, told = check(home, tmp_path, home.cell("c000") / name, lambda _: content)
    assert told == [home.cell("c000")]


def test_columns_of_another_type(home: Home, tmp_path: Path) -> None:
    from harness.records.results import read_pair

    samples = read_pair(home.cell("c000")).samples
    for column, other in (("adversarial", "yes"), ("index", "first"), ("l2", "far"), ("crashed", None)):
        content = samples_to_bytes(samples.assign(**{column: other}))
        _, told = check(home, tmp_path, home.cell("c000") / "samples.parquet", lambda _, c=content: c)
        assert told == [home.cell("c000")], column


@pytest.mark.parametrize("command", ["report", "sync", "diff", "explain"])
def test_the_commands_say_it_in_a_line(home: Home, tmp_path: Path, command: str) -> None:
    file = home.cell("c000") / "samples.parquet"
    file.write_bytes(file.read_bytes()[:500])
    arguments = {
        "report": ["--home", home.path, "--from", "home", "--out", tmp_path / "report"],
        "sync": [home.path, "--home", tmp_path / "into", "--tracking-uri", "http://127.0.0.1:9"],
        "diff": [home.path, home.path],
        "explain": ["c000", "--home", home.path],
    }[command]
    result = call(command, *arguments)
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    said = " ".join(result.output.split())
    assert "is damaged" in said
    assert result.exit_code == (0 if command in ("diff", "explain") else 1)
