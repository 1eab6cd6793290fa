"""``gauntlet doctor --attacks`` says by name which attacks are not what they should be, and why."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from harness.attacks.base import Attack, Family
from harness.attacks.fast_gradient import Gradient
from harness.attacks.noise import Noise
from harness.attacks.toolkits.art import Art
from harness.attacks.toolkits.foolbox import Foolbox
from harness.attacks.transfer import Transfer
from harness.cli.doctor import examine_attacks, parse_forced
from harness.errors import UserError
from harness.planning.suite import Suite
from harness.threat import Threat
from harness.victims.victim import Victim


@dataclass(frozen=True, kw_only=True)
class Idle(Attack):
    """Proposes the images it was given."""

    name: ClassVar[str] = "idle"

    @property
    def family(self) -> Family:
        return "iterated"

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        if len(y.unique()) > 2:
            raise RuntimeError("too many [classes]")
        return x


@dataclass(frozen=True, kw_only=True)
class Short(Gradient):
    """Goes half the way that it may."""

    name: ClassVar[str] = "short"

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        assert threat.eps is not None
        return super().run(victim, x, y, Threat(threat.norm, threat.eps / 2))


def battery(*attacks: Attack) -> Suite:
    return Suite(name="battery", summary="", attacks={"linf": attacks})


def read(table: Table) -> str:
    """The table on one wide page, runs of blanks made one."""
    page = io.StringIO()
    Console(width=400, file=page).print(table)
    return "\n".join(" ".join(line.split()) for line in page.getvalue().splitlines())


def test_sound_attacks_pass() -> None:
    transfer = Transfer(attack=Gradient(), defense=None)
    told: list[str] = []
    table, healthy = examine_attacks(
        [battery(Gradient(), transfer), battery(Noise())], progress=lambda done, total, label: told.append(label)
    )
    text = read(table)
    assert healthy
    assert table.row_count == 2
    assert "gauntlet gradient linf" in text
    assert "passed on 1" in text
    assert "2 attacks and norms: 2 passed, 0 failed" in text
    assert set(told) == {"gradient", "noise"}


def test_a_weak_attack_is_named_with_what_it_left_and_what_was_stated() -> None:
    table, healthy = examine_attacks([battery(Short(), Noise())])
    text = read(table)
    assert not healthy
    assert "gauntlet short linf" in text
    assert "plain network" in text
    assert "where at most 35% left at linf 0.2 was stated" in text
    assert "gauntlet noise linf" in text
    assert "2 attacks and norms: 1 passed, 1 failed" in text


def test_victims_with_the_same_complaint_share_a_line() -> None:
    table, healthy = examine_attacks([battery(Idle())])
    lines = read(table).splitlines()
    assert not healthy
    assert any("flat linear, 2 classes: changed 0 of 32, where at least 50% of the images" in line for line in lines)
    (shared,) = [line for line in lines if "raised RuntimeError: too many [classes]" in line]
    assert "steep linear, 10 classes / plain network / hardened network / " in shared
    assert "more: raised" in shared


def test_only_those_asked_for() -> None:
    suite = battery(Gradient(), Noise(), Noise(draws=5))
    table, _ = examine_attacks([suite], ["noise(*"])
    assert list(table.columns[1].cells) == ["noise(draws=5)"]
    with pytest.raises(
        UserError, match=r"unknown attack 'gradent'; did you mean gradient\? choose from gradient, noise"
    ):
        examine_attacks([suite], ["noise", "gradent"])


def test_a_forced_attack_alone_unless_others_are_asked_for() -> None:
    suite = battery(Gradient(), Noise())
    forced = ["foolbox:LinfAdditiveUniformNoiseAttack"]
    table, healthy = examine_attacks([suite], (), forced)
    assert healthy
    assert list(table.columns[1].cells) == ["uniform-linf"]
    table, _ = examine_attacks([suite], ["noise"], forced)
    assert list(table.columns[1].cells) == ["noise", "uniform-linf"]


def test_forced_attacks_are_read() -> None:
    attack = parse_forced("art:AutoConjugateGradient?loss_type=cross_entropy&max_iter=7&step_ratio=1.5")
    assert isinstance(attack, Art)
    assert attack == Art.forced("AutoConjugateGradient", loss_type="cross_entropy", max_iter=7, step_ratio=1.5)
    assert attack.supported_norms == ("linf", "l2")
    assert parse_forced("foolbox:LinfPGD") == Foolbox("LinfPGD")
    assert parse_forced("art:CompositeAdversarialAttackPyTorch?enabled_attack=(2, 3)&early_stop=False") == Art(
        "CompositeAdversarialAttackPyTorch", enabled_attack=(2, 3), early_stop=False
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cleverhans:FGSM", "unknown toolkit 'cleverhans'; choose from art, foolbox"),
        ("art:DeepFoul", "unknown art attack 'DeepFoul'; did you mean DeepFool"),
        ("art:DeepFool?steps=3", "unknown option of art DeepFool 'steps'"),
        ("art:DeepFool?max_iter", "art DeepFool: write options as key=value&key=value, got 'max_iter'"),
        ("art:DeepFool?max_iter=many", "max_iter of art DeepFool must be a whole number, got 'many'"),
        ("art:CarliniL2Method", "art CarliniL2Method cannot be forced, the tables only know why it is refused: an al"),
        ("foolbox:NewtonFoolAttack", "foolbox NewtonFoolAttack cannot be forced"),
    ],
)
def test_what_cannot_be_forced_is_said(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_forced(text)
    assert str(caught.value).startswith(words)


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    examine_attacks([battery(Noise())])
    assert torch.get_num_threads() == before
