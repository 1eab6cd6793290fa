"""A model that comes in by the command line and from Python is judged alike: numbers, grade and notes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gauntlet
from harness.datasets.registry import DataSource, load_dataset
from harness.execution.jobs import Context
from harness.execution.runner import run
from harness.external import external
from harness.external.reference import parse
from harness.metrics.pairs import worst_case
from harness.planning.plan import plan
from harness.records.boards import boards_from_home
from harness.records.home import Home
from harness.trust.admission import admit
from harness.trust.grade import trust
from suites import suite

MODELS = Path(__file__).with_name("doors.py")
NAMES = re.findall(r"^def (\w+)\(\)", MODELS.read_text(), re.MULTILINE)
SAMPLES = 100


def by_the_command(name: str, home: Path) -> dict[str, Any]:
    source = DataSource("digits")
    guest = admit(f"{MODELS}:{name}", source.load(), fetched=home / "fetched")
    made = plan(suite("quick"), [guest.spec], {"digits": source.info()}, samples=SAMPLES)
    place = Home(home).create()
    guest.register(place)
    ended = run(made, Context(place, {"digits": source}), jobs=1, command="")
    assert not ended.failures, ended.failures
    (board,) = boards_from_home(place)
    pairs = board.by_model[guest.spec.key]
    grades = {norm: trust(board, guest.spec.key, norm) for norm in board.budgets["digits"]}
    return {
        "worst": {
            (norm, eps): worst_case(pairs, norm, eps).accuracy
            for norm, grid in board.budgets["digits"].items()
            for eps in grid
        },
        "trust": {norm: [grade.grade, list(grade.reasons)] for norm, grade in grades.items() if grade is not None},
        "notes": [without(note, f"{MODELS}:{name}", f"doors:{name}") for note in (*guest.notes, *made.notes)],
    }


def from_python(name: str) -> dict[str, Any]:
    model = external.load(parse(f"{MODELS}:{name}"))
    # of the data set, not of its images: random numbers follow from the name of what images are of
    frame = gauntlet.evaluate(model, load_dataset("digits"), suite=replace(suite("quick"), samples=SAMPLES))
    worst = {(case["norm"], case["eps"]): case["accuracy"] for case in frame.attrs["worst_case"]}
    notes = [without(note, "model") for note in frame.attrs["notes"]]
    return {"worst": worst, "trust": frame.attrs["trust"], "notes": notes}


def without(note: str, *names: str) -> str:
    """A note without the name of the model that it is on: the two call it differently."""
    for name in names:
        note = note.removeprefix(f"{name}: ")
    return note


pytestmark = pytest.mark.filterwarnings("ignore")  # of what torch will drop


@pytest.mark.parametrize("name", NAMES)
def test_both_doors_agree(name: str, tmp_path: Path) -> None:
    try:
        expected: Any = by_the_command(name, tmp_path / "home")
    except gauntlet.UserError as error:
        with pytest.raises(gauntlet.UserError, match=re.escape(str(error))):
            from_python(name)
        return
    assert from_python(name) == expected


def test_there_are_twenty_kinds() -> None:
    assert len(NAMES) >= 20
    assert all(isinstance(external.load(parse(f"{MODELS}:{name}")), nn.Module) for name in NAMES)
    assert torch.get_default_dtype() == torch.float32
