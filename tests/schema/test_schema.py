"""Records: what is written is read back, what is not one is said in a line, and earlier formats are read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from harness.errors import UserError
from harness.records.files import parse_record, read_record, write_record
from harness.schema.base import FORMAT, Document, Record
from harness.schema.models import Admission, EpochLine, FailedTraining
from harness.schema.pairs import Preparation, Result, ShardRecord
from harness.schema.plans import Marker, PlanRecord
from harness.schema.probes import ProbeRecord
from tests.helpers.boards import card, facts, plan, result

LINE = EpochLine(
    epoch=1, loss=math.inf, accuracy=0.5, validation_loss=math.nan, validation_accuracy=math.nan, seconds=1.0
)
COST: dict[str, Any] = {"seconds": math.nan, "forwards": 1, "backwards": 2}
RECORDS: list[Record] = [
    result(3, eps=None, errors=("a", "b"), class_names=("one", "two"), versions={"torch": "2"}, preparation=COST),
    card(history=(LINE,), inspection=Admission(outputs="logits"), upon={"k": "digest"}),
    plan(result(3), result(3, cell="c1", eps=None), left_out=("transfer:pgd",)),
    ProbeRecord(facts=facts(), weights={"k": "digest"}),
    ShardRecord(**COST, errors=("x",), answers=result(3).answers),
    Preparation(fields={"c": 0.5, "total": [1, 2]}, tensors={"weights": "digest"}, cost=COST),
    Marker(plan="p", cell="c", begun=True, again=False),
    FailedTraining(error="the loss is nan"),
]


def alike(value: Any) -> Any:
    """Plain values in which what is not finite is equal to itself."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: alike(item) for name, item in value.items()}
    return [alike(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_what_is_written_is_read_back(record: Record, tmp_path: Path) -> None:
    write_record(tmp_path / "record.json", record)
    again = read_record(tmp_path / "record.json", type(record))
    assert alike(again.model_dump()) == alike(record.model_dump())
    assert json.loads((tmp_path / "record.json").read_text()).get("format", FORMAT) == FORMAT


def test_what_a_defense_logs_is_written_only_where_there_is_something() -> None:
    assert "logged" not in card(history=(LINE,)).model_dump()["history"][0]
    line = LINE.model_copy(update={"logged": {"perturbation": 0.25}})
    written = json.dumps(alike(card(history=(line,)).model_dump()))
    assert parse_record(written, type(card()), Path("x")).history[0].logged == {"perturbation": 0.25}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_do_not_change(record: Record) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(record, next(iter(type(record).model_fields)), None)


@pytest.mark.parametrize("record", [r for r in RECORDS if isinstance(r, Document)], ids=lambda r: type(r).__name__)
def test_a_later_format_is_refused(record: Record, tmp_path: Path) -> None:
    text = json.dumps(alike(record.model_dump()) | {"format": FORMAT + 1})
    with pytest.raises(UserError) as raised:
        parse_record(text, type(record), tmp_path / "x.json")
    wanted = f"x.json is of format {FORMAT + 1}, and this version of gauntlet reads up to {FORMAT}: update it"
    assert str(raised.value).endswith(wanted)


@pytest.mark.parametrize(
    ("lacking", "expected"),
    [
        (("format", "part", "cascade", "unsteady", "answers", "needs_a_boundary", "levels"), {"part": "test"}),
        (("format", "weights", "versions", "git_commit", "command", "class_names"), {"weights": {}, "command": ""}),
        (("family",), {"family": "iterated"}),
    ],
)
def test_what_earlier_records_lack_has_its_default(lacking: tuple[str, ...], expected: dict[str, Any]) -> None:
    values = {name: value for name, value in alike(result(3).model_dump()).items() if name not in lacking}
    found = parse_record(json.dumps(values), Result, Path("x"))
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": True}, "seed: input should be a valid integer"),
        ({"n": 3.5}, "n: input should be a valid integer"),
        ({"eps": "0.1"}, "eps: input should be a valid number"),
        ({"norm": "l3"}, "norm: input should be 'l0', 'l1', 'l2', 'linf' or 'rms'"),
        ({"answers": {"referee": {"images": 1}}}, "result.json has no 'answers.referee.differ'"),
        ({"errors": "none"}, "errors: input should be a valid array"),
        ({"cell": None}, "cell: input should be a valid string"),
    ],
)
def test_what_is_no_record_is_said_in_a_line(change: dict[str, Any], said: str) -> None:
    text = json.dumps(alike(result(3).model_dump()) | change)
    with pytest.raises(UserError) as raised:
        parse_record(text, Result, Path("folder/result.json"), "result.json")
    assert str(raised.value) == f"folder/result.json is damaged ({said})"


@pytest.mark.parametrize("text", ["", "[", "3", "null", "[" * 100_000, '{"n": 1'])
def test_nor_is_what_is_no_object(text: str) -> None:
    with pytest.raises(UserError, match=r"^x is damaged \(.+\)$") as raised:
        parse_record(text, PlanRecord, Path("x"))
    assert "\n" not in str(raised.value)
