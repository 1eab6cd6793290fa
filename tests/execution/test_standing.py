"""Whom a cascade shows to an attack, on hand-made results of the attacks before it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from defenses.standard import Standard
from harness.attacks.apgd import APGD
from harness.attacks.fmn import MinimumNorm
from harness.execution.jobs import Judge
from harness.execution.standing import standing
from harness.planning.specs import Cell, Certification, ModelSpec
from harness.records.files import write_record
from harness.records.home import Home
from harness.schema.certificates import CertificateFacts, CertificateRecord, CertifiedLevel
from harness.threat import Threat
from tests.helpers.boards import frame

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
    home = home or Home(Path("nowhere"))
    return np.flatnonzero(standing(home, Judge(cell, 0, tuple(before), below), np.arange(N))).tolist()


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
