"""The band between what is proved and what was broken, and what contradicts itself."""

from __future__ import annotations

import math
from typing import Any

import pytest

from harness.leaderboard import LEADERBOARD_COLUMNS, contradictions, leaderboard
from harness.metrics.certificates import band
from harness.metrics.pairs import Board
from harness.schema.certificates import CertificateFacts, CertifiedLevel
from tests.helpers.boards import BUDGETS, NAN, pair

INF = math.inf


def facts(*certified: str, index: Any = None, eps: tuple[float, ...] = (0.05, 0.1), **more: Any) -> CertificateFacts:
    """Certified images as text, a string of 0 and 1 for each eps."""
    flags = [tuple(letter == "1" for letter in text) for text in certified]
    index = tuple(range(len(flags[0])) if index is None else index)
    levels = tuple(
        CertifiedLevel(eps=at, certified=flag, margins=tuple(0.25 if one else NAN for one in flag))
        for at, flag in zip(eps, flags, strict=False)
    )
    base: dict[str, Any] = {"norm": "linf", "n": len(index), "index": index, "levels": levels, "cost": 3, "seconds": 1}
    return CertificateFacts(**base | more)


# six images: the first is wrong as it is, the others are broken at these distances
FOUND = pair([NAN, 0.02, 0.07, 0.2, NAN, NAN], [0, 1, 1, 1, 1, 1], cell="c7", run_id="0123456789")


def test_a_band_is_of_the_images_that_were_asked_about() -> None:
    one = band(facts("0001", "0000"), [FOUND], "linf", 0.05)
    assert one is not None
    assert (one.certified, one.attacked, one.n, one.broken) == (0.25, 0.5, 4, ())
    larger = band(facts("000111"), [FOUND], "linf", 0.05)
    assert larger is not None
    assert (larger.certified, larger.attacked, larger.n) == (0.5, 4 / 6, 6)
    assert band(facts("0001"), [FOUND], "linf", 0.3) is None


def test_a_certified_image_that_is_broken_keeps_both_witnesses() -> None:
    one = band(facts("000001", "001101"), [FOUND, pair([NAN] * 6)], "linf", 0.1)
    assert one is not None
    (witness,) = one.broken
    assert (witness.index, witness.margin, witness.cell, witness.run_id) == (2, 0.25, "c7", "0123456789")
    assert witness.attack == "gradient (linf)"
    assert one.contradiction == (
        "certified and broken in linf 0.1: image 2 with margin 0.25 by gradient (linf) (pair c7, run 01234567); "
        "a bug of gauntlet's own, please report it"
    )


def test_the_referees_tolerance_is_part_of_the_ball() -> None:
    close = pair([0.05 * (1 + 0.9e-4), 0.05 * (1 + 1.2e-4)])
    one = band(facts("11"), [close], "linf", 0.05)
    assert one is not None
    assert [witness.index for witness in one.broken] == [0]


def test_an_adversarial_of_another_norm_counts() -> None:
    other = pair([1.0] * 3, norm="l2")  # 0.03 in L-infinity
    one = band(facts("110"), [other], "linf", 0.05)
    assert one is not None
    assert len(one.broken) == 2
    assert one.attacked == 0


def test_what_holds_with_a_probability_is_shown_and_stops_nothing() -> None:
    one = band(facts("011111", alpha=0.001), [FOUND], "linf", 0.05)
    assert one is not None
    assert len(one.broken) == 1
    assert one.contradiction == ""
    said = "of the ideal vote, for each image with probability 0.999; finitely many votes were wrong on 1 of the"
    assert one.remark == f"{said} certified"


def test_without_a_bound_there_is_no_number_and_the_operation_is_named() -> None:
    one = band(facts("000000", uncovered="aten.sort"), [FOUND], "linf", 0.05)
    assert one is not None
    assert math.isnan(one.certified)
    assert math.isnan(one.attacked)
    assert one.remark == "no bound: aten.sort"
    dear = band(facts("", n=40), [FOUND], "linf", 0.05)
    assert dear is not None
    assert math.isnan(dear.certified)
    assert dear.remark.startswith("not certified: bounds of one image would cost more")


def board(proved: CertificateFacts, **more: Any) -> Board:
    return Board("quick", BUDGETS, [FOUND], certificates={"m0": {"linf": proved}}, **more)


def test_the_leaderboard_shows_the_band() -> None:
    rows = leaderboard(board(facts("0001", "0001"))).set_index("eps")
    assert rows["certified"].tolist() == [0.25, 0.25]
    assert rows["certified_attacked"].tolist() == [0.5, 0.25]
    assert rows["certified_n"].tolist() == [4, 4]
    assert rows["certificate"].tolist() == ["", ""]
    assert {"certified", "certified_attacked", "certified_n", "certificate"} <= set(LEADERBOARD_COLUMNS)
    plain = leaderboard(Board("quick", BUDGETS, [FOUND]))
    assert plain["certified"].isna().all()
    assert plain["certified_n"].tolist() == [0, 0]


def test_a_contradiction_stops_the_ranking_at_every_eps() -> None:
    fine, wrong = (leaderboard(board(facts(flags, flags))) for flags in ("000111", "001111"))
    assert fine["rank"].tolist() == [1, 1]
    assert wrong["rank"].isna().all()
    assert wrong["note"].str.contains("certified and broken in linf 0.1: image 2 .*please report it").all()
    assert contradictions(board(facts("001111", "001111")), "m0") == [wrong["note"].iloc[0].split("; trust")[0]]
    chance = leaderboard(board(facts("001111", "001111", alpha=0.001)))
    assert chance["rank"].tolist() == [1, 1]


def test_seeds_are_averaged_and_each_contradiction_names_its_seed() -> None:
    other = pair([NAN, 0.02, 0.07, 0.2, NAN, NAN], [0, 1, 1, 1, 1, 1], model="m1", seed=1, cell="c8")
    both = {"m0": {"linf": facts("000111", "000111")}, "m1": {"linf": facts("000001", "001001")}}
    rows = leaderboard(Board("quick", BUDGETS, [FOUND, other], certificates=both))
    assert rows["certified"].tolist() == pytest.approx([(3 + 1) / 12, (3 + 2) / 12])
    assert rows["note"].str.startswith("seed 1: certified and broken in linf 0.1").all()
