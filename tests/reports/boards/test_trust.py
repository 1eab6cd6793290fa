from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.leaderboard import leaderboard
from harness.metrics.pairs import Board
from harness.trust.grade import trust
from reports.boards.section import Section, sections
from reports.boards.trust import trust_summary

Pages = dict[str, Any]
NORMS = {"linf": "L\u221e", "l2": "L\u2082"}


@pytest.fixture(scope="module")
def section(small_board: Board) -> Section:
    return sections([small_board], [leaderboard(small_board)])[0]


def own(section: Section, pages: Pages, defense: str) -> Any:
    return pages[f"models/{next(e.page for e in section.attacked if e.defense == defense)}.html"]


@pytest.mark.parametrize(("images", "expected"), [(20, {"B", "C", "D"}), (120, {"A", "B", "C", "D"})])
def test_the_boards_have_every_grade(board: Board, small_board: Board, images: int, expected: set[str]) -> None:
    """On twenty images nothing deserves an A."""
    chosen = {120: board, 20: small_board}[images]
    assert chosen.pairs[0].n == images
    (section,) = sections([chosen], [leaderboard(chosen)])
    grades = {trust_summary(section, entry, norm).grade for entry in section.attacked for norm in section.norms}  # type: ignore[union-attr]
    assert grades == expected


def test_every_check_is_on_the_page_with_what_was_found_and_what_to_do(
    section: Section, pages: Pages, small_board: Board
) -> None:
    for entry in section.attacked:
        page = pages[f"models/{entry.page}.html"]
        for norm, key in ((norm, key) for norm in section.norms for key in entry.models):
            found = trust(small_board, key, norm)
            assert found is not None
            assert f"{NORMS[norm]}" in page.text
            for check in found.checks:
                rows = page.rows(f"{check.title} {check.name}")
                assert len(rows) == len(section.norms)
                assert check.finding in [row[2] for row in rows]
                assert (check.remedy or "\u2014") in [row[3] for row in rows]
                assert str(check.power or "\u2014") in [row[4] for row in rows]


def test_what_lowers_the_grade_stands_first(section: Section) -> None:
    for entry in section.attacked:
        for norm in section.norms:
            found = trust_summary(section, entry, norm)
            assert found is not None
            grades = [answer.grade for answer in found.checks]
            assert grades == sorted(grades, reverse=True)
            assert found.grade == grades[0]


def test_a_model_that_is_not_believed_says_why_and_has_no_rank(section: Section, pages: Pages) -> None:
    doubted = own(section, pages, "fast-gradient")
    reason = "the gradient gains less than random directions on 75.0 %"
    (row,) = [row for row in doubted.rows("Do gradients point uphill?") if row[1] == "failed D"]
    assert row[2].startswith(reason)
    assert f"trust D: {reason}" in doubted.text
    index = pages["index.html"]
    badges = [attrs for tag, attrs in index.tags if tag == "a" and attrs.get("class") == "grade gD"]
    assert badges
    assert any(attrs["title"].startswith(f"Trust D: {reason}") for attrs in badges)
    assert f"trust D: {reason}" in index.text
    lines = [row for row in index.rows() if len(row) == 13 and row[4] == "D"]
    assert "fast-gradient mlp-200-200" in {row[1] for row in lines}
    assert all(row[0] == "\u2014" and row[3].startswith("\u2264 ") for row in lines)


def test_a_grade_is_a_letter_beside_the_accuracy_and_is_explained(section: Section, pages: Pages) -> None:
    index = pages["index.html"]
    shown = [row for row in index.rows() if len(row) == 13 and row[0][:1].isdigit()]
    assert shown
    for row in section.frame.to_dict("records"):
        if not row["note"]:
            accuracy = f"{100 * row['worst_case_accuracy']:.1f}"
            assert any(
                line[1].startswith(row["defense"])
                and line[3].split("[")[0].split()[0] == accuracy
                and line[4] == row["trust"]
                for line in shown
            )
    for words in ("nothing speaks against the number", "small reserves", "not to be believed, so no rank"):
        assert words in index.text
        assert words in own(section, pages, "standard").text


def test_a_remedy_that_attacks_were_given_is_named(section: Section, pages: Pages) -> None:
    page = own(section, pages, "pgd(eps=8/255)")
    assert "Attacks saw the model through a remedy: logits / 20." in page.text
    (first, *_) = page.rows("Does every image have a gradient?")
    assert first[1] == "remedied C"
    assert "with the remedy (logits / 20)" in first[2]


def test_transformations_have_no_grade_and_that_is_said(pages: Pages) -> None:
    page = pages["models/unseen_mnist_mlp-200-200_standard_n20.html"]
    assert "not graded" in page.text
    assert "there is nothing to grade" in " ".join(page.text.split())
    assert page.rows("Any change")[0][3] == "\u2014"


def test_the_worst_seed_decides_and_seeds_that_differ_are_named(board: Board) -> None:
    """One seed of two is not probed."""
    health = {key: facts for key, facts in board.health.items() if key != "m0-1"}
    changed = replace(board, health=health)
    (section,) = sections([changed], [leaderboard(changed)])
    entry = next(entry for entry in section.attacked if entry.defense == "standard")
    single = [section.trust(key, "linf") for key in entry.models]
    found = trust_summary(section, entry, "linf")
    assert found is not None
    assert found.grade == max(one.grade for one in single if one is not None)
    answer = next(answer for answer in found.checks if answer.name == "misleading-gradients")
    assert answer.status == "skipped"
    assert answer.findings == [("seed 1", "the model was not probed in this norm")]
    passed = next(answer for answer in found.checks if answer.name == "battery-complete")
    assert passed.findings == [("", "0 of 20 pairs are missing")]
