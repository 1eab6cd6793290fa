"""What an attack learned on a model is used against that model alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from defenses.standard import Standard
from harness.attacks.base import Attack
from harness.attacks.transfer import Transfer
from harness.datasets.registry import DataSource
from harness.execution.jobs import Context, Judge, Prepare, Train
from harness.execution.scheduler import Scheduler
from harness.execution.worker import Worker
from harness.planning.plan import plan, specs
from harness.planning.specs import Cell
from harness.planning.suite import Suite
from harness.records.checkpoints import card, load_model, save_model
from harness.records.files import read_json, write_json
from harness.records.home import Home
from harness.records.merge import merge
from harness.records.prepared import prepared_record
from harness.records.provenance import provenance
from harness.records.results import shard_path
from harness.threat import Norm, Threat
from harness.victims.victim import Victim
from tests.helpers.boards import card as made_card

DIGITS = DataSource("digits").info()


@dataclass(frozen=True, kw_only=True)
class Learner(Attack):
    """Learns the sum of a model's parameters, a number and a tensor."""

    name: ClassVar[str] = "learner"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    total: float | None = None
    tensors: Any = None

    def prepare(self, victim: Victim, x: Tensor, y: Tensor) -> Attack:
        total = sum(float(p.double().sum()) for p in victim.parameters())
        return replace(self, total=total, tensors={"total": torch.tensor(total)})

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        return x


SUITE = Suite(
    name="small",
    summary="",
    attacks={"l2": (Learner(), Transfer(attack=Learner(), defense=Standard(epochs=1), seed_offset=1))},
    budgets={"l2": (0.5,)},
    samples=20,
    batch=10,
)
MADE = plan(SUITE, specs([DIGITS], ["mlp-8"], [Standard(epochs=1)], [0]), {"digits": DIGITS})


def worker(home: Home) -> Worker:
    return Worker(Context(home, {"digits": DataSource("digits")}))


def left(home: Home) -> list[str]:
    """Names of what is left to do, after it was done but for probes."""
    graph, hand, names = Scheduler(MADE, home, print), worker(home), []
    while (task := graph.take()) is not None:
        if isinstance(task.payload, Train | Prepare | Judge) or task.name.startswith("craft"):
            hand.run(task.payload)
            names.append(task.name)
        graph.done(task.name)
    return names


def ready(home: Home, cell: Cell) -> Path:
    assert cell.prepared_key is not None
    return home.prepared(cell.prepared_key)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """All done, but no pair finished."""
    home = Home(tmp_path_factory.mktemp("done") / "home").create()
    assert {name.split()[0] for name in left(home)} == {"train", "prepare", "craft", "judge"}
    return home


@pytest.fixture
def home(done: Home, tmp_path: Path) -> Home:
    shutil.copytree(done.path, tmp_path / "home")
    return Home(tmp_path / "home")


def test_what_was_learned_says_what_it_was_made_with(home: Home) -> None:
    for cell in MADE.cells:
        record = prepared_record(ready(home, cell))
        assert record.weights == {cell.crafter.key: card(home, cell.crafter.key).sha256}
        assert record.made_with(provenance(home, cell, judged=False))
        assert record.fields["total"] != 0


def test_it_is_kept_while_the_model_is_the_same(home: Home) -> None:
    assert left(home) == []


@pytest.mark.parametrize("cell", MADE.cells, ids=lambda cell: cell.attack.label)
def test_a_model_trained_anew_is_looked_at_anew(home: Home, cell: Cell) -> None:
    model = load_model(home, cell.crafter, DIGITS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    save_model(home, cell.crafter, model, made_card())
    before = read_json(ready(home, cell))["fields"]
    names = left(home)
    assert [name for name in names if name.startswith("prepare")] == [f"prepare {cell.prepared_key}"]
    wanted = sum(float(p.detach().double().sum()) for p in model.parameters())
    assert read_json(ready(home, cell))["fields"] == {"total": wanted} != before
    assert left(home) == []


def old(file: Path) -> None:
    """As it was written before it said what it was made with."""
    write_json(file, {name: value for name, value in read_json(file).items() if name in ("fields", "cost", "tensors")})


SPOILED: dict[str, Callable[[Path], object]] = {
    "without provenance": old,
    "of another commit": lambda file: write_json(file, read_json(file) | {"git_commit": "another"}),
    "damaged": lambda file: file.write_text("{"),
    "a list": lambda file: file.write_text("[]"),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("way", SPOILED)
@pytest.mark.parametrize("cell", MADE.cells, ids=lambda cell: cell.attack.label)
def test_what_cannot_be_relied_on_is_made_anew_with_all_that_was_made_with_it(home: Home, way: str, cell: Cell) -> None:
    content = read_json(ready(home, cell))
    SPOILED[way](ready(home, cell))
    names = left(home)
    wanted = {f"prepare {cell.prepared_key}", *(f"judge {cell.key} {shard}" for shard in range(2))}
    if cell.crafted_key is not None:
        wanted |= {f"craft {cell.crafted_key} {shard}" for shard in range(2)}
    assert set(names) == wanted
    found = read_json(ready(home, cell))
    assert {**found, "cost": 0, "seal": ""} == {**content, "cost": 0, "seal": ""}
    assert left(home) == []


def test_a_run_that_is_killed_then_keeps_nothing_made_with_it(home: Home) -> None:
    cell = MADE.cells[0]
    old(ready(home, cell))
    graph = Scheduler(MADE, home, print)
    worker(home).run(Prepare(cell))
    assert graph.count(Judge) == Scheduler(MADE, home, print).count(Judge) == 2
    assert not shard_path(home.cell(cell.key), 0).exists()


def test_homes_are_merged_with_what_was_learned(home: Home, tmp_path: Path) -> None:
    into = Home(tmp_path / "into").create()
    merged = merge(home, into)
    assert merged.whole
    assert merged.new["prepared"] == 2
    assert left(into) == []
    again = merge(home, into)
    assert (again.new["prepared"], again.same["prepared"]) == (0, 2)


def test_what_was_learned_on_other_weights_is_refused_and_the_rest_is_not(home: Home, tmp_path: Path) -> None:
    cell, other = MADE.cells
    into = Home(tmp_path / "into").create()
    shutil.copytree(home.model(cell.crafter.key), into.model(cell.crafter.key))
    save_model(into, cell.crafter, load_model(home, other.crafter, DIGITS), made_card())
    merged = merge(home, into)
    refused = [line for line in merged.refused if "/prepared/" in line]
    assert len(refused) == 1
    assert f"{ready(home, cell)}: made with other weights of the model {cell.crafter.key}" in refused[0]
    kept = {file.name.split(".")[0] for file in (into.path / "prepared").iterdir()}
    assert kept == {other.prepared_key}


def test_what_does_not_say_on_which_model_it_was_learned_stays_behind(home: Home, tmp_path: Path) -> None:
    for cell in MADE.cells:
        old(ready(home, cell))
    into = Home(tmp_path / "into").create()
    assert merge(home, into).whole
    assert not list((into.path / "prepared").glob("*"))
