"""A report as a whole: pages that link to one another, and what holds for each of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from harness.leaderboard import leaderboard
from harness.metrics.pairs import Board
from harness.schema.eps import limit
from reports.boards.section import sections
from tests.helpers.report import cascade

Pages = dict[str, Any]


def test_every_link_leads_somewhere(site: Path, pages: Pages, small_board: Board) -> None:
    runs = {pair.run_url for pair in small_board.pairs if pair.run_url.startswith("http")}
    inner = 0
    for name, page in pages.items():
        for href in page.attributes("href"):
            if href == "data:," or href in runs:
                continue
            path, _, anchor = href.partition("#")
            target = (site / name).parent.joinpath(path).resolve() if path else site / name
            assert target.is_file(), (name, href)
            assert not anchor or anchor in pages[target.relative_to(site.resolve()).as_posix()].attributes("id"), (
                name,
                href,
            )
            inner += 1
    assert inner > 1000


def test_every_page_can_be_reached(pages: Pages) -> None:
    linked = {href.partition("#")[0].removeprefix("../") for page in pages.values() for href in page.attributes("href")}
    assert {name for name in pages if name not in linked and f"models/{name}" not in linked} <= {"index.html"}
    first = {href.partition("#")[0] for href in pages["index.html"].attributes("href")}
    assert {name for name in pages if name.startswith("models/")} <= first


def test_pages_are_well_formed_and_ids_unique(pages: Pages) -> None:
    for name, page in pages.items():
        assert page.open == [], name
        ids = page.attributes("id")
        assert len(ids) == len(set(ids)), name


def test_nothing_is_fetched_by_any_page(pages: Pages) -> None:
    for page in pages.values():
        assert all(src.startswith("data:image/png;base64,") for src in page.attributes("src"))
        policy = next(attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs)
        assert policy.startswith("default-src 'none'")
        assert [tag for tag, _ in page.tags if tag in ("iframe", "object", "embed", "form")] == []


def test_names_are_text_on_every_page(site: Path, pages: Pages) -> None:
    hostile = [name for name in pages if "script-alert" in name]
    assert len(hostile) > 6
    for name, page in pages.items():
        assert [tag for tag, _ in page.tags].count("script") == 1, name
        assert not [attr for _, attrs in page.tags for attr in attrs if attr.startswith("on")], name
        assert "<script>alert" not in (site / name).read_text(encoding="utf-8")
        assert not [href for href in page.attributes("href") if href.startswith("javascript:")], name
    for name in hostile:
        assert "<script>alert('x')</script> | \"quoted\" & `ticked`" in pages[name].text


def test_missing_numbers_look_like_nothing_on_any_page(pages: Pages) -> None:
    for name, page in pages.items():
        assert not re.search(r"\b(nan|None|null|inf|<NA>)\b(?!: every pair that was asked for ran)", page.text), name


def test_cascades_are_neither_failures_nor_numbers(pages: Pages, small_board: Board, site: Path) -> None:
    index = pages["index.html"]
    cells = [cell for row in index.rows() for cell in row if "cascade" in cell]
    assert len(cells) > 100
    said = r"cascade(, broke )?\d+ of \d+"  # in the heat map, and eps by eps among the records
    assert all(re.fullmatch(rf"{said}|([\d./]+: {said})+", cell) for cell in cells)
    text = (site / "leaderboard.md").read_text(encoding="utf-8")
    part = text[text.index("## cascade on mnist") : text.index("## unseen on mnist")]
    assert re.search(r"\| cascade, broke \d+ of \d+ \|", part)
    failures = part[part.index("### Failures") : part.index("### Where the numbers")]
    assert failures.count("\n| ") == 2 + 2  # head and rule; the invalid pair and the failed training alone


def test_the_images_a_cascade_showed_and_broke_are_counted(small_board: Board) -> None:
    board = cascade(small_board)
    (section,) = sections([board], [leaderboard(board)])
    panel = section.panel("l2", 1.0)
    at = [attack.attack for attack in panel.columns].index("DeepFool")
    for row in panel.heat:
        if not row.entry.models:
            continue
        cell = row.cells[at]
        (pair,) = (p for p in row.entry.pairs if (p.result.attack, p.result.norm) == ("DeepFool", "l2"))
        samples = pair.samples[pair.samples["attacked"]]
        broke = int((samples["adversarial"] & (samples["l2"] <= limit(1.0))).sum())
        assert (cell.state, cell.value, cell.text) == ("cascade", None, f"{broke} of {len(samples)}")
        assert len(samples) < int(pair.samples["clean_correct"].sum())


def test_a_budget_without_bound_is_called_any_change(pages: Pages, site: Path) -> None:
    page = pages["models/unseen_mnist_mlp-200-200_standard_n20.html"]
    text = (site / "leaderboard.md").read_text(encoding="utf-8")
    assert "### any change" in text[text.index("## unseen") :]
    for words in (page.text, text[text.index("## unseen") :]):
        assert not re.search("\u03b5 = 1\\b", words)
    assert page.rows("Any change")
    assert not [attrs for tag, attrs in page.tags if attrs.get("class") == "chart"]  # no eps, no curve
    assert "Robust accuracy over" not in page.text
    assert "Robust accuracy over" in pages["models/quick_mnist_mlp-200-200_standard_n20.html"].text


@pytest.mark.parametrize("suite", ["quick", "cascade", "unseen"])
def test_every_suite_is_a_section(pages: Pages, suite: str) -> None:
    number = ["quick", "cascade", "unseen"].index(suite)
    assert f"s{number}" in pages["index.html"].attributes("id")
    assert f"{suite} on mnist" in " ".join(pages["index.html"].text.split())


def test_markdown_tables_of_every_suite_are_rectangular(site: Path) -> None:
    text = (site / "leaderboard.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(blocks) > 20
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert "**D** not to be believed" in text
    assert re.search(r"^- fast-gradient / mlp-200-200 has trust D: the gradient gains less", text, re.MULTILINE)
    assert "is significantly better |" in text
