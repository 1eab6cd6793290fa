from __future__ import annotations

import csv
import io
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import reports
from harness.leaderboard import LEADERBOARD_COLUMNS, leaderboard
from harness.metrics.pairs import PAIR_COLUMNS, Board, Pair, pair_rows
from harness.schema.models import KnownModel
from harness.trust.grade import trust
from reports.boards.trust import CHECK_COLUMNS

Parse = Callable[[str], Any]
NAMES = ["leaderboard.csv", "pairs.csv", "checks.csv", "leaderboard.md", "index.html"]


@pytest.fixture(scope="module")
def out(board: Board, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    reports.write([board], folder, title="A <b> | title", command="gauntlet report --home 'a & b'")
    return folder


@pytest.fixture(scope="module")
def page(out: Path, parse: Parse) -> Any:
    return parse((out / "index.html").read_text(encoding="utf-8"))


def rows_of(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))


def write(out: Path, *boards: Board) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in reports.write(boards, out)}


def test_files(small_board: Board, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    written = reports.write([small_board], folder)
    assert [path.name for path in written if path.parent == folder] == NAMES
    assert written[-1].name == "index.html"
    assert sorted(written) == sorted(path for path in folder.rglob("*") if path.is_file())  # no leftovers
    assert [len(list((folder / name).iterdir())) for name in ("models", "compare")] == [6, 5 * 4 // 2]


def test_pages_of_models_that_are_gone_are_removed_if_they_are_ours(small_board: Board, tmp_path: Path) -> None:
    reports.write([small_board], tmp_path)
    before = set(tmp_path.glob("*/*.html"))
    foreign = [tmp_path / "models" / "notes.html", tmp_path / "models" / "old.txt", tmp_path / "mine.html"]
    for path in foreign:
        path.write_text("<!doctype html><title>mine</title>")
    gone = next(model for model in small_board.models.values() if model.defense == "gaussian-noise")
    left = replace(
        small_board,
        pairs=[pair for pair in small_board.pairs if pair.result.defense != "gaussian-noise"],
        models={key: model for key, model in small_board.models.items() if model is not gone},
    )
    after = {path for path in reports.write([left], tmp_path) if path.parent != tmp_path}
    assert after < before
    assert {path.name for path in before - after if path.parent.name == "models"} == {
        "quick_mnist_mlp-200-200_gaussian-noise_n20.html"
    }
    assert len(before - after) == 1 + 4  # its page, and those against the others
    assert set(tmp_path.rglob("*.html")) == after | {tmp_path / "index.html", foreign[0], foreign[2]}
    assert all(path.exists() for path in foreign)
    reports.write([], tmp_path)
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"notes.html", "old.txt"}
    assert not (tmp_path / "compare").exists()


def test_csv_columns_are_exactly_the_contract(out: Path) -> None:
    assert tuple(rows_of(out / "leaderboard.csv")[0]) == LEADERBOARD_COLUMNS
    assert tuple(rows_of(out / "pairs.csv")[0]) == PAIR_COLUMNS


def test_every_check_has_a_row_and_says_what_could_have_raised_it(board: Board, out: Path) -> None:
    rows = [dict(zip(CHECK_COLUMNS, row, strict=True)) for row in rows_of(out / "checks.csv")[1:]]
    model = board.pairs[0].result
    graded = trust(board, model.model, "linf")
    assert graded is not None
    for check in graded.checks:
        (row,) = (
            row
            for row in rows
            if (row["check"], row["norm"], row["defense"], row["seed"])
            == (check.name, "linf", model.defense, str(model.seed))
        )
        assert (row["status"], row["grade"], row["finding"]) == (check.status, check.grade, check.finding)
        power = check.power
        assert [row[name] for name in ("compared", "least")] == (
            ["", ""] if power is None else [str(power.compared), str(power.least)]
        )
        if power is not None:
            assert row["could"] == str(power.compared if power.could is None else power.could)
    assert {row["status"] for row in rows} >= {"passed", "skipped"}


def test_csv_values_equal_the_frames(board: Board, out: Path) -> None:
    for name, frame, columns in (
        ("leaderboard.csv", leaderboard(board), LEADERBOARD_COLUMNS),
        ("pairs.csv", pair_rows(board), PAIR_COLUMNS),
    ):
        read = pd.read_csv(out / name, keep_default_na=False, na_values={"rank": [""]})
        expected = frame[list(columns)]
        assert len(read) == len(expected)
        for column in columns:
            if pd.api.types.is_numeric_dtype(expected[column]):
                got = pd.to_numeric(read[column], errors="coerce").astype(float)
                assert got.equals(expected[column].astype("Float64").astype(float).reset_index(drop=True)), column
            else:
                assert read[column].tolist() == expected[column].tolist(), column


def test_boards_are_joined(small_board: Board, pair: Callable[..., Pair], tmp_path: Path) -> None:
    other = Board("other", {"mnist": {"linf": (8 / 255,)}}, [pair([1], [0.1])])
    written = write(tmp_path, small_board, other)
    read = pd.read_csv(io.StringIO(written["pairs.csv"]))
    expected = {"quick": len(pair_rows(small_board)), "other": 1}
    assert read["suite"].value_counts().to_dict() == expected
    assert 'id="s1"' in written["index.html"]
    assert "## other on mnist" in written["leaderboard.md"]


def test_bytes_do_not_depend_on_the_process(small_board: Board, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import reports; from tests.helpers.report import build_board\n"
        "board = build_board(n=20, seeds=1)\n"
        f"reports.write([board], Path({str(tmp_path / 'other')!r}))\n"
        "bad = {'torch', 'art', 'foolbox', 'mlflow'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env={"PYTHONHASHSEED": "7", "PATH": ""})
    here, other = tmp_path / "here", tmp_path / "other"
    for path in reports.write([small_board], here):
        assert path.read_bytes() == (other / path.relative_to(here)).read_bytes()


def test_page_is_well_formed_and_ids_are_unique(page: Any) -> None:
    assert page.open == []
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))


def test_links_inside_the_page_have_targets(page: Any) -> None:
    ids = set(page.attributes("id"))
    inner = {href[1:] for href in page.attributes("href") if href.startswith("#")}
    assert inner <= ids
    assert len(inner) > 100  # every cell of the heat map leads to its record


def test_user_text_is_escaped_everywhere(page: Any) -> None:
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "<script>alert('x')</script> | \"quoted\" & `ticked`" in page.text
    assert "A <b> | title" in page.text
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]


def test_only_web_addresses_become_links(page: Any, board: Board) -> None:
    outer = {href for href in page.attributes("href") if not href.startswith(("#", "models/", "compare/"))}
    files = {"leaderboard.csv", "pairs.csv", "checks.csv", "leaderboard.md"}
    assert outer - {"data:,"} - files == {pair.run_url for pair in board.pairs if pair.run_url.startswith("http")}
    assert "javascript:" not in "".join(page.attributes("href"))


def test_nothing_is_fetched(page: Any) -> None:
    assert all(src.startswith("data:image/png;base64,") for src in page.attributes("src"))
    assert page.attributes("src")
    policy = next(attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'")


def test_every_pair_is_there_with_its_command_and_run(page: Any, board: Board) -> None:
    for pair in board.pairs:
        assert pair.result.command in page.text
        assert f"MLflow run {pair.run_id}" in page.attributes("title")


def test_the_numbers_of_the_ranking_are_those_of_the_frame(out: Path, board: Board) -> None:
    text = re.sub(r"<[^>]+>", " ", (out / "index.html").read_text(encoding="utf-8"))
    for row in leaderboard(board).to_dict("records"):
        if not row["n"]:  # training failed
            continue
        mean, std = 100 * row["worst_case_accuracy"], 100 * row["std"]
        assert f"{mean:.1f} \u00b1 {std:.1f}" in text
        assert f"[{100 * row['worst_case_low']:.1f}, {100 * row['worst_case_high']:.1f}]" in text


def test_missing_numbers_look_like_nothing(pair: Callable[..., Pair], tmp_path: Path, parse: Parse) -> None:
    made = pair([False, False], [math.nan, math.nan], forwards=None, backwards=math.nan, seconds=None, run_id="")
    crashed = pair([], [], attack="gone", status="crashed", command="", errors=("boom",))
    models = {"m0": KnownModel(dataset="mnist", architecture="mlp-200-200", defense="standard", seed=0)}
    written = write(tmp_path, Board("quick", {"mnist": {"linf": (8 / 255,)}}, [made, crashed], {}, models))
    shown = parse(written["index.html"]).text
    own = parse(next(content for name, content in written.items() if name.startswith("quick_"))).text
    for name, content in (("index.html", shown), ("leaderboard.md", written["leaderboard.md"]), ("its page", own)):
        assert not re.search(r"\b(nan|none|null|inf|<NA>)\b(?! broke)", content, re.IGNORECASE), name
    assert "boom" in shown
    assert "not tracked" in shown
    assert "not recorded" in shown


def test_what_was_not_asked_for_is_said_in_neutral_words(
    pair: Callable[..., Pair], tmp_path: Path, parse: Parse
) -> None:
    known = KnownModel(dataset="mnist", architecture="mlp-200-200", defense="standard", seed=0, status="ok")
    lists: dict[str, Any] = {"unasked": {"m0": ["DDN (l2)"]}, "left_out": {"m0": ["transfer:pgd"]}}
    board = Board("quick", {"mnist": {"linf": (8 / 255,)}}, [pair([1] * 4, [0.01] * 4)], {}, {"m0": known}, **lists)
    written = write(tmp_path, board)
    page = parse(written["index.html"])
    assert "None: every pair that was asked for ran" in page.text
    styles = {
        attrs["class"].strip() for tag, attrs in page.tags if tag == "span" and "status" in attrs.get("class", "")
    }
    assert styles == {"status noted"}
    flat = " ".join(written["leaderboard.md"].split())
    assert "has no rank: seed 0: 1 of the suite's 2 pairs were not asked for" in flat
    assert "| 1 of the suite's 2 pairs | not asked | DDN (l2) |" in flat
    assert "| 1 attack | left out | on purpose: transfer:pgd |" in flat
    assert "Failures and invalid results" not in flat
    assert "\u2264 0.0" in flat


@pytest.mark.timeout(20)
def test_an_empty_attack_never_looks_robust(pair: Callable[..., Pair], tmp_path: Path, parse: Parse) -> None:
    written = write(tmp_path, Board("quick", {"mnist": {"linf": (8 / 255,)}}, [pair([], [])]))
    assert "100.0" not in parse(written["index.html"]).text


def test_a_failed_pair_has_words_for_numbers(pair: Callable[..., Pair], tmp_path: Path) -> None:
    made = pair([1, 1, 1], [0.01, 0.02, math.nan], status="invalid", invalid={"over_budget": 1})
    written = write(tmp_path, Board("quick", {"mnist": {"linf": (8 / 255,)}}, [made]))
    record = re.search(r'<tr id="s0-p0">.*?</tr>', written["index.html"], re.DOTALL)
    assert record is not None
    assert "invalid" in record[0]
    assert not re.search(r"33\.3|66\.7|0\.015", record[0])


def test_unchanged_images_are_pointed_out(pair: Callable[..., Pair], tmp_path: Path, parse: Parse) -> None:
    pairs = [pair([1] * 4, [math.nan] * 4, unchanged=3), pair([1] * 4, [math.nan] * 4, attack="other", unchanged=1)]
    written = write(tmp_path, Board("quick", {"mnist": {"linf": (8 / 255,)}}, pairs))
    shown = parse(written["index.html"]).text
    assert "75.0 % unchanged" in shown
    assert "25.0 % unchanged" in shown
    assert "None: every pair that was asked for ran" in shown  # a caution is no failure
    for name, content in (("index.html", shown), ("leaderboard.md", written["leaderboard.md"])):
        assert content.count("of the attacked images came back unchanged") == 1, name


def test_no_boards_and_no_pairs(tmp_path: Path) -> None:
    assert "No results yet" in write(tmp_path, *[])["index.html"]
    models = {"m": KnownModel(dataset="mnist", architecture="a", defense="d", seed=0, status="failed", error="bad")}
    written = write(tmp_path, Board("quick", {"mnist": {"linf": (0.1,)}}, [], {"m": ["x"]}, models))
    assert written["pairs.csv"].splitlines() == [",".join(PAIR_COLUMNS)]
    assert "bad" in written["index.html"]
    assert "bad" in written["leaderboard.md"]


def test_markdown_tables_are_rectangular(out: Path) -> None:
    text = (out / "leaderboard.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(blocks) == 2 * 5 + 2 + 2  # a ranking and a heat map a threat, comparisons a norm, failures, commands
    for block in blocks:
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(cells) == 1
    assert "<script>" not in text
    assert "noise (control)" in text
    assert "**crashed 1 of 2**" in text


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        reports.write([], tmp_path / "file")
