"""Whom a cascade shows to an attack, on hand-made results of the attacks before it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from defenses.standard import Standard
from harness.attacks.apgd import APGD
from harness.attacks.fmn import MinimumNorm
from harness.attacks.rays import RayS
from harness.attacks.square import Square
from harness.execution.jobs import Judge, Sampling
from harness.execution.standing import Shown, _tenth, fallen
from harness.execution.standing import before as read_before
from harness.execution.standing import shown as shown_to
from harness.judging.shard import ShardOutcome
from harness.planning.specs import Cell, Certification, ModelSpec
from harness.records.files import write_record
from harness.records.home import Home
from harness.records.results import write_shard
from harness.schema.base import Provenance
from harness.schema.certificates import CertificateFacts, CertificateRecord, CertifiedLevel
from harness.schema.pairs import ShardFacts, Share
from harness.schema.probes import PlantedRecord, ProbeRecord, Wavering
from harness.threat import Threat
from tests.helpers.boards import facts as probe_found
from tests.helpers.boards import frame
from tests.helpers.planted import planted

N = 6
MODEL = ModelSpec(dataset="digits", architecture="softmax", defense=Standard())
SCREEN = Certification(model=MODEL, norm="linf", grid=(0.1, 0.2), n=N, intervals=True)


def shown(
    monkeypatch: pytest.MonkeyPatch,
    before: dict[str, dict[int, float]],
    *,
    eps: float | None,
    ceiling: float | None = None,
    below: tuple[str, ...] = (),
    screen: Certification | None = None,
    home: Home | None = None,
) -> list[int]:
    """Positions shown to a cell after others that broke images (by position) at distances."""

    def samples(folder: Path, _: int) -> pd.DataFrame:
        distances = np.full(N, np.nan)
        for at, distance in before[folder.name].items():
            distances[at] = distance
        return frame(distances)

    monkeypatch.setattr("harness.execution.standing.shard_samples", samples)
    attack = MinimumNorm() if eps is None else APGD()
    cell = Cell(victim=MODEL, attack=attack, threat=Threat("linf", eps), n=N, batch=N, floor=eps or 0.1)
    cell = dataclasses.replace(cell, ceiling=ceiling, screen=screen)
    home, job = home or Home(Path("nowhere")), Judge(cell, 0, tuple(before), below)
    return np.flatnonzero(shown_to(home, job, read_before(home, job), np.arange(N), np.zeros(N, int)).images).tolist()


def test_what_fell_is_not_attacked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {"a": {0: 0.05, 1: 0.15}, "b": {2: 0.1}}
    assert shown(monkeypatch, before, eps=0.1) == [1, 3, 4, 5]
    assert shown(monkeypatch, before, eps=0.2) == [3, 4, 5]
    assert shown(monkeypatch, before, eps=None) == [1, 3, 4, 5]


def test_what_stands_at_the_larger_eps_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {"larger": {0: 0.15, 1: 0.2, 2: 0.19}, "minimal": {2: 0.05}}
    assert shown(monkeypatch, before, eps=0.1, ceiling=0.2) == [0, 1]


def test_a_larger_eps_that_failed_spares_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {"larger": {0: 0.15, 1: 0.2}, "smaller": {5: 0.08}}
    assert shown(monkeypatch, before, eps=0.1, ceiling=0.2, below=("smaller",)) == [0, 1, 2, 3, 4]
    agreeing = {"larger": {0: 0.15, 1: 0.2}, "smaller": {0: 0.08}}
    assert shown(monkeypatch, agreeing, eps=0.1, ceiling=0.2, below=("smaller",)) == [1]


def test_what_provably_stands_is_not_attacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path)
    proved = {0.1: (True, True, False, False, True, False), 0.2: (True, False, False, False, False, False)}
    levels = tuple(CertifiedLevel(eps=eps, certified=flags, margins=(0.0,) * N) for eps, flags in proved.items())
    facts = CertificateFacts(norm="linf", n=N, index=tuple(range(N)), levels=levels, cost=3, seconds=0.0)
    path = home.certificate(SCREEN.key, 0)
    path.parent.mkdir(parents=True)
    write_record(path, CertificateRecord(facts=facts))
    before = {"first": {1: 0.15, 5: 0.05}}
    assert shown(monkeypatch, before, eps=0.1, screen=SCREEN, home=home) == [2, 3]
    assert shown(monkeypatch, before, eps=0.2, screen=SCREEN, home=home) == [2, 3, 4]
    # 1 stands provably at 0.1 and fell at 0.2: no eps is left open
    assert shown(monkeypatch, before, eps=None, screen=SCREEN, home=home) == [2, 3, 4]


COST: dict[str, Any] = {"seconds": 0.0, "forwards": 0, "backwards": 0}


class TestShares:
    """Of 40 images in ten classes, all of which stand but the first five."""

    LABELS = np.arange(40) % 10

    @pytest.fixture
    def home(self, tmp_path: Path) -> Home:
        return Home(tmp_path).create()

    def cell(self, share: Share, eps: float | None = 0.1, twin: str = "") -> Cell:
        attack = Square() if eps is not None else RayS()
        threat = Threat("linf", eps)
        return Cell(victim=MODEL, attack=attack, threat=threat, n=40, batch=40, floor=0.1, share=share, twin=twin)

    def keep(self, home: Home, key: str, distances: npt.NDArray[Any], **facts: Any) -> None:
        outcome = ShardOutcome(frame(distances, **facts.pop("columns", {})), ShardFacts(**COST, **facts), {})
        write_shard(home.cell(key), 0, outcome, Provenance())

    def met(self, home: Home, cell: Cell, sampling: Sampling, *before: str) -> Shown:
        job = Judge(cell, 0, ("first", *before), sampling=sampling)
        return shown_to(home, job, read_before(home, job), np.arange(40), self.LABELS)

    @pytest.fixture
    def first(self, home: Home) -> Sampling:
        self.keep(home, "first", np.where(np.arange(40) < 5, 0.05, np.nan))
        return Sampling((0.1, 0.2), {"tenth": 1}, None, None)

    def test_a_tenth_is_spread_over_the_classes_and_the_same_for_every_attack(
        self, home: Home, first: Sampling
    ) -> None:
        (one, none), (other, _) = (self.met(home, self.cell("tenth", eps), first) for eps in (0.1, None))
        assert one.sum() == 4
        assert none == 0
        assert not one[:5].any()
        assert len(set(self.LABELS[one])) == 4
        assert np.array_equal(one, other)

    @pytest.mark.parametrize("shard", range(5))
    def test_the_tenths_of_more_and_of_fewer_images_share_what_they_can(self, shard: int) -> None:
        rng = np.random.default_rng(shard)
        labels = rng.integers(0, 10, 1000)
        more = rng.random(1000) < 0.9
        fewer = more & (rng.random(1000) < 0.5)
        of_more, of_fewer = (_tenth(self.cell("tenth"), shard, left, labels) for left in (more, fewer))
        assert (of_more.sum(), of_fewer.sum()) == tuple(-(-left.sum() // 10) for left in (more, fewer))
        shared = (of_more & fewer).sum()
        assert (of_more & of_fewer).sum() == min(shared, of_fewer.sum())
        counts = np.bincount(labels[_tenth(self.cell("tenth"), shard, np.ones(1000, bool), labels)], minlength=10)
        assert np.abs(counts - np.bincount(labels) / 10).max() <= 2

    def test_whoever_stands_alone_is_the_tenth(self, home: Home) -> None:
        self.keep(home, "first", np.where(np.arange(40) != 7, 0.05, np.nan))
        found = self.met(home, self.cell("tenth"), Sampling((0.1,), {}, None, None))
        assert np.flatnonzero(found.images).tolist() == [7]

    @pytest.mark.parametrize(
        ("fell", "probe", "found", "opens"),
        [
            (0, {}, None, False),
            (0, {}, 1.0, False),
            (1, {}, None, True),
            (0, {}, 0.5, True),  # gradients miss what is known to be there
            (0, {"n": 3}, None, True),
            (0, {"votes": 9, "stochastic": Wavering(draws=8, labels=0.1, logits=0.1)}, None, True),
            (0, None, None, True),  # nobody looked
        ],
    )
    def test_the_rest_is_met_where_there_is_a_reason(
        self, home: Home, first: Sampling, fell: int, probe: Any, found: float | None, opens: bool
    ) -> None:
        tenth, _ = self.met(home, self.cell("tenth"), first)
        self.keep(home, "tenth", np.full(40, np.nan), columns={"attacked": tenth}, fallen=fell)
        if probe is not None:
            facts = probe_found(n=100).model_copy(update=probe)
            write_record(home.health("looked"), ProbeRecord(key="looked", facts=facts))
            first = dataclasses.replace(first, probe="looked")
        if found is not None:
            write_record(
                home.planted("grown"), PlantedRecord(facts=planted(floats=round(32 * found), grid=round(32 * found)))
            )
            first = dataclasses.replace(first, planting="grown")
        images, withheld = self.met(home, self.cell("rest", twin="tenth"), first, "tenth")
        standing = np.arange(40) >= 5
        assert np.array_equal(images, standing & ~tenth if opens else np.zeros(40, bool))
        assert withheld == (0 if opens else 31)

    def test_what_counts_as_fallen_stood_at_that_eps(self, home: Home, first: Sampling) -> None:
        self.keep(home, "first", np.where(np.arange(40) < 5, 0.15, np.nan))
        samples = frame(np.where(np.isin(np.arange(40), (0, 1, 9)), [0.05, 0.18, *[0.15] * 38], np.nan))
        job = Judge(self.cell("tenth", None), 0, ("first",), sampling=first)
        frames = read_before(home, job)
        assert fallen(job, frames, samples) == 2  # 0 at the smaller eps, 9 at the larger; 1 had fallen there
        assert fallen(dataclasses.replace(job, cell=self.cell("tenth", 0.1)), frames, samples) == 1
