"""Suites at budgets, in norms and with attacks of the user's; numbers as the field writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.attacks.apgd import APGD
from harness.attacks.toolkits import unlisted
from harness.attacks.toolkits.unlisted import UnlistedArt, UnlistedFoolbox
from harness.cli import planning
from harness.cli.battery import battery, parse_attack, parse_eps, with_attack
from harness.cli.planning import resolve_device
from harness.errors import UserError
from harness.options import guess, number
from harness.records.boards import boards_from_home
from harness.records.home import Home
from harness.schema.eps import eps_text
from harness.threat import Threat
from suites import suite
from tests.helpers.commands import call, complaint

MODEL = """
import torch
def make(scale: float = 1.0):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""


@pytest.mark.parametrize(
    ("text", "value"), [("8/255", 8 / 255), ("1/2", 0.5), (" 4 / 255 ", 4 / 255), ("-1/4", -0.25), ("1e-1/2", 0.05)]
)
def test_fractions_are_numbers_wherever_one_is_taken(text: str, value: float) -> None:
    assert number(text) == guess(text) == value


@pytest.mark.parametrize("text", ["1/0", "1/2/3", "/2", "a/b", "1/"])
def test_what_is_no_fraction(text: str) -> None:
    with pytest.raises(ValueError, match=r"float|zero"):
        number(text)
    assert guess(text) == text


@pytest.mark.parametrize(
    ("eps", "text"), [(8 / 255, "8/255"), (0.1, "0.1"), (0.2, "0.2"), (1.5, "1.5"), (1 / 3, "85/255")]
)
def test_one_spelling_of_an_eps(eps: float, text: str) -> None:
    assert eps_text(eps) == text
    assert str(Threat("linf", eps)) == f"linf {text}"


def test_eps_of_several_norms() -> None:
    assert parse_eps(["8/255"]) == {"linf": (8 / 255,)}
    assert parse_eps(["linf=8/255,4/255", "l2=0.5"]) == {"linf": (4 / 255, 8 / 255), "l2": (0.5,)}
    assert parse_eps(["1/2"], ["l2"]) == {"l2": (0.5,)}
    assert parse_eps([]) == {}


@pytest.mark.parametrize(
    ("eps", "norms", "complaint"),
    [
        (["8"], [], "an L-infinity eps of 8 allows anything; is it 8/255?"),
        (["0"], [], "--eps takes positive numbers such as 8/255 or 0.03, got '0'"),
        (["inf"], [], "--eps takes positive numbers"),
        (["1/0"], [], "--eps takes positive numbers"),
        (["l3=1"], [], "unknown norm 'l3'"),
        (["0.1", "linf=0.2"], [], "linf is given twice"),
        (["0.1"], ["linf", "l2"], "of which norm is --eps 0.1"),
        (["l1=3"], [], "suite quick attacks in linf, l2, not in l1"),
        (["linf=0.1"], ["l2"], "--eps says nothing of l2, which --norm asks for"),
    ],
)
def test_budgets_that_are_wrong(eps: list[str], norms: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint.replace("?", r"\?")):
        battery("quick", suite("quick"), eps=eps, norms=norms)


def test_a_suite_at_a_budget_is_a_battery_of_its_own() -> None:
    found = battery("quick", suite("quick"), eps=["8/255"])
    assert found.suite.name == "quick at linf 8/255"
    assert found.suite.budgets == {"linf": (8 / 255,)}
    assert list(found.suite.attacks) == ["linf"]
    assert found.notes == ("left out: l2, of which --eps says nothing",)
    again = battery(found.words[0], suite("quick"), eps=found.words[2::2])
    assert (again.suite, again.words) == (found.suite, found.words)
    in_l2 = battery("l2", suite("l2"), eps=["1.5"])
    assert in_l2.suite.budgets == {"l2": (1.5,)}
    assert in_l2.notes == ("--eps 1.5 is of l2, in which suite l2 attacks",)
    assert not battery("l2", suite("l2"), eps=["l2=1.5"]).notes
    assert battery("quick", suite("quick")).suite is suite("quick")
    assert battery("quick", suite("quick"), norms=["l2", "linf"]).suite is suite("quick")
    assert battery("quick", suite("quick"), norms=["l2"]).suite.name == "quick in l2"


def test_an_added_attack_joins_every_norm_that_it_has() -> None:
    more, notes = with_attack(suite("quick"), "apgd:steps=7")
    assert notes == []
    assert more.name == "quick + apgd(steps=7)"
    assert all(members[-1] == APGD(steps=7) for members in more.attacks.values())
    assert [len(members) - 1 for members in more.attacks.values()] == [
        len(members) for members in suite("quick").attacks.values()
    ]
    with pytest.raises(UserError, match="art AutoConjugateGradient is refused: "):
        parse_attack("art:AutoConjugateGradient")
    with pytest.raises(UserError, match="bim-art attacks in linf, and suite l2 in l2"):
        with_attack(suite("l2"), "art:BasicIterativeMethod")
    with pytest.raises(UserError, match="unknown art attack 'PGDD'"):
        parse_attack("art:PGDD")


def test_an_attack_without_a_row_is_tested_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ProjectedGradientDescent", "DeepFool", "Wasserstein"):
        monkeypatch.delitem(unlisted.ART_TABLE, name)
    monkeypatch.delitem(unlisted.FOOLBOX_TABLE, "LinfAdamBasicIterativeAttack")
    sound, notes = with_attack(suite("linf"), "art:ProjectedGradientDescent?max_iter=30")
    attack = sound.attacks["linf"][-1]
    assert isinstance(attack, UnlistedArt)
    assert (attack.toolkit, dict(attack.options)["max_iter"]) == ("unlisted art", 30)
    assert "passed its self-test in linf; no health check counts it" in notes[0]
    other, _ = with_attack(suite("linf"), "foolbox:LinfAdamBasicIterativeAttack?steps=30")
    assert isinstance(other.attacks["linf"][-1], UnlistedFoolbox)
    with pytest.raises(UserError, match="unlisted art Wasserstein fails its self-test in linf on the flat"):
        with_attack(suite("linf"), "art:Wasserstein")
    with pytest.raises(UserError, match="unknown option of unlisted art ProjectedGradientDescent 'steps'"):
        with_attack(suite("linf"), "art:ProjectedGradientDescent?steps=3")


def test_auto_takes_the_device_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    usable = {"mps"}
    monkeypatch.setattr(planning, "_can_judge", lambda kind: kind in usable)
    assert resolve_device("auto") == "mps"
    usable.clear()
    assert resolve_device("auto") == "cpu"
    assert resolve_device("cuda:1") == "cuda:1"
    assert resolve_device("auto", ray=True, gpus=0.5) == "cuda"
    assert resolve_device("auto", ray=True) == "cpu"


def test_case_eleven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers as claim forms and papers write them."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MODEL)
    for words, expected in (
        (["--defense", "pgd:eps=8/255"], "pgd(eps=0.0313725"),
        (["--victim", "mine.py:make", "--mean", "1/2", "--std", "1/2"], "mean=0.5, std=0.5"),
        (["--victim", "mine.py:make?scale=1/2", "--eps", "8/255"], "linf 8/255"),
    ):
        result = call("plan", "quick", "--attack", "noise", *words, "--home", "home")
        assert result.exit_code == 0, result.output
        assert expected in result.output
        assert "device: " in result.output


@pytest.mark.slow
def test_a_model_is_called_as_its_owner_likes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MODEL)
    words = ["run", "quick", "--victim", "mine.py:make", "--no-surrogate", "--attack", "noise", "--samples", 8]
    words += ["--eps", "8/255", "--home", "home", "--jobs", 1]
    for name in ("my first", "Mine (final)"):
        result = call(*words, "--name", name)
        assert result.exit_code == 0, result.output
        assert name in result.output
    (board,) = boards_from_home(Home(Path("home")))
    assert {model.defense for model in board.models.values()} == {"Mine (final)"}
    assert {pair.result.defense for pair in board.pairs} == {"Mine (final)"}
    assert len(board.pairs) == 1
    commands = [json.loads(file.read_text())["cells"][0]["command"] for file in Path("home/plans").glob("*.json")]
    assert ["--name 'Mine (final)'" in line for line in commands] == [True]  # the same plan, under its newest name
    assert "give each --victim a --name of its own" in complaint(
        call(*words, "--victim", "mine.py:make?scale=2", "--name", "a", "--name", "a")
    )
    assert "--name is given 2 times for 1 models" in complaint(call(*words, "--name", "a", "--name", "b"))


def test_the_default_name_is_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    Path("mine.py").write_text(MODEL)
    result = call("plan", "quick", "--attack", "noise", "--victim", "mine.py:make", "--home", "home")
    assert result.exit_code == 0, result.output
    assert "mine(" in result.output
    assert "external(" not in result.output
