"""The time that is left: told from the first task that ended, exact where tasks cost alike."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness.attacks.square import Square
from harness.execution.jobs import Job, Judge, Plant, Train
from harness.execution.time_left import JUDGED, TimeLeft


def plants(count: int) -> dict[str, Job]:
    made: Any = SimpleNamespace()
    return {f"plant {i}": Plant(made) for i in range(count)}


def ended(left: dict[str, Job], *names: str) -> dict[str, Job]:
    return {name: job for name, job in left.items() if name not in names}


def seconds(watched: TimeLeft, left: dict[str, Job], now: float) -> float:
    told = watched.of(left, now)
    assert told is not None
    assert told.whole
    return told.seconds


def test_nothing_is_said_before_anything_has_ended() -> None:
    left = plants(3)
    watched = TimeLeft()
    watched.see({"plant 0": left["plant 0"]}, 0.0)
    assert watched.of(left, 5.0) is None


def test_tasks_that_cost_alike_are_foreseen_exactly() -> None:
    left = plants(10)
    watched = TimeLeft()
    watched.see({name: left[name] for name in ("plant 0", "plant 1")}, 0.0)
    left = ended(left, "plant 0", "plant 1")
    watched.see({name: left[name] for name in ("plant 2", "plant 3")}, 3.0)
    assert seconds(watched, left, 3.0) == pytest.approx(8 * 3 / 2)
    assert seconds(watched, left, 4.0) == pytest.approx(8 * 3 / 2 - 1)
    assert watched.running_for("plant 2", 4.0) == pytest.approx(1)


def test_never_less_than_the_longest_task_takes() -> None:
    left = plants(4)
    watched = TimeLeft()
    watched.see({name: left[name] for name in ("plant 0", "plant 1", "plant 2")}, 0.0)
    left = {"plant 3": left["plant 3"]}
    watched.see(left, 6.0)
    assert seconds(watched, left, 6.0) == pytest.approx(6)


def test_an_attack_not_seen_yet_costs_by_its_passes() -> None:
    victim = SimpleNamespace(dataset="digits", architecture="mlp-8")

    def judge(queries: int, cascaded: bool = False) -> Job:
        attack = Square(queries=queries)
        cell: Any = {"attack": attack, "threat": SimpleNamespace(norm="linf"), "cascaded": cascaded}
        return Judge(SimpleNamespace(victim=victim, batch=10, n=10, **cell), 0)  # type: ignore[arg-type]

    watched = TimeLeft()
    watched.see({"loads libraries": judge(1)}, 0.0)
    watched.see({"short": judge(2)}, 30.0)
    assert seconds(watched, {"long": judge(20)}, 30.0) == pytest.approx(30)  # as long as the first, not 20 times that
    watched.see({}, 31.0)
    passes = JUDGED + 2, JUDGED + 20
    assert seconds(watched, {"long": judge(20)}, 31.0) == pytest.approx(passes[1] / passes[0])
    for cascaded in (False, True):
        told = watched.of({"long": judge(20, cascaded)}, 31.0)
        assert told is not None
        assert told.shrinks == cascaded  # fewer images stand with every attack


def test_a_training_tells_nothing_of_attacks() -> None:
    """Trainings of ten minutes would make a minute of each of a thousand shards."""
    trained: Any = SimpleNamespace(dataset="digits", architecture="mlp-8", defense=SimpleNamespace(name="standard"))
    trainings: dict[str, Job] = {f"train {i}": Train(trained) for i in range(3)}
    watched = TimeLeft()
    watched.see({"train 0": trainings["train 0"]}, 0.0)
    left = {**ended(trainings, "train 0"), **plants(1000)}
    watched.see({"train 1": left["train 1"]}, 600.0)
    assert watched.of(left, 600.0) == (pytest.approx(1200), False, False)
    left = {name: job for name, job in left.items() if name.startswith("plant")}
    watched.see({"plant 0": left["plant 0"]}, 1800.0)
    assert watched.of(left, 1800.0) is None
    watched.see({"plant 1": left["plant 1"]}, 1802.0)
    assert seconds(watched, ended(left, "plant 0"), 1802.0) == pytest.approx(2 * 999)
