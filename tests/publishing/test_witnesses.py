"""Witnesses: which images are kept, in how much room, and what reads them back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from defenses.standard import Standard
from harness.attacks.apgd import APGD
from harness.cli.planning import room
from harness.datasets.registry import DATASETS, Dataset
from harness.judging.proposal import Bench, Proposal
from harness.judging.shard import run_shard
from harness.planning.plan import plan, specs
from harness.records import witnesses
from harness.records.home import Home
from harness.records.results import Damaged
from harness.schema.witnesses import WitnessFacts
from harness.threat import Threat
from suites import suite

FACTS = WitnessFacts(norms=("linf", "l2"), weights="w")


def rows(cell: str, linf: list[float], l2: list[float], index: list[int] | None = None) -> witnesses.Rows:
    """Made-up witnesses of one pair; each image holds the first of its distances."""
    n = len(linf)
    found: witnesses.Rows = {name: np.zeros(n) for name in ("l0", "l1", "rms")}
    found |= {name: np.arange(n) for name in ("adv_pred", "place", "batch")}
    found |= {"index": np.array(index or range(n)), "linf": np.array(linf), "l2": np.array(l2)}
    found["x_adv"] = np.array(linf, np.float32)[:, None, None, None] * np.ones((1, 1, 2, 2), np.float32)
    return found


def keep(home: Home, cell: str, found: witnesses.Rows, weights: str = "w") -> None:
    witnesses.keep(home, cell, found, ("linf", "l2"), model="m", weights=weights, part="test")


def kept(home: Home) -> list[tuple[int, str]]:
    table = [witnesses.read_table(path)[0] for path in witnesses.tables(home, "m")]
    return [(int(i), str(c)) for part in table for i, c in zip(part["index"], part["cell"], strict=True)]


def test_the_nearest_in_any_norm_is_kept(tmp_path: Path) -> None:
    home = Home(tmp_path)
    keep(home, "a", rows("a", [0.1, 0.2], [3.0, 1.0]))
    keep(home, "b", rows("b", [0.2, 0.2], [2.0, 1.0]))  # image 0: nearer in l2; image 1: as near, a later key
    keep(home, "c", rows("c", [0.3, 0.3], [4.0, 4.0]))
    assert kept(home) == [(0, "a"), (0, "b"), (1, "a")]
    keep(home, "a", rows("a", [0.5], [5.0]))  # measured anew, with less
    assert kept(home) == [(0, "b")]
    keep(home, "b", rows("b", [], []))
    assert kept(home) == []
    keep(home, "d", rows("d", [0.9], [9.0]), weights="other")
    assert kept(home) == [(0, "d")]


def test_a_table_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witnesses, "CHUNK", 3 * 4 * 4)
    home = Home(tmp_path)
    keep(home, "a", rows("a", [0.1] * 5, [1.0] * 5, [0, 2, 3, 7, 8]))
    assert [path.stem for path in witnesses.tables(home, "m")] == ["00000", "00001", "00002"]
    assert kept(home) == [(place, "a") for place in (0, 2, 3, 7, 8)]
    keep(home, "a", rows("a", [0.1], [1.0], [3]))
    assert [path.stem for path in witnesses.tables(home, "m")] == ["00001"]


def test_images_come_back_to_the_bit_and_damage_is_named(tmp_path: Path) -> None:
    home = Home(tmp_path)
    given = rows("a", [0.1, 0.7], [1.0, 1.0])
    given["x_adv"] = np.random.default_rng(0).random((2, 3, 5, 4), np.float32)
    keep(home, "a", given)
    (path,) = witnesses.tables(home, "m")
    table, facts = witnesses.read_table(path)
    assert table["x_adv"].dtype == np.float32
    assert np.array_equal(table["x_adv"], given["x_adv"])
    assert facts.weights == "w"
    whole = path.read_bytes()
    for at in range(0, len(whole), 41):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(Damaged, match="damaged"):
            witnesses.read_table(path)
    path.write_bytes(whole)
    other = home.witnesses("other") / path.name
    other.parent.mkdir()
    path.rename(other)
    with pytest.raises(Damaged, match="is that of m/00000"):
        witnesses.read_table(other)


def test_witnesses_are_what_the_referee_judged(trained: nn.Module, digits: Dataset) -> None:
    """Each breaks the model, at the distance and with the label of the table; nothing else is among them."""
    index, (x, y) = digits.test_sample(60)
    bench = Bench.of(trained, 10, "cpu")
    found = run_shard(bench, APGD(steps=5), Threat("linf", 0.1), index=index, x=x, y=y, seed=0)
    broken = found.samples[found.samples["adversarial"]]
    mine = found.witnesses
    assert len(broken) > 10
    assert mine["index"].tolist() == broken["index"].tolist()
    rows_of = {int(place): row for row, place in enumerate(index)}
    at = [rows_of[int(place)] for place in mine["index"]]
    images = torch.tensor(mine["x_adv"])
    assert bench.referee.predict(images).tolist() == mine["adv_pred"].tolist() == broken["adv_pred"].tolist()
    assert (mine["adv_pred"] != y[at].numpy()).all()
    for norm in ("linf", "l2", "l1"):
        assert Threat(norm).distance(x[at], images).tolist() == pytest.approx(broken[norm].tolist())
        assert mine[norm].tolist() == broken[norm].tolist()
    nothing = run_shard(bench, APGD(steps=5), Threat("linf", 0.1), index=index, x=x, y=y, seed=0, crafted=_off(x))
    assert not len(nothing.witnesses["index"])


def _off(x: Tensor) -> Proposal:
    """Images that break any model and are none: too far, outside, not finite."""
    images = x.roll(1, 0)
    images[::3] = torch.nan
    images[1::3] += 1
    return Proposal(images, 0.0, 0, 0)


def test_the_plan_says_how_large_they_may_be() -> None:
    info = DATASETS["mnist"]
    models = specs([info], ["mlp-8"], [Standard()], [0, 1])
    made = plan(suite("quick"), models, {"mnist": info}, samples=10_000)
    assert "at most 125 MB" in room([made], "worst-case")  # two models, two norms, 31.4 MB each
    assert "every pair" in room([made], "all")
    assert "none are kept" in room([made], "none")
