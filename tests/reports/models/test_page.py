from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reports
from harness.leaderboard import leaderboard
from harness.metrics.pairs import Board, Pair, nearest, reference, rounding, wilson, worst_case
from harness.schema.eps import limit
from reports.boards.section import Section, sections
from reports.models.attacks import attack_results
from reports.models.classes import class_rows
from reports.models.images import ImageResults, runs

Pages = dict[str, Any]
Make = Callable[..., Pair]
HOME = "models/quick_mnist_mlp-200-200_standard_n20.html"


@pytest.fixture(scope="module")
def section(small_board: Board) -> Section:
    return sections([small_board], [leaderboard(small_board)])[0]


def of(board: Board, defense: str) -> list[Pair]:
    return [pair for pair in board.pairs if pair.result.defense == defense]


def test_the_worst_case_is_that_of_the_leaderboard(pages: Pages, section: Section) -> None:
    texts = {"linf": "L\u221e \u03b5 = {}", "l2": "L\u2082 \u03b5 = {}"}
    names = {2 / 255: "2/255", 8 / 255: "8/255", 16 / 255: "16/255", 0.5: "0.5", 1.0: "1"}
    for row in section.frame.to_dict("records"):
        if not row["n"]:
            continue
        page = pages[f"models/{next(e.page for e in section.attacked if e.defense == row['defense'])}.html"]
        shown = page.rows(texts[row["norm"]].format(names[row["eps"]]))[0]
        bound = "\u2264 " if row["note"] else ""
        ends = f"[{100 * row['worst_case_low']:.1f}, {100 * row['worst_case_high']:.1f}]"
        assert "".join(shown[1].split()) == "".join(f"{bound}{100 * row['worst_case_accuracy']:.1f}{ends}".split())
        assert shown[2] == ends
        assert shown[3] == row["trust"]
        assert shown[4] == f"{100 * row['success_on_correct']:.1f}"
        found, other = (f"{100 * row[name]:.1f}" for name in ("planted_found", "planted_black_box"))
        assert shown[5] == ("\u2014" if found == "nan" else f"{found} ({other})")
        assert shown[6].startswith("\u2014" if row["note"] else str(row["rank"]))


def test_what_attacks_broke_is_what_the_worst_case_counts(section: Section, small_board: Board) -> None:
    for entry in section.attacked:
        pairs = of(small_board, entry.defense)
        case = worst_case(pairs, "l2", 1.0)
        rows = {row.attack: row for row in attack_results(section, entry, "l2", 1.0)}
        assert {name: row.counts for name, row in rows.items()} == {
            name: (case.broken_by[name], case.alone[name]) for name in case.broken_by
        }
        assert [row.counts[0] for row in rows.values()] == sorted(case.broken_by.values(), reverse=True)
        ddn = next(pair for pair in pairs if pair.result.attack == "DDN" and pair.result.norm == "l2")
        assert rows["DDN"].rounding == pytest.approx(rounding(ddn.samples, "l2", 1.0), nan_ok=True)
        assert (rows["DDN"].forwards, rows["DDN"].backwards) == (101.0, 100.0)


def test_what_attacks_broke_is_on_the_page(pages: Pages, section: Section) -> None:
    entry = next(entry for entry in section.attacked if entry.defense == "standard")
    for row in attack_results(section, entry, "linf", 8 / 255):
        shown = [cells[1:4] for cells in pages[HOME].rows(row.attack) if len(cells) == 8]
        count, alone = (f"{number:g}" for number in row.counts)
        kept = f"{100 * row.rounding:.1f}" if math.isfinite(row.rounding) else "\u2014"
        assert [f"{100 * row.broken:.1f} ({count})", f"{100 * row.alone:.1f} ({alone})", kept] in shown


def test_invalid_results_are_named_by_kind(pages: Pages) -> None:
    page = pages["models/quick_mnist_mlp-200-200_fast-gradient_n20.html"]
    notes = [cells[7] for cells in page.rows("DDN") if len(cells) == 8]
    assert any(re.fullmatch(r"invalid, \d over budget, \d not finite", note) for note in notes)


def test_an_attack_of_another_norm_says_so(make_section: Callable[..., Section], pair: Make) -> None:
    section = make_section(
        [pair([1, 1], [0.01, 0.3], attack="a"), pair([1, 1], [0.5, 0.5], norm="l2", eps=0.5, attack="b")]
    )
    rows = {row.attack: row for row in attack_results(section, section.entries[0], "linf", 8 / 255)}
    assert rows["a"].elsewhere == ""
    assert rows["b"].elsewhere == "L\u2082"
    assert rows["b"].counts[0] == 2  # at 0.5 in L2 these lie within 8/255 of linf: what it found counts
    assert math.isnan(rows["b"].seconds)


@pytest.fixture
def make_section() -> Callable[..., Section]:
    def make(pairs: list[Pair]) -> Section:
        board = Board("quick", {"mnist": {"linf": (8 / 255,), "l2": (0.5,)}}, pairs)
        return sections([board], [leaderboard(board)])[0]

    return make


def test_classes_are_shares_of_their_images(section: Section, small_board: Board) -> None:
    entry = section.attacked[0]
    pairs = of(small_board, entry.defense)
    judged, distance = reference(pairs).samples, nearest(pairs, "linf")["distance"]
    rows = class_rows(section, entry, ["linf", "l2"])
    assert [row.name for row in rows[:3]] == ["zero", "one", "two"]
    assert sum(row.n for row in rows) == 20
    for label, row in enumerate(rows):
        own = judged["label"].to_numpy() == label
        assert row.clean == (
            judged["clean_correct"][own].mean(),
            *wilson(judged["clean_correct"][own].sum(), own.sum()),
        )
        stands = distance.to_numpy()[own] > limit(8 / 255)
        assert row.worst["linf"] == (stands.mean(), *wilson(stands.sum(), own.sum()))


def test_images_are_listed_by_their_distance(pair: Make) -> None:
    found = [0.1, math.nan, 0.3, 0.02, math.nan, 0.2, 0.05, 0.04, 0.03, 0.06, 0.07, 0.08, 0.09]
    clean = [True] * 13
    clean[6] = False
    images = ImageResults(
        [pair(clean, found, attack="a"), pair(clean, [math.inf] * 5 + [0.15] + [math.inf] * 7, attack="b")], "linf"
    )
    assert [image.index for image in images.first] == [3, 8, 7, 9, 10, 11, 12, 0]
    assert [image.index for image in images.last] == [1, 4, 2, 5]
    assert [image.stands for image in images.last] == [True, True, False, False]
    assert [(image.distance, image.attack) for image in images.last[2:]] == [(0.3, "a"), (0.15, "b")]
    assert (images.standing, images.clean_errors) == (2, 1)
    assert images.last[0].after == images.last[0].attack == ""
    assert images.kept == []


def test_distances_on_the_page_are_those_of_the_records(pages: Pages, small_board: Board) -> None:
    distance = nearest(of(small_board, "standard"), "linf")["distance"]
    found = distance[(distance > 0) & np.isfinite(distance)].sort_values()
    shown = [cells for cells in pages[HOME].rows("#") if len(cells) == 5]
    assert [cells[0] for cells in shown[:8]] == [f"#{index}" for index in found.index[:8]]
    assert float(shown[0][3]) == pytest.approx(found.iloc[0], rel=0.01)


def test_pictures_are_those_of_the_nearest_adversarial(pair: Make) -> None:
    near, far = pair([1, 1], [0.1, math.nan], attack="near"), pair([1, 1], [0.4, math.nan], attack="far")
    images = {"index": np.arange(2), "x": np.zeros((2, 1, 2, 2)), "x_adv": np.full((2, 1, 2, 2), 0.5)}
    for kept in (near, far):
        made = [Pair(p.result, p.samples, images if p is kept else {}) for p in (near, far)]
        broken, stands = ImageResults(made, "linf").kept
        assert broken.original == stands.original != ""
        assert bool(broken.adversarial) == (kept is near)  # another attack's image would be at another distance
        assert stands.adversarial == ""


def test_runs_cover_exactly_the_columns() -> None:
    where = np.array([True, True, False, True, False, False, True])
    assert runs(where) == "M0 0h2v1h-2zM3 0h1v1h-1zM6 0h1v1h-1z"
    assert runs(np.zeros(3, bool)) == ""
    assert runs(np.ones(2, bool)) == "M0 0h2v1h-2z"


def test_strips_show_every_image_once_per_attack(section: Section, small_board: Board) -> None:
    for entry in section.attacked:
        pairs = of(small_board, entry.defense)
        case = worst_case(pairs, "linf", 8 / 255)
        strips = ImageResults(pairs, "linf").strips(8 / 255)
        errors = int((~reference(pairs).samples["clean_correct"]).sum())
        assert [strip.broken for strip in strips] == sorted(case.broken_by.values(), reverse=True)
        for strip in strips:
            widths = {kind: sum(map(int, re.findall(r"h(\d+)v", path))) for kind, path in strip.paths.items()}
            assert widths["alone"] == strip.alone == case.alone[strip.attack]
            assert widths["shared"] + widths["alone"] == strip.broken == case.broken_by[strip.attack]
            assert (widths["clean"], widths["unseen"]) == (errors, 0)


def test_cascades_count_what_was_shown(pages: Pages, pair: Make) -> None:
    seen = pair([1, 1, 1, 1], [math.nan, math.nan, 0.02, math.nan], attack="second", cascade=True)
    seen.samples.loc[:1, "attacked"] = False
    first = pair([1, 1, 1, 1], [0.01, 0.01, math.nan, math.nan], attack="first", cascade=True)
    strips = {strip.attack: strip.paths for strip in ImageResults([first, seen], "linf").strips(8 / 255)}
    assert strips["second"]["unseen"] == "M0 0h2v1h-2z"
    assert strips["first"]["unseen"] == ""
    page = pages["models/cascade_mnist_mlp-200-200_standard_n20.html"]
    assert any(re.fullmatch(r"cascade: shown \d+ images", cells[7]) for cells in page.rows("DDN") if len(cells) == 8)
    records = [cells for cells in page.rows("DDN") if len(cells) == 11]
    # a rate of success among what was left compares with nothing
    assert {cell for cells in records for cell in cells[4:6]} == {"\u2014"}


def test_every_command_run_and_training_fact_is_there(pages: Pages, small_board: Board) -> None:
    page = pages[HOME]
    for pair in of(small_board, "standard"):
        if pair.result.architecture == "mlp-200-200":
            assert pair.result.command in page.text
            assert f"MLflow run {pair.run_id}" in page.attributes("title")
    assert "199,210" in page.text
    assert "the thin lines are the seeds" not in page.text  # there is one


def test_distances_are_called_upper_bounds(pages: Pages) -> None:
    assert "upper bound of the true distance" in " ".join(pages[HOME].text.split())


def test_a_model_whose_training_failed_has_a_page_and_no_numbers(pages: Pages) -> None:
    page = pages["models/quick_mnist_lenet_standard_n0.html"]
    assert "Nothing was measured." in page.text
    assert "Diverged: the loss is not finite in epoch 3" in page.text
    assert "%" not in re.sub(r"clean accuracy, %", "", page.text)
    index = pages["index.html"]
    (row, *_) = [row for row in index.rows("\u2014", "standard lenet") if len(row) == 13]
    assert set(row[3:7] + row[8:11]) == {"\u2014"}
    assert row[7] == "no measurement"


def test_the_same_model_in_another_suite_is_one_link_away(pages: Pages) -> None:
    links = set(pages[HOME].attributes("href"))
    assert {f"{suite}_mnist_mlp-200-200_standard_n20.html" for suite in ("cascade", "unseen")} <= links
    assert "../index.html#s0" in links


def test_seeds_are_told_apart(board: Board, tmp_path: Path, parse: Callable[[str], Any]) -> None:
    mine = [pair for pair in board.pairs if pair.result.defense == "gaussian-noise" and pair.result.attack == "DDN"]
    reports.write([Board("quick", board.budgets, mine)], tmp_path)
    page = parse((tmp_path / "models/quick_mnist_mlp-200-200_gaussian-noise_n120.html").read_text(encoding="utf-8"))
    assert "seeds (0, 1)" in page.text
    assert "seed 0" in page.text
    assert page.attributes("class").count("seed") == 2 * 2  # a line per seed and norm
