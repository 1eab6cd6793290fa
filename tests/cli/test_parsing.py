from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest

from defenses import defenses
from defenses.fast_gradient import FastGradient
from defenses.pgd import Pgd
from defenses.standard import Standard
from harness.cli.parsing import parse_defense, parse_duration, parse_seeds
from harness.errors import UserError, unknown
from harness.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Odd(Trainer):
    name: ClassVar[str] = "odd"
    flag: bool = False
    word: str = "x"
    maybe: Literal["a", "b"] | None = None
    count: int | None = None


KINDS = {**defenses(), "odd": Odd}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("standard", Standard()),
        ("standard:", Standard()),
        ("pgd:eps=0.25,steps=3,norm=l2", Pgd(eps=0.25, steps=3, norm="l2")),
        ("pgd:eps=none,epochs=None", Pgd()),
        ("pgd:eps=1e-1,", Pgd(eps=0.1)),
        (
            "fast-gradient:alpha=1,optimizer=sgd,patience=3,validation=.1",
            FastGradient(alpha=1.0, optimizer="sgd", patience=3, validation=0.1),
        ),
        ("odd:flag=True,word=y,count=3,maybe=b", Odd(flag=True, word="y", count=3, maybe="b")),
        ("odd:flag=false", Odd()),
    ],
)
def test_defenses(text: str, expected: Trainer) -> None:
    assert parse_defense(text, KINDS) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("standart", "unknown defense 'standart'; did you mean standard.*choose from"),
        ("", "unknown defense ''.*choose from"),
        ("pgd:epss=1", "unknown hyperparameter of pgd 'epss'; did you mean eps.*choose from"),
        ("pgd:name=x", "unknown hyperparameter of pgd 'name'"),
        ("pgd:eps", "pgd: write hyperparameters as key=value,key=value, got 'eps'"),
        ("pgd:eps=a lot", "pgd: eps must be a number, got 'a lot'"),
        ("pgd:steps=2.5", "pgd: steps must be a whole number, got '2.5'"),
        ("pgd:steps=", "pgd: steps must be a whole number, got ''"),
        ("pgd:steps=none", "pgd: steps must be a whole number, got 'none'"),
        ("pgd:norm=l9", "unknown norm for pgd 'l9'; .*choose from linf, l2"),
        ("pgd:eps=-1", "pgd: eps must be at least 0, got -1.0"),
        ("pgd:eps=nan", "pgd: eps must be finite, got nan"),
        ("pgd:lr=inf", "pgd: lr must be finite, got inf"),
        ("odd:flag=1", "odd: flag must be true or false, got '1'"),
        ("odd:maybe=c", "unknown maybe for odd 'c'; .*choose from a, b"),
    ],
)
def test_defenses_that_are_wrong(text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as raised:
        parse_defense(text, KINDS)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0", [0]),
        ("0,1,2", [0, 1, 2]),
        ("0-4", [0, 1, 2, 3, 4]),
        ("7-7", [7]),
        (" 3 , 1-2 ", [3, 1, 2]),
        ("1,0-2,1", [1, 0, 2]),
        ("0-9999", list(range(10_000))),
    ],
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text", ["", "a", "-1", "1-", "1--2", "1.5", "0,,1", "4-2", "0-10000", "0-100000000000000000000", "\u00b2", "1 2"]
)
def test_seeds_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match=r"seeds (are whole numbers|run upwards)") as raised:
        parse_seeds(text)
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize(
    ("name", "choices", "text"),
    [
        ("pgdd", ["pgd", "x"], "unknown thing 'pgdd'; did you mean pgd? choose from pgd, x"),
        ("zzz", iter(["pgd", "x"]), "unknown thing 'zzz'; choose from pgd, x"),
    ],
)
def test_unknown_names(name: str, choices: Any, text: str) -> None:
    assert str(unknown("thing", name, choices)) == text


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("9m", 540), ("2.5h", 9000), (None, math.inf)])
def test_a_time(text: str | None, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "-5m", "0s", "5 minutes", "1e3s"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UserError, match="a time is a number with s, m or h"):
        parse_duration(text)
