from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from harness.leaderboard import leaderboard
from harness.metrics.comparison import compare
from harness.metrics.pairs import Board, Pair
from reports.boards.rows import Entry
from reports.boards.section import Section, sections
from reports.comparison.page import render
from reports.comparison.paired_tests import comparable, entry_pairs, matrices, paired_test
from reports.drawing.text import p_text, percent, points, points_interval

Pages = dict[str, Any]
Make = Callable[..., Pair]


def build(pairs: Sequence[Pair], eps: Sequence[float] = (0.1,), **parts: Any) -> Section:
    board = Board("quick", {"mnist": {"linf": eps}}, pairs, **parts)
    return sections([board], [leaderboard(board)])[0]


@pytest.fixture(scope="module")
def section(small_board: Board) -> Section:
    return sections([small_board], [leaderboard(small_board)])[0]


def seeds(entry: Entry) -> list[Sequence[Pair]]:
    return list(entry.models.values())


def test_every_two_models_have_a_page(section: Section, pages: Pages) -> None:
    found = entry_pairs(section)
    assert len(found) == 5 * 4 // 2
    assert {f"compare/{two.page}.html" for two in found} <= set(pages)
    assert all(two.a.page < two.b.page for two in found)


def test_many_models_have_pages_with_their_neighbours_in_rank(pair: Make) -> None:
    n, models = 40, 12
    pairs = [
        pair([1] * n, np.where(np.arange(n) < 3 * m, 0.05, math.nan), model=f"m{m}", defense=f"d{m:02}", eps=0.1)
        for m in range(models)
    ]
    section = build(pairs)
    assert [(two.a.defense, two.b.defense) for two in entry_pairs(section)] == [
        (f"d{m:02}", f"d{m + 1:02}") for m in range(models - 1)
    ]
    (matrix,) = matrices(section, "linf")
    assert [sum(bool(cell[1]) for cell in row.cells if cell) for row in matrix.rows] == [1] + [2] * 10 + [1]


def test_the_statistics_are_those_of_the_harness(board: Board) -> None:
    (section,) = sections([board], [leaderboard(board)])
    a, b, *_ = section.attacked
    for norm, grid in section.budgets.items():
        for eps in grid:
            assert paired_test(section, a, b, norm, eps).numbers == compare(seeds(a), seeds(b), norm, eps)


def test_the_page_shows_them(section: Section, pages: Pages) -> None:
    for two in entry_pairs(section):
        page = pages[f"compare/{two.page}.html"]
        for norm, name, grid in (("linf", "L\u221e", ("2/255", "8/255", "16/255")), ("l2", "L\u2082", ("0.5", "1"))):
            for eps, text in zip(section.budgets[norm], grid, strict=True):
                numbers = compare(seeds(two.a), seeds(two.b), norm, eps)
                (row,) = [cells for cells in page.rows(f"{name} \u03b5 = {text}") if len(cells) == 9]
                assert row[0] == f"{name} \u03b5 = {text}"
                assert row[1].lstrip("\u2264 ").startswith(percent(numbers.accuracy_a))
                assert row[2].lstrip("\u2264 ").startswith(percent(numbers.accuracy_b))
                assert row[3:8] == [
                    points(numbers.difference), points_interval(numbers.low, numbers.high),
                    str(numbers.only_a), str(numbers.only_b), p_text(numbers.p_value),
                ]  # fmt: skip


def test_words_follow_the_test(pair: Make) -> None:
    n = 60
    lost = {"weak": 40, "alike": 38, "strong": 5}
    pairs = [
        pair([1] * n, np.where(np.arange(n) < count, 0.05, math.nan), model=name, defense=name, eps=0.1)
        for name, count in lost.items()
    ]
    section = build(pairs)
    weak, alike, strong = section.entries
    assert paired_test(section, strong, weak, "linf", 0.1).winner == "a"
    better = paired_test(section, weak, strong, "linf", 0.1)
    assert (better.winner, better.words) == ("b", "strong / mlp-200-200 is significantly better")
    same = paired_test(section, weak, alike, "linf", 0.1)
    assert (same.winner, same.words) == ("", "no significant difference")
    page = render(section, next(two for two in entry_pairs(section) if "alike" in two.page and "weak" in two.page))
    assert "no significant difference" in page


def test_an_upper_bound_cannot_win(pair: Make) -> None:
    n = 60

    def lost(count: int, name: str, **meta: Any) -> Pair:
        found = np.where(np.arange(n) < count, 0.05, math.nan)
        return pair([1] * n, found, model=name, defense=name, eps=0.1, **meta)

    section = build([lost(5, "broken", status="crashed"), lost(40, "sound"), lost(38, "other"), lost(1, "best")])
    broken, sound, other, best = section.entries
    found = paired_test(section, broken, sound, "linf", 0.1)
    assert found.numbers.significant
    assert (found.winner, found.words) == (
        "open", "open: what is known of broken / mlp-200-200 is an upper bound only",
    )  # fmt: skip
    assert paired_test(section, best, broken, "linf", 0.1).winner == "open"  # not significant, and one is a bound
    low = build([lost(50, "broken", status="crashed"), lost(5, "sound")])
    assert paired_test(low, *low.entries, "linf", 0.1).winner == "b"  # even the bound is lower
    (matrix,) = matrices(section, "linf")
    assert [row.entry for row in matrix.rows] == [best, other, sound]
    assert matrix.left_out == [broken]
    page = render(
        section, next(two for two in entry_pairs(section) if {two.a.page, two.b.page} == {broken.page, sound.page})
    )
    assert "Not both have a rank." in page
    assert "gradient (linf): crashed" in page


def test_the_matrix_mirrors_itself(section: Section) -> None:
    (matrix,) = matrices(section, "linf")
    mirror = {"a": "b", "b": "a", "": "", "open": "open"}
    assert matrix.n == 20
    for i, row in enumerate(matrix.rows):
        assert row.cells[i] is None
        for j, other in enumerate(matrix.rows):
            here, there = row.cells[j], other.cells[i]
            if here and there:
                assert here[0].winner == mirror[there[0].winner]
                assert here[0].numbers.difference == -there[0].numbers.difference
                assert here[1] == there[1] != ""


def test_the_matrix_is_on_the_first_page_in_signs_and_numbers(section: Section, pages: Pages) -> None:
    signs = {"a": "\u25b2", "b": "\u25bc", "": "\u2248"}
    for norm in section.norms:
        (matrix,) = matrices(section, norm)
        for row in matrix.rows:
            cells = [
                f"{signs[cell[0].winner]} {points(cell[0].numbers.difference)}" if cell else "" for cell in row.cells
            ]
            assert [f"{row.entry.defense} {row.entry.architecture}", *cells] in pages["index.html"].rows()


def test_other_images_are_not_compared(pair: Make) -> None:
    short, long = (
        pair([1], [0.05], model="a", defense="a", eps=0.1),
        pair([1, 1], [0.05, 0.05], model="b", defense="b", eps=0.1),
    )
    moved = pair([1, 1], [0.05, 0.05], model="c", defense="c", eps=0.1)
    moved.samples["index"] += 7
    section = build([short, long, moved])
    a, b, c = section.entries
    assert not comparable(a, b)
    assert not comparable(b, c)
    assert entry_pairs(section) == []
    assert matrices(section, "linf") == []


def test_attacks_on_both_are_side_by_side(section: Section, pages: Pages) -> None:
    two = next(two for two in entry_pairs(section) if {two.a.defense, two.b.defense} == {"standard", "fast-gradient"})
    page = pages[f"compare/{two.page}.html"]
    for norm in section.norms:
        panel = section.panel(norm, section.reference(norm))
        a, b = (next(row for row in panel.heat if row.entry is entry) for entry in (two.a, two.b))
        for attack, one, other in zip(panel.columns, a.cells, b.cells, strict=True):
            texts = [cell.text if cell.value is None else percent(cell.value) for cell in (one, other)]
            assert texts in [cells[1:] for cells in page.rows(attack.name) if len(cells) == 3]
    assert any("invalid" in cells[1:] for cells in page.rows("DDN"))


def test_cascades_are_no_numbers_here_either(pages: Pages) -> None:
    page = next(page for name, page in pages.items() if name.startswith("compare/cascade"))
    assert any(cells[1].startswith("cascade") for cells in page.rows("DDN") if len(cells) == 3)
