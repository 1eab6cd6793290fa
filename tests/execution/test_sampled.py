"""A sampled cascade asks what needs no gradients, and second opinions, about a tenth; about all where it has reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import gauntlet
from defenses.standard import Standard
from harness.attacks.apgd import APGD
from harness.attacks.rays import RayS
from harness.attacks.square import Square
from harness.attacks.toolkits.foolbox import Foolbox
from harness.datasets.registry import DataSource
from harness.determinism import seed_everything
from harness.leaderboard import leaderboard
from harness.metrics.pairs import Board, wilson, worst_case
from harness.planning.suite import Suite
from harness.records.boards import boards_from_home
from harness.records.home import Home
from harness.selftest.masked_gradients import ScaledLogits

N, EPS = 80, (0.05,)
SUITE = Suite(
    name="both",
    summary="for tests",
    attacks={
        "linf": (
            APGD(steps=40),
            APGD(loss="dlr", targets=9, steps=20),
            Foolbox("LinfPGD", steps=10),
            Square(queries=60),
            RayS(queries=60),
        )
    },
    budgets={"linf": EPS},
    batch=40,
)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    seed_everything(0)
    return Standard(epochs=20).resolve(DataSource("digits").info()).fit("mlp-64", DataSource("digits").load()).model


def judged(model: nn.Module, home: Path, **how: bool) -> Board:
    _, (x, y) = DataSource("digits").load().test_sample(N)
    gauntlet.evaluate(model, x, y, SUITE, dataset=DataSource("digits").info(), home=home, progress=False, **how)
    (board,) = boards_from_home(Home(home))
    return board


def met(board: Board, share: str) -> int:
    return sum(int(pair.columns["attacked"].sum()) for pair in board.pairs if pair.result.share == share)


def test_a_sound_model_is_attacked_on_a_tenth_and_the_interval_says_so(net: nn.Module, tmp_path: Path) -> None:
    sampled, whole = (judged(net, tmp_path / name, **{name: True}) for name in ("sampled", "cascade"))
    assert (sampled.suite, whole.suite) == ("both, sampled", "both")
    assert met(sampled, "rest") == 0 < met(sampled, "tenth")
    for eps in EPS:
        found, wanted = (worst_case(board.pairs, "linf", eps) for board in (sampled, whole))
        assert found.accuracy == pytest.approx(wanted.accuracy, abs=0.05)
        assert wanted.unseen == 0 < found.unseen
        assert found.low < wanted.low
        assert found.low == wilson(found.accuracy * N - found.doubt, N)[0]
        assert found.high == wilson(found.accuracy * N, N)[1]
    rows = leaderboard(sampled)
    assert rows["worst_case_low"].tolist() == [worst_case(sampled.pairs, "linf", eps).low for eps in EPS]
    assert rows["withheld"].str.contains("were not shown to every black-box attack and second opinion").all()
    assert rows["rank"].notna().all()


def test_where_gradients_are_masked_everything_is_attacked(net: nn.Module, tmp_path: Path) -> None:
    hidden = ScaledLogits(net, 1e4)
    board = judged(hidden, tmp_path, sampled=True)
    assert met(board, "rest") > 5 * met(board, "tenth")
    assert {worst_case(board.pairs, "linf", eps).unseen for eps in EPS} == {0}
    assert torch.equal(hidden(torch.ones(1, 1, 8, 8)).argmax(1), net(torch.ones(1, 1, 8, 8)).argmax(1))


@pytest.mark.long
def test_the_same_shards_are_met_whatever_the_number_of_processes(net: nn.Module, tmp_path: Path) -> None:
    _, (x, y) = DataSource("digits").load().test_sample(N)
    how = {"dataset": DataSource("digits").info(), "sampled": True, "progress": False, "certify": 0}
    frames = [gauntlet.evaluate(net, x, y, SUITE, jobs=jobs, **how) for jobs in (1, 2)]
    assert frames[0].drop(columns="seconds").equals(frames[1].drop(columns="seconds"))
    assert frames[0].attrs["worst_case"] == frames[1].attrs["worst_case"]
    assert frames[0].attrs["worst_case"][0]["unseen"] > 0
