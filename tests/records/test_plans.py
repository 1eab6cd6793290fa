"""The command that is recorded with a pair measures just that pair again, or there is none."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any, ClassVar

import pytest

from defenses import defenses
from defenses.contractive import Contractive
from defenses.fast_gradient import FastGradient
from defenses.gaussian_blur import GaussianBlur
from defenses.pgd import Pgd
from defenses.standard import Standard
from harness.cli import main
from harness.cli.planning import make_plan
from harness.datasets.registry import DataSource
from harness.planning.plan import plan
from harness.planning.specs import Cell, ModelSpec
from harness.records.plans import command, plan_record
from harness.training.on_trained import OnTrainedModel
from harness.training.trainer import Trainer
from suites import suites
from tests.helpers.commands import call

INFO = DataSource("digits").info()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mine(Trainer):
    """A defense of somebody's own, which no file in defenses/ declares."""

    name: ClassVar[str] = "standard"


def spec(defense: Any, **fields: Any) -> ModelSpec:
    base = {"dataset": "digits", "architecture": "mlp-8", "seed": 1} | fields
    return ModelSpec(defense=defense.resolve(INFO), **base)


def built(kind: Any) -> ModelSpec:
    """A model of any defense, upon a plain one where it takes a base."""
    return spec(kind(), base=spec(Standard())) if issubclass(kind, OnTrainedModel) else spec(kind())


SAYABLE = [
    *(built(kind) for name, kind in defenses().items() if not getattr(kind, "fronted", False)),
    spec(Contractive(weight=(1e-3, 1e-4), squared=False, epochs=3)),
    spec(FastGradient(norm="l2", eps=0.25, lr=1e-05, validation=0.1, patience=2)),
    spec(Pgd(schedule="cosine", compiled=True), seed=7, architecture="lenet"),
    spec(GaussianBlur(kernel=5), base=spec(Standard(epochs=2))),
]
UNSAYABLE = [
    spec(Mine()),
    spec(GaussianBlur(), base=spec(Mine())),
    spec(GaussianBlur(), base=spec(Standard(), seed=2)),
    spec(GaussianBlur(), base=spec(Standard(), architecture="lenet")),
    spec(defenses()["stacked"](), base=spec(Standard()), front=built(defenses()["denoising-autoencoder"])),
]


def planned_again(line: str, monkeypatch: pytest.MonkeyPatch, home: Path) -> dict[str, Cell]:
    """Cells that a command line asks for, by key, as our own command line reads it."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(main, "run_suite", lambda suite, **options: found.update(options, suite=suite))
    program, *words = shlex.split(line)
    done = call(*words)
    assert (program, done.exit_code) == ("gauntlet", 0), done.output
    aside = ("jobs", "engine", "dry_run", "home", "budget", "witnesses")
    taken = {name: value for name, value in found.items() if name not in aside}
    made, _, _ = make_plan(taken.pop("suite"), home=home, **taken)
    return {cell.key: cell for cell in made.cells}


@pytest.mark.parametrize("suite", ["quick", "l2"])
@pytest.mark.parametrize("model", SAYABLE, ids=str)
def test_the_command_line_makes_the_very_same_pairs(
    model: ModelSpec, suite: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = plan(suites()[suite], [model], {"digits": INFO}, samples=50)
    records = {one.attack: one for one in plan_record(made, "test").cells}
    for one in list(records.values())[::4]:
        assert one.cell in planned_again(one.command, monkeypatch, tmp_path)


def test_a_cascade_is_made_again_as_a_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = plan(suites()["quick"], [SAYABLE[0]], {"digits": INFO}, samples=50, cascade=True)
    (line,) = {one.command for one in plan_record(made, "test").cells if one.cascade}
    assert {cell.key for cell in made.cells} == set(planned_again(line, monkeypatch, tmp_path))


@pytest.mark.parametrize("model", UNSAYABLE, ids=str)
def test_what_only_python_can_declare_has_no_command(model: ModelSpec) -> None:
    made = plan(suites()["quick"], [model], {"digits": INFO}, samples=50)
    assert {one.command for one in plan_record(made, "test").cells} == {""}


def test_a_data_set_handed_over_in_python_has_none_either() -> None:
    other = dataclasses.replace(INFO, name="mine")
    made = plan(suites()["quick"], [dataclasses.replace(spec(Standard()), dataset="mine")], {"mine": other})
    assert command(made, made.cells[0]) == ""
    named = dataclasses.replace(made, arguments={"mine": "images:DIR"})
    assert "--dataset images:DIR" in command(named, made.cells[0])
