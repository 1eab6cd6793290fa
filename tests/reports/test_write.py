from __future__ import annotations

import csv
import html.parser
import io
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import reports
from harness.metrics import LEADERBOARD_COLUMNS, PAIR_COLUMNS, Board, Pair, leaderboard, pair_rows

NAMES = ["leaderboard.csv", "pairs.csv", "leaderboard.md", "index.html"]


class Page(html.parser.HTMLParser):
    """What a browser would see: tags with their attributes, and text outside style and script."""

    VOID = frozenset({"meta", "link", "input", "img", "br", "wbr", "path", "line", "circle"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] for _, attrs in self.tags if name in attrs]


@pytest.fixture(scope="module")
def out(board: Board, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    reports.write([board], folder, title="A <b> | title", command="gauntlet report --home 'a & b'")
    return folder


@pytest.fixture(scope="module")
def page(out: Path) -> Page:
    return Page((out / "index.html").read_text(encoding="utf-8"))


def rows_of(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))


def write(out: Path, *boards: Board) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in reports.write(boards, out)}


def test_files(board: Board, tmp_path: Path) -> None:
    written = reports.write([board], tmp_path / "new" / "folder")
    assert [path.name for path in written] == NAMES
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == sorted(NAMES)  # no leftovers


def test_csv_columns_are_exactly_the_contract(out: Path) -> None:
    assert tuple(rows_of(out / "leaderboard.csv")[0]) == LEADERBOARD_COLUMNS
    assert tuple(rows_of(out / "pairs.csv")[0]) == PAIR_COLUMNS


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


def test_boards_are_joined(board: Board, small_board: Board, tmp_path: Path) -> None:
    other = Board("other", small_board.budgets, small_board.pairs, small_board.missing, small_board.models)
    written = write(tmp_path, board, other)
    read = pd.read_csv(io.StringIO(written["pairs.csv"]))
    assert read["suite"].value_counts().to_dict() == {"quick": len(pair_rows(board)), "other": len(pair_rows(other))}
    assert 'id="s1"' in written["index.html"]
    assert "## other on mnist" in written["leaderboard.md"]


def test_the_same_records_give_the_same_bytes(board: Board, out: Path, tmp_path: Path) -> None:
    reports.write([board], tmp_path, title="A <b> | title", command="gauntlet report --home 'a & b'")
    for name in NAMES:
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_bytes_do_not_depend_on_the_process(small_board: Board, tmp_path: Path) -> None:
    helper = Path(__file__).with_name("conftest.py")
    code = (
        "import runpy, sys; from pathlib import Path; import reports\n"
        f"board = runpy.run_path({str(helper)!r})['build_board'](n=20, seeds=1)\n"
        f"reports.write([board], Path({str(tmp_path / 'other')!r}))\n"
        "bad = {'torch', 'art', 'foolbox', 'mlflow'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env={"PYTHONHASHSEED": "7", "PATH": ""})
    reports.write([small_board], tmp_path / "here")
    for name in NAMES:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_page_is_well_formed_and_ids_are_unique(page: Page) -> None:
    assert page.open == []
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))


def test_links_inside_the_page_have_targets(page: Page) -> None:
    ids = set(page.attributes("id"))
    inner = {href[1:] for href in page.attributes("href") if href.startswith("#")}
    assert inner <= ids
    assert len(inner) > 100  # every cell of the heat map leads to its record


def test_user_text_is_escaped_everywhere(page: Page) -> None:
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "<script>alert('x')</script> | \"quoted\" & `ticked`" in page.text
    assert "A <b> | title" in page.text
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]


def test_only_web_addresses_become_links(page: Page, board: Board) -> None:
    outer = {href for href in page.attributes("href") if not href.startswith("#")}
    assert outer - {"data:,"} == {pair.run_url for pair in board.pairs if pair.run_url.startswith("http")}
    assert "javascript:" not in "".join(page.attributes("href"))


def test_nothing_is_fetched(page: Page) -> None:
    assert all(src.startswith("data:image/png;base64,") for src in page.attributes("src"))
    assert page.attributes("src")
    policy = next(attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'")


def test_every_pair_is_there_with_its_command_and_run(page: Page, board: Board) -> None:
    for pair in board.pairs:
        assert pair.meta["command"] in page.text
        assert f"MLflow run {pair.run_id}" in page.attributes("title")


def test_the_numbers_of_the_ranking_are_those_of_the_frame(out: Path, board: Board) -> None:
    text = re.sub(r"<[^>]+>", " ", (out / "index.html").read_text(encoding="utf-8"))
    for row in leaderboard(board).to_dict("records"):
        mean, std = 100 * row["worst_case_accuracy"], 100 * row["std"]
        assert f"{mean:.1f} \u00b1 {std:.1f}" in text
        assert f"[{100 * row['worst_case_low']:.1f}, {100 * row['worst_case_high']:.1f}]" in text


def test_missing_numbers_look_like_nothing(pair: Callable[..., Pair], tmp_path: Path) -> None:
    made = pair([False, False], [math.nan, math.nan], forwards=None, backwards=math.nan, seconds=None, run_id="")
    crashed = pair([], [], attack="gone", status="crashed", command="", errors=["boom"])
    models = {"m0": {"dataset": "mnist", "architecture": "mlp-200-200", "defense": "standard", "seed": 0}}
    written = write(tmp_path, Board("quick", {"mnist": {"linf": (8 / 255,)}}, [made, crashed], {}, models))
    shown = Page(written["index.html"]).text
    for name, content in (("index.html", shown), ("leaderboard.md", written["leaderboard.md"])):
        assert not re.search(r"\b(nan|none|null|inf|<NA>)\b(?! broke)", content, re.IGNORECASE), name
    assert "boom" in shown
    assert "not tracked" in shown
    assert "not recorded" in shown


def test_an_empty_attack_never_looks_robust(pair: Callable[..., Pair], tmp_path: Path) -> None:
    written = write(tmp_path, Board("quick", {"mnist": {"linf": (8 / 255,)}}, [pair([], [])]))
    assert "100.0" not in Page(written["index.html"]).text


def test_a_failed_pair_has_words_for_numbers(pair: Callable[..., Pair], tmp_path: Path) -> None:
    made = pair([1, 1, 1], [0.01, 0.02, math.nan], status="invalid", invalid={"over_budget": 1})
    written = write(tmp_path, Board("quick", {"mnist": {"linf": (8 / 255,)}}, [made]))
    record = re.search(r'<tr id="s0-p0">.*?</tr>', written["index.html"], re.DOTALL)
    assert record is not None
    assert "invalid" in record[0]
    assert not re.search(r"33\.3|66\.7|0\.015", record[0])


def test_unchanged_images_are_pointed_out(pair: Callable[..., Pair], tmp_path: Path) -> None:
    pairs = [pair([1] * 4, [math.nan] * 4, unchanged=3), pair([1] * 4, [math.nan] * 4, attack="other", unchanged=1)]
    written = write(tmp_path, Board("quick", {"mnist": {"linf": (8 / 255,)}}, pairs))
    shown = Page(written["index.html"]).text
    assert "75.0 % unchanged" in shown
    assert "25.0 % unchanged" in shown
    assert "None: every declared pair ran" in shown  # a caution is no failure
    for name, content in (("index.html", shown), ("leaderboard.md", written["leaderboard.md"])):
        assert content.count("of the attacked images came back unchanged") == 1, name


def test_no_boards_and_no_pairs(tmp_path: Path) -> None:
    assert "No results yet" in write(tmp_path, *[])["index.html"]
    models = {
        "m": {"dataset": "mnist", "architecture": "a", "defense": "d", "seed": 0, "status": "failed", "error": "bad"}
    }
    written = write(tmp_path, Board("quick", {"mnist": {"linf": (0.1,)}}, [], {"m": ["x"]}, models))
    assert written["pairs.csv"].splitlines() == [",".join(PAIR_COLUMNS)]
    assert "bad" in written["index.html"]
    assert "bad" in written["leaderboard.md"]


def test_markdown_tables_are_rectangular(out: Path) -> None:
    text = (out / "leaderboard.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(blocks) == 2 * 5 + 2  # a ranking and a heat map a threat, failures, commands
    for block in blocks:
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(cells) == 1
    assert "<script>" not in text
    assert "noise (control)" in text
    assert "**crashed 1 of 2**" in text


def test_a_folder_that_cannot_be_written(board: Board, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        reports.write([board], tmp_path / "file")
