"""The order of a cascade: minimal attacks, then every budget from the largest down."""

from __future__ import annotations

import pytest

from harness.attacks.apgd import APGD
from harness.attacks.base import Attack
from harness.attacks.fmn import MinimumNorm
from harness.attacks.lbfgs import LBFGS
from harness.attacks.noise import Noise
from harness.attacks.rays import RayS
from harness.attacks.square import Square
from harness.attacks.toolkits.foolbox import Foolbox
from harness.planning.cascade import Link, links
from suites import suite

NOISE, FMN, FIRST, SECOND, SQUARE, RAYS = Noise(), MinimumNorm(), APGD(), APGD(loss="dlr"), Square(), RayS()
BATTERY: list[tuple[Attack, Attack]] = [(one, one) for one in (NOISE, FMN, FIRST, SECOND, SQUARE, RAYS)]


def shown(found: list[Link]) -> list[tuple[Attack, float | None, float | None, float | None]]:
    return [(link.attack, link.eps, link.floor, link.ceiling) for link in found]


def test_of_several_eps_the_largest_comes_first_and_spares_the_smaller() -> None:
    assert shown(links(BATTERY, (0.1, 0.2, 0.3), cascade=True)) == [
        (NOISE, 0.1, 0.1, None),
        (NOISE, 0.2, 0.2, None),
        (NOISE, 0.3, 0.3, None),
        (FMN, None, 0.1, None),
        (RAYS, None, 0.1, None),
        (FIRST, 0.3, 0.3, None),
        (SECOND, 0.3, 0.3, None),
        (SQUARE, 0.3, 0.3, None),
        (FIRST, 0.2, 0.2, None),  # it meets what stands at every eps: a larger one that fails is found out
        (SECOND, 0.2, 0.2, 0.3),
        (SQUARE, 0.2, 0.2, 0.3),
        (FIRST, 0.1, 0.1, None),
        (SECOND, 0.1, 0.1, 0.2),
        (SQUARE, 0.1, 0.1, 0.2),
    ]


def test_at_one_eps_it_is_the_suites_order_but_that_what_ends_where_it_succeeds_comes_before_the_nearest() -> None:
    found = links(BATTERY, (0.1,), cascade=True)
    assert [link.attack for link in found] == [NOISE, FIRST, FMN, SECOND, SQUARE, RAYS]
    assert {link.ceiling for link in found} == {None}
    late = [pair for pair in BATTERY if pair[0] is not FMN]
    assert [link.attack for link in links(late, (0.1,), cascade=True)] == [NOISE, FIRST, SECOND, SQUARE, RAYS]
    late.append((FMN, FMN))
    assert [link.attack for link in links(late, (0.1,), cascade=True)] == [one for one, _ in late]


def test_without_a_gradient_attack_nothing_is_spared() -> None:
    blind = [pair for pair in BATTERY if pair[0] not in (FIRST, SECOND)]
    assert {link.ceiling for link in links(blind, (0.1, 0.2), cascade=True)} == {None}


def test_outside_of_a_cascade_every_attack_sees_every_image() -> None:
    found = links(BATTERY, (0.1, 0.2), cascade=False)
    assert {(link.floor, link.ceiling) for link in found} == {(None, None)}
    assert [link.attack for link in found] == [NOISE, NOISE, FMN, FIRST, FIRST, SECOND, SECOND, SQUARE, SQUARE, RAYS]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_each_pair_is_asked_once_in_either_order(norm: str) -> None:
    battery = [(one, one) for one in suite(norm).attacks[norm]]  # type: ignore[index]
    both = [links(battery, (0.1, 0.2, 0.3), cascade=cascade) for cascade in (True, False)]
    for pair in battery:
        assert pair[0].in_cascade().draws_as == pair[0]
    one, other = ({(link.attack.label, link.eps) for link in found} for found in both)
    assert one == other
    assert len(one) == len(both[0]) == len(both[1])


def test_a_sampled_one_asks_black_box_attacks_last_and_all_about_a_tenth_before_the_rest() -> None:
    found = links(BATTERY, (0.1, 0.2), cascade=True, sampled=True)
    assert [(link.attack, link.eps, link.share) for link in found] == [
        (NOISE, 0.1, "all"),
        (NOISE, 0.2, "all"),
        (FMN, None, "all"),
        (FIRST, 0.2, "all"),
        (SECOND, 0.2, "all"),
        (SQUARE, 0.2, "tenth"),
        (SQUARE, 0.2, "rest"),
        (FIRST, 0.1, "all"),
        (SECOND, 0.1, "all"),
        (SQUARE, 0.1, "tenth"),
        (RAYS, None, "tenth"),
        (SQUARE, 0.1, "rest"),
        (RAYS, None, "rest"),
    ]
    assert shown(found[-4:]) == [(SQUARE, 0.1, 0.1, 0.2), (RAYS, None, 0.1, None)] * 2
    whole = {(link.attack, link.eps, link.floor, link.ceiling) for link in links(BATTERY, (0.1, 0.2), cascade=True)}
    assert {(link.attack, link.eps, link.floor, link.ceiling) for link in found} == whole


def test_nor_does_a_sampled_one_ask_second_opinions_of_everything() -> None:
    early, late, minimal = Foolbox("LinfPGD", steps=7), Foolbox("LinfPGD"), Foolbox("LinfDeepFoolAttack")
    battery = [(one, one) for one in (FMN, early, FIRST, late, SQUARE, minimal)]
    found = links(battery, (0.1, 0.2), cascade=True, sampled=True)
    assert [(link.attack, link.share) for link in found if link.eps != 0.1] == [
        (FMN, "all"),
        (early, "all"),  # ours come after it
        (FIRST, "all"),
        (late, "tenth"),
        (SQUARE, "tenth"),
        (late, "rest"),
        (SQUARE, "rest"),
        (minimal, "tenth"),
        (minimal, "rest"),
    ]
    alone = links([(one, one) for one in (late, SQUARE)], (0.1,), cascade=True, sampled=True)
    assert [(link.attack, link.share) for link in alone] == [(late, "all"), (SQUARE, "tenth"), (SQUARE, "rest")]


def test_another_of_ours_that_looks_for_the_nearest_after_all_others_is_a_second_opinion() -> None:
    found = links([(one, one) for one in (FMN, FIRST, LBFGS(), SQUARE)], (0.1, 0.2), cascade=True, sampled=True)
    assert [(link.attack.name, link.share) for link in found if link.eps != 0.1] == [
        ("fmn", "all"),
        ("apgd", "all"),
        ("square", "tenth"),
        ("square", "rest"),
        ("lbfgs", "tenth"),
        ("lbfgs", "rest"),
    ]


@pytest.mark.parametrize("nearest", [Foolbox("LinfDeepFoolAttack"), LBFGS()], ids=["foolbox", "ours"])
def test_the_nearest_adversarials_are_no_second_opinion_where_nobody_looked_for_them_before(nearest: Attack) -> None:
    found = links([(one, one) for one in (FIRST, nearest)], (0.1, 0.2), cascade=True, sampled=True)
    assert {link.share for link in found} == {"all"}
