from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from harness.leaderboard import leaderboard
from harness.metrics.pairs import Board, Pair, pair_rows, worst_case
from harness.schema.models import KnownModel
from reports.boards.rows import HeatCell, Panel
from reports.boards.section import Section, sections


@pytest.fixture(scope="module")
def section(board: Board) -> Section:
    (only,) = sections([board], [leaderboard(board)])
    return only


def panel(section: Section, norm: str, eps: float) -> Panel:
    return next(panel for panel in section.panels if (panel.norm, panel.eps) == (norm, eps))


def cell(panel: Panel, defense: str, attack: str) -> HeatCell:
    at = [column.attack for column in panel.columns].index(attack)
    return next(row.cells[at] for row in panel.heat if row.entry.defense == defense)


def test_a_panel_for_every_threat(section: Section) -> None:
    expected = [(norm, eps) for norm, grid in section.board.budgets["mnist"].items() for eps in grid]
    assert [(panel.norm, panel.eps) for panel in section.panels] == expected
    assert section.first == "s0-linf-1"


def test_the_heat_map_holds_every_attack_strongest_first_and_the_control_last(section: Section) -> None:
    for panel in section.panels:
        assert len(panel.columns) == 10
        assert [column.control for column in panel.columns] == [False] * 9 + [True]
        assert panel.columns[-1].attack == "noise"


def test_heat_cells_are_means_over_seeds(section: Section) -> None:
    found = [p for p in section.pairs if p.result.defense == "standard" and p.result.attack == "alpha"]
    alone = [worst_case([pair], "l2", 0.5).accuracy for pair in found if pair.result.norm == "l2"]
    assert len(alone) == 2
    shown = cell(panel(section, "l2", 0.5), "standard", "alpha")
    assert shown.state == "value"
    assert shown.value == pytest.approx(sum(alone) / 2)
    assert shown.anchor == next(
        record.anchor
        for record in section.records[section.entries[0].anchor]
        if record.pair.result.attack == "alpha" and record.pair.result.norm == "l2"
    )


def test_failed_cells_hold_words_and_no_number(section: Section, board: Board) -> None:
    hostile = next(d for d in (p.result.defense for p in board.pairs) if "<script>" in d)
    crashed = cell(panel(section, "l2", 1.0), hostile, "HopSkipJump")
    invalid = cell(panel(section, "l2", 0.5), "fast-gradient", "DDN")
    assert (crashed.state, crashed.value, crashed.text) == ("failed", None, "crashed 1 of 2")
    assert (invalid.state, invalid.value, invalid.text) == ("failed", None, "invalid 2 of 2")
    assert "over budget" in invalid.detail
    assert cell(panel(section, "linf", 8 / 255), "fast-gradient", "DDN").state == "value"


def test_the_worst_case_of_an_unranked_model_is_a_bound(section: Section) -> None:
    states = {(row.entry.architecture, row.entry.defense): row.worst.state for row in section.panels[0].heat}
    assert states["mlp-200-200", "standard"] == "value"
    assert states["mlp-200-200", "fast-gradient"] == "bound"
    assert states["lenet", "standard"] == "absent"


def test_a_model_that_was_never_attacked_stands_last_with_its_reason(section: Section) -> None:
    for panel in section.panels:
        ((n, rows),) = panel.rankings
        assert n == 120
        assert rows[-1]["entry"].architecture == "lenet"
        assert "Diverged" in rows[-1]["note"]
        assert math.isnan(rows[-1].get("worst_case_accuracy", math.nan))
        ranks = [row["rank"] for row in rows if not row["note"]]
        assert ranks == sorted(ranks)
        assert len(ranks) == 3


def test_gains_are_what_the_worst_case_would_rise_by(section: Section) -> None:
    shown = panel(section, "linf", 8 / 255)
    for gain in shown.gains:
        for entry, share in zip(section.attacked, shown_shares := gain.shares, strict=True):
            rises = []
            for pairs in entry.models.values():
                left = [pair for pair in pairs if pair.result.attack != gain.attack]
                rises.append(worst_case(left, "linf", 8 / 255).accuracy - worst_case(pairs, "linf", 8 / 255).accuracy)
            assert share == pytest.approx(sum(rises) / len(rises))
        assert any(shown_shares)
    assert "noise" in shown.idle


def test_every_failure_is_listed(section: Section) -> None:
    found = [(failure.status, failure.seed, failure.record is not None) for failure in section.failures]
    assert sorted(found) == [
        ("crashed", "1", True),
        ("failed", "0", False),
        ("invalid", "0", True),
        ("invalid", "1", True),
    ]
    crashed = next(failure for failure in section.failures if failure.status == "crashed")
    assert "RuntimeError: <script>" in crashed.reason  # the last line of the traceback
    assert crashed.errors[0].startswith("Traceback")


def test_pairs_without_a_record_are_listed_one_by_one(pair: Callable[..., Pair]) -> None:
    models = {"m0": KnownModel(dataset="mnist", architecture="mlp-200-200", defense="standard", seed=0, status="ok")}
    board = Board("quick", {"mnist": {"linf": (0.1,)}}, [pair([1], [0.1])], {"m0": ["pgd (linf)"]}, models)
    (section,) = sections([board], [leaderboard(board)])
    assert [(failure.what, failure.status) for failure in section.failures] == [("pgd (linf)", "not run")]


def test_what_was_not_asked_for_is_no_failure(pair: Callable[..., Pair]) -> None:
    model = KnownModel(dataset="mnist", architecture="mlp-200-200", defense="standard", seed=0, status="ok")
    parts: dict[str, Any] = {"unasked": {"m0": ["a (linf)", "b (linf)"]}, "left_out": {"m0": ["transfer:pgd"]}}
    board = Board("quick", {"mnist": {"linf": (0.1,)}}, [pair([1], [0.1])], {}, {"m0": model}, **parts)
    (section,) = sections([board], [leaderboard(board)])
    assert not section.failures
    assert [(one.what, one.status, one.reason) for one in section.omissions] == [
        ("2 of the suite's 3 pairs", "not asked", "a (linf), b (linf)"),
        ("1 attack", "left out", "on purpose: transfer:pgd"),
    ]
    (entry,) = section.entries
    assert section.reduced(entry)
    assert entry.unranked == ["linf"]


@pytest.mark.parametrize("trouble", ["missing", "failed", "crashed", "masked", "nothing unasked"])
def test_only_a_battery_reduced_by_hand_is_called_reduced(pair: Callable[..., Pair], trouble: str) -> None:
    model = KnownModel(dataset="mnist", architecture="mlp-200-200", defense="standard", seed=0, status="ok")
    pairs = [pair([1] * 100, [0.1] * 100, family="iterated", eps=0.1)]
    if trouble == "crashed":
        pairs.append(pair([1] * 100, [math.nan] * 100, status="crashed", attack="other"))
    if trouble == "masked":
        pairs.append(pair([1] * 100, [math.nan] * 100, family="iterated", attack="other", eps=0.1))
        pairs[0] = pair([1] * 100, [0.1] * 100, family="score", eps=0.1)
    parts: dict[str, Any] = {"missing": {"m0": ["x"]}} if trouble == "missing" else {}
    parts |= {"unasked": {"m0": ["y"]}} if trouble != "nothing unasked" else {}
    if trouble == "failed":
        model = model.model_copy(update={"status": "failed", "error": "diverged"})
    board = Board("quick", {"mnist": {"linf": (0.1,)}}, pairs, models={"m0": model}, **parts)
    (section,) = sections([board], [leaderboard(board)])
    assert not section.reduced(section.entries[0])


def test_costs_are_means_over_the_pairs_that_have_them(pair: Callable[..., Pair]) -> None:
    pairs = [
        pair([1], [0.1], model="a", seed=0, seconds=1.0, forwards=2.0),
        pair([1], [math.nan], model="b", seed=1, seconds=3.0, forwards=None),
        pair([1], [math.nan], model="c", seed=2, status="crashed", seconds=None, forwards=None),
    ]
    board = Board("quick", {"mnist": {"linf": (8 / 255,)}}, pairs)
    ((cost,),) = (section.costs for section in sections([board], [leaderboard(board)]))
    assert (cost.pairs, cost.seconds, cost.forwards) == (3, 2.0, 2.0)
    assert cost.success_rate == 0.5  # a crash is neither success nor failure


def test_suites_and_data_sets_have_sections_of_their_own(pair: Callable[..., Pair]) -> None:
    pairs = [pair([1], [0.1], dataset=name, model=name, eps=0.1) for name in ("mnist", "digits")]
    budgets = {"mnist": {"linf": (0.1,)}, "digits": {"linf": (0.1,)}}
    boards = [Board("one", budgets, pairs), Board("two", budgets, pairs[:1])]
    found = sections(boards, [leaderboard(board) for board in boards])
    assert [(s.anchor, s.board.suite, s.dataset) for s in found] == [
        ("s0", "one", "mnist"), ("s1", "one", "digits"), ("s2", "two", "mnist"),
    ]  # fmt: skip
    assert all(len(s.entries) == 1 and len(s.pairs) == 1 for s in found)


def test_an_attack_from_another_model_is_a_column_of_its_own(pair: Callable[..., Pair]) -> None:
    pairs = [pair([1], [0.1], eps=0.1), pair([1], [math.nan], eps=0.1, source="standard / lenet", access="none")]
    board = Board("quick", {"mnist": {"linf": (0.1,)}}, pairs)
    (section,) = sections([board], [leaderboard(board)])
    names = [(column.name, column.control) for column in section.panels[0].columns]
    assert names == [("gradient", False), ("gradient from standard / lenet", False)]


def test_sample_sizes_are_ranked_apart(pair: Callable[..., Pair]) -> None:
    pairs = [pair([1], [0.2], model="a", defense="a"), pair([1, 1], [0.2, 0.2], model="b", defense="b")]
    board = Board("quick", {"mnist": {"linf": (8 / 255,)}}, pairs)
    (section,) = sections([board], [leaderboard(board)])
    assert [(n, len(rows)) for n, rows in section.panels[0].rankings] == [(2, 1), (1, 1)]


def test_a_failed_pair_shows_no_number(section: Section, board: Board) -> None:
    rows = pair_rows(board).set_index(["run_id", "eps"])
    found = [record for records in section.records.values() for record in records]
    assert sum(record.failed for record in found) == 3
    for record in found:
        numbers = [number for _, *values in record.accuracies for number in values]
        numbers += [record.summary["success_rate"], record.summary["median_l2"]]
        assert not record.failed or all(map(math.isnan, numbers))
        for eps, value, _, _ in record.accuracies:
            expected = rows.loc[(record.pair.run_id, eps), "robust_accuracy"]
            assert value == pytest.approx(expected, nan_ok=True)


def test_unchanged_images_are_a_share_and_a_caution_when_most(pair: Callable[..., Pair]) -> None:
    clean, none = [0, 1, 1, 1, 1], [math.nan] * 5  # four of five are attacked
    pairs = [
        pair(clean, none, attack="lazy", unchanged=3),
        pair(clean, none, attack="half", unchanged=2),
        pair(clean, none, attack="old"),
        pair(clean, none, attack="control", unchanged=4, access="none"),
        pair(clean, none, attack="minimal", unchanged=4, kind="minimal", eps=None),
        pair(clean, none, attack="nothing allowed", unchanged=4, eps=0.0),
        pair(clean, none, attack="failed", unchanged=4, status="invalid"),
    ]
    board = Board("quick", {"mnist": {"linf": (8 / 255,)}}, pairs)
    (section,) = sections([board], [leaderboard(board)])
    shares = {record.pair.result.attack: record.unchanged for records in section.records.values() for record in records}
    assert (shares["lazy"], shares["half"], shares["old"]) == (0.75, 0.5, 0.0)
    (caution,) = section.cautions
    assert (caution.status, caution.what) == ("caution", "lazy, L\u221e \u03b5 = 8/255")
    assert caution.reason == "75.0 % of the attacked images came back unchanged"
    assert [failure.status for failure in section.failures] == ["invalid"]
