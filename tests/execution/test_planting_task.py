"""Planting as a task: declared by a plan, done by a worker, kept in the home and put on the board."""

from __future__ import annotations

from pathlib import Path

import pytest

from defenses.standard import Standard
from harness.attacks.apgd import APGD
from harness.attacks.fast_gradient import Gradient
from harness.attacks.noise import Noise
from harness.attacks.square import Square
from harness.attacks.transfer import Transfer
from harness.datasets.registry import DATASETS, DataSource
from harness.execution.jobs import Context, Plant, Train
from harness.execution.scheduler import Scheduler
from harness.execution.worker import Worker
from harness.planning.partition import take_part
from harness.planning.plan import Plan, plan, specs
from harness.planning.suite import Suite
from harness.records.boards import planted_facts
from harness.records.home import Home
from harness.records.plans import plan_record

DIGITS = DATASETS["digits"]
CRAFTED = Transfer(attack=Gradient(), defense=Standard(), seed_offset=1)


def made(*attacks: object) -> Plan:
    suite = Suite(name="one", summary="", attacks={"linf": attacks}, samples=40)  # type: ignore[dict-item]
    models = specs([DIGITS], ["mlp-8"], [Standard(epochs=2)], [0])
    return plan(suite, models, {"digits": DIGITS})


def test_a_plan_asks_the_attacks_that_search_the_model_itself() -> None:
    (one,) = made(Noise(), Gradient(), CRAFTED, Square(queries=10)).plantings
    assert [attack.label for attack in one.attacks] == ["gradient", "square(queries=10)"]
    assert (one.n, one.threat.eps) == (40, DIGITS.eps["linf"])
    assert made(Noise(), Square(queries=10)).plantings == ()


def test_the_attacks_are_part_of_its_identity_and_not_of_its_seed() -> None:
    (one,), (other,) = made(Gradient()).plantings, made(Gradient(), APGD(steps=5)).plantings
    assert one.key != other.key
    assert one.seed == other.seed
    assert made(Gradient()).probes == made(Gradient(), APGD(steps=5)).probes


def test_it_is_done_once_and_kept(tmp_path: Path) -> None:
    home, whole = Home(tmp_path).create(), made(Gradient())
    (one,) = whole.plantings
    said: list[str] = []
    worker = Worker(Context(home, {"digits": DataSource("digits")}))
    assert Scheduler(whole, home, said.append).count(Plant) == 1
    worker.run(Train(one.model))
    worker.run(Plant(one))
    found = planted_facts(home, one.key)
    assert found is not None
    assert (found.norm, found.eps) == ("linf", one.threat.eps)
    assert Scheduler(whole, home, said.append).count(Plant) == 0
    home.planted(one.key).write_text("nothing")
    assert Scheduler(whole, home, said.append).count(Plant) == 1
    assert "computing it again" in said[-1]


def test_the_record_of_a_plan_names_it(tmp_path: Path) -> None:
    whole = made(Gradient())
    (entry,) = plan_record(whole, "gauntlet run one").plantings
    assert (entry.probe, entry.norm) == (whole.plantings[0].key, "linf")


@pytest.mark.parametrize("number", [1, 2])
def test_parts_share_them_out_with_the_probes(number: int) -> None:
    part = take_part(made(Gradient(), APGD(steps=5)), number, 2)
    assert len(part.plantings) == len(part.probes)
