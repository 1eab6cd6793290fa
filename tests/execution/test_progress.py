"""Progress where there is no terminal: a line says what is under way, and nothing of what there is none of."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from harness.execution.jobs import Judge, Plant, Train
from harness.execution.progress import Display
from harness.execution.runner import Watch
from harness.records.home import Home


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("harness.execution.progress.time", made)
    return made


def shown(tmp_path: Any, *surrogates: str) -> tuple[Display, io.StringIO]:
    plan: Any = SimpleNamespace(crafters=[SimpleNamespace(key=key) for key in surrogates])
    out = io.StringIO()
    return Display(plan, Home(tmp_path), Console(file=out, width=300)), out


def test_a_line_says_what_is_under_way(tmp_path: Any, clock: Clock) -> None:
    display, out = shown(tmp_path, "k")
    running: Any = {"a": Judge("noise on mlp-8", 0), "b": Train(SimpleNamespace(key="k"))}  # type: ignore[arg-type]
    display(Watch(cells=2, cells_done=1, shards=4, shards_done=3, running=running))
    assert out.getvalue() == (
        "shards 3/4; pairs 1/2; judge noise on mlp-8: loading libraries and data; "
        "train the surrogate namespace(key='k'): loading libraries and data\n"
    )


def test_the_time_left_and_long_steps_are_named(tmp_path: Any, clock: Clock) -> None:
    display, out = shown(tmp_path)
    left: Any = {f"plant {i}": Plant(f"in model {i}") for i in range(3)}  # type: ignore[arg-type]
    display(Watch(running={"plant 0": left["plant 0"]}, left=left))
    assert "time left: not known yet" in out.getvalue()
    clock.now += 60
    del left["plant 0"]
    display(Watch(running={"plant 1": left["plant 1"]}, left=left))
    assert out.getvalue().splitlines()[-1] == "about 2 min left; plant in model 1"
    clock.now += 30
    display(Watch(running={"plant 1": left["plant 1"]}, left=left))
    assert out.getvalue().splitlines()[-1] == "about 2 min left; plant in model 1, for 30 s"


def test_what_waits_for_the_tracking_store_is_named(tmp_path: Any, clock: Clock) -> None:
    display, out = shown(tmp_path)
    display(Watch(cells=5, cells_done=2, shards=5, shards_done=5))
    assert out.getvalue() == "shards 5/5; pairs 2/5; record and deliver 3 results\n"
