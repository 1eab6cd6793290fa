"""The leaderboard on the terminal: intervals, shared ranks, and no word torn apart where there is room."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from harness.cli import console
from harness.leaderboard import leaderboard
from harness.metrics.pairs import Board
from tests.helpers.boards import model, pair

GRID = (0.05, 0.1, 0.15)
ATTACK = "apgd-art(max_iter=50, nb_random_init=1)"


def lost(count: int, n: int = 200) -> list[float]:
    return np.where(np.arange(n) < count, 0.01, np.nan).tolist()


def board(counts: dict[str, int], *, attacks: Sequence[str] = (ATTACK,), **parts: Any) -> Board:
    """Defenses to the images that each attack breaks at every eps."""
    pairs = [
        pair(lost(count), model=f"{name}-0", defense=name, architecture="mlp-100-100", attack=attack)
        for name, count in counts.items()
        for attack in attacks
    ]
    return Board("quick", {"mnist": {"linf": GRID}}, pairs, **parts)


def printed(shown: Board, width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    out = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=out, width=width, highlight=False))
    info = SimpleNamespace(eps={"linf": 0.1})
    console.print_leaderboard([shown], SimpleNamespace(infos={"mnist": info}))  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160])
def test_fits_and_shows_the_interval_that_ranks(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = board({"standard": 150, "fast-gradient": 60})
    text = printed(shown, width, monkeypatch)
    assert max(map(len, text.splitlines())) <= width
    rows = leaderboard(shown)
    for row in rows[rows["eps"] == 0.1].to_dict("records"):
        low, high = f"{100 * row['worst_case_low']:.1f}", f"{100 * row['worst_case_high']:.1f}"
        accuracy = f"{100 * row['worst_case_accuracy']:.1f} %"
        if width == 160:
            assert f"{accuracy} ({low} to {high})" in text
        assert accuracy in text
        assert f"{low} to {high}" in text


@pytest.mark.parametrize(("width", "eps"), [(80, 1), (100, 3), (120, 3), (160, 3)])
def test_no_word_is_torn_apart(width: int, eps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is too little room for every eps there is the one that ranks, and that is said."""
    text = printed(board({"standard": 150, "fast-gradient": 60}), width, monkeypatch)
    for word in ("mlp-100-100", "standard", "fast-gradient", "apgd-art"):
        assert word in text
    assert ATTACK not in text
    assert len(set(re.findall(r"eps [\d.]+ ┃", text))) == eps
    assert ("other eps" in text) == (eps == 1)


def test_settings_are_shown_where_attacks_differ_in_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = board({"standard": 150}, attacks=("pgd(steps=10)", "pgd(steps=40)"))
    assert "pgd(steps=10)" in printed(shown, 160, monkeypatch)


@pytest.mark.parametrize("width", [60, 160])
def test_a_shared_rank_is_marked_and_explained_once(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(board({"a": 150, "b": 151, "c": 150, "d": 20}), width, monkeypatch)
    assert len(re.findall(r"│ 2= │", text)) == 3
    assert len(re.findall(r"│  1 │", text)) == 1
    (line,) = (line for line in " ".join(text.split()).split("trust") if "shared rank" in line)
    assert "2= shared rank: not told apart from the best of these on these images" in line


def test_ranks_of_one_model_each_need_no_explanation(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(board({"a": 150, "b": 20}), 120, monkeypatch)
    assert "shared" not in text
    assert "=" not in re.sub(r"<=", "", text)


def test_without_a_rank_the_number_is_a_bound_and_the_reason_stands_below_once(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {
        "a-0": model("a", 0, architecture="mlp-100-100"),
        "b-0": model("b", 0, architecture="mlp-100-100"),
    }
    models["x-0"] = model("x", 0, "failed", "diverged")
    shown = board({"a": 150, "b": 150}, models=models, unasked={"a-0": ["u", "v"], "b-0": ["u", "v"]})
    text = printed(shown, 160, monkeypatch)
    assert text.count("<= 25.0 % (19.5 to 31.4)") == 2 * len(GRID)
    assert "no rank, mlp-100-100 a, mlp-100-100 b: seed 0: 2 of the suite's 3 pairs were not asked for\n" in text
    assert "mlp-200-200 x: seed 0: diverged" in text
    assert "nan" not in text


def test_reasons_that_the_note_gives_are_not_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = leaderboard(board({"a": 100})).to_dict("records")[:1]
    rows[0] |= {"note": "trust D: masked", "trust": "D", "trust_reasons": "masked; few images", "certificate": ""}
    out = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=out, width=160, highlight=False))
    console._remarks(rows)
    assert out.getvalue() == "no rank, mlp-100-100 a: trust D: masked\ntrust D also, mlp-100-100 a: few images\n"


def test_the_same_reserve_is_told_once_for_all_models(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(board({"a": 100, "b": 100, "c": 100}), 160, monkeypatch)
    assert " ".join(text.split()).count("trust B, mlp-100-100 a, mlp-100-100 b, mlp-100-100 c: ") == 1


def test_nothing_broken_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "none broke any" in printed(board({"a": 0}), 120, monkeypatch)


def test_what_a_sampled_cascade_did_not_show_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = leaderboard(board({"a": 100})).to_dict("records")[:1]
    rows[0] |= {"trust_reasons": "", "certificate": "", "withheld": "9 of the 10 images that stand were not shown"}
    out = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=out, width=160, highlight=False))
    console._remarks(rows)
    assert out.getvalue() == "sampled, mlp-100-100 a: 9 of the 10 images that stand were not shown\n"
