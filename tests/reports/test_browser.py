"""The report in a real browser, opened from disk as a researcher would."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import reports
from tests.helpers.bundles import board_entries
from tests.helpers.report import build_board, unseen

ROOT = Path(__file__).parents[2]
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium found: install chromium, or set CHROMIUM to its path"
)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    board = build_board(n=40)
    out = tmp_path_factory.mktemp("report")
    reports.write([board, unseen(board, n=40)], out, title="Browser test", command="gauntlet report")
    return (out / "index.html").as_uri()


@pytest.fixture(scope="module")
def others(url: str) -> list[str]:
    """Pages of a model without a rank, one that has one, one never attacked, two against, and one without eps."""
    folder = url.removesuffix("index.html")
    a, b = (f"quick_mnist_mlp-200-200_{name}_n40" for name in ("fast-gradient", "standard"))
    found = [f"models/{a}", f"models/{b}", "models/quick_mnist_lenet_standard_n0", f"compare/{a}--{b}"]
    return [f"{folder}{name}.html" for name in [*found, "models/unseen_mnist_mlp-200-200_standard_n40"]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Open a page; at the end of the test nothing may have been complained about or asked of the network."""
    contexts, complaints, requests = [], [], []

    def open_it(address: str, width: int = 1280, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert complaints == []
    assert [request for request in requests if not request.startswith(("file://", "data:"))] == []


def column(page: Any, panel: str, at: int, body: int = 0) -> list[str]:
    cells = page.locator(f"#{panel} table.ranking tbody").nth(body).locator("tr:not(.group)")
    return [row.locator("td, th").nth(at).inner_text().strip() for row in cells.all()]


def shown(page: Any) -> list[str]:
    return [panel.get_attribute("id") for panel in page.locator("#s0 .panel").all() if panel.is_visible()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_overflows(open_page: Any, url: str, width: int, scheme: str) -> None:
    page = open_page(url, width, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(node => { node.open = true; })")
    for value in [radio.get_attribute("value") for radio in page.locator("[data-threats] input").all()]:
        page.locator(f"input[value='{value}']").check(force=True)
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_overflows_on_the_other_pages(open_page: Any, others: list[str], width: int, scheme: str) -> None:
    for address in others:
        page = open_page(address, width, color_scheme=scheme)
        page.evaluate("document.querySelectorAll('details').forEach(node => { node.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), address


def test_from_the_ranking_to_a_model_to_a_comparison_and_back(open_page: Any, url: str) -> None:
    page = open_page(url)
    page.locator("#s0-linf-1 table.ranking tbody a.grade").first.click()
    assert page.locator("#trust-linf").is_visible()
    assert "/models/" in page.url
    page.locator("#against a").first.click()
    assert "/compare/" in page.url
    assert page.locator("h1").inner_text().count("against") == 1
    page.locator("h1 a").first.click()
    assert "/models/" in page.url
    page.locator(".back a").click()
    assert page.url == f"{url}#s0"


def test_the_matrix_leads_to_the_two(open_page: Any, url: str) -> None:
    page = open_page(url)
    link = page.locator("table.versus td a").first
    words = link.inner_text()
    link.click()
    difference = page.locator("table.bouts tr.reference td").nth(2).inner_text()
    assert words.split()[-1].lstrip("+\u2212") == difference.lstrip("+\u2212")


def test_an_attack_leads_to_its_folded_record(open_page: Any, others: list[str]) -> None:
    page = open_page(others[0])
    link = page.locator("table.attackers th a").first
    record = page.locator(link.get_attribute("href"))
    assert not record.is_visible()
    link.click()
    record.wait_for(state="visible")


def test_a_grade_can_be_read_without_colour(open_page: Any, others: list[str]) -> None:
    page = open_page(others[0])
    badge = page.locator(".facts .grade").first
    assert badge.inner_text() == "D"
    assert badge.get_attribute("title").startswith("Trust D: ")
    legend = page.locator("#trust .grades .grade")
    assert legend.all_inner_texts() == ["A", "B", "C", "D"]
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for one in legend.all():
            text, ground = one.evaluate(
                "node => [getComputedStyle(node).color, getComputedStyle(node).backgroundColor]"
            )
            assert contrast(text, ground) >= 4.5, scheme


def contrast(one: str, other: str) -> float:
    """Ratio of the luminances of two colours ``rgb(r, g, b)``, as the web's accessibility guidelines define it."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_one_threat_needs_no_selector(open_page: Any, url: str) -> None:
    page = open_page(f"{url}#s1-linf-0")
    assert page.locator("#s1-linf-0").is_visible()
    assert page.locator("#s1 [data-threats]").count() == 0
    assert page.locator("#s0 [data-threats]").count() == 1


def test_printing_a_model_shows_every_check_and_command(open_page: Any, others: list[str]) -> None:
    page = open_page(others[0])
    checks = page.locator("details table.checks")
    assert checks.count() == 2
    assert not any(table.is_visible() for table in checks.all())
    page.emulate_media(media="print")
    assert all(table.is_visible() and table.bounding_box()["height"] > 0 for table in checks.all())
    assert page.locator("table.records").is_visible()


def test_without_scripts_everything_can_be_read(open_page: Any, url: str) -> None:
    page = open_page(url, 390, java_script_enabled=False)
    assert len(shown(page)) == 5
    assert not page.locator("[data-threats]").first.is_visible()
    assert page.locator("button").count() == 0


def test_the_threat_selector_shows_one_panel_at_a_time(open_page: Any, url: str) -> None:
    page = open_page(url)
    assert shown(page) == ["s0-linf-1"]
    page.get_by_role("radio", name="16/255").check(force=True)
    assert shown(page) == ["s0-linf-2"]
    page.keyboard.press("ArrowRight")  # a radio group: the arrow keys move through it
    assert shown(page) == ["s0-l2-0"]
    assert "L\u2082 \u03b5 = 0.5" in page.locator("#s0-l2-0 h3").first.inner_text()


def test_sorting_by_pointer_and_by_keyboard(open_page: Any, url: str) -> None:
    page = open_page(url)
    head = page.locator("#s0-linf-1 table.ranking thead th")
    assert column(page, "s0-linf-1", 0) == ["1", "2=", "2="]
    clean = [float(value.split()[0]) for value in column(page, "s0-linf-1", 8)]
    head.nth(8).get_by_role("button").click()
    assert head.nth(8).get_attribute("aria-sort") == "descending"
    assert head.nth(0).get_attribute("aria-sort") is None
    found = [float(value.split()[0]) for value in column(page, "s0-linf-1", 8)]
    assert found == sorted(clean, reverse=True)
    head.nth(1).get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert head.nth(1).get_attribute("aria-sort") == "ascending"
    names = column(page, "s0-linf-1", 1)
    assert names == sorted(names)
    page.keyboard.press("Enter")
    assert column(page, "s0-linf-1", 1) == names[::-1]


def test_what_has_no_number_stays_last_when_sorted(open_page: Any, url: str) -> None:
    page = open_page(url)
    button = page.locator("#s0-linf-1 table.ranking thead th").nth(3).get_by_role("button")
    for _ in range(2):
        button.click()
        values = column(page, "s0-linf-1", 3, body=1)
        assert len(values) == 3
        assert values[-1] == "\u2014"
    assert page.locator("#s0-linf-1 table.ranking tbody").nth(1).locator("tr").first.get_attribute("class") == "group"


def test_a_number_leads_to_its_record(open_page: Any, url: str) -> None:
    page = open_page(url)
    link = page.locator("#s0-linf-1 table.heat td.cell:not(.worst) a").first
    record = page.locator(link.get_attribute("href"))
    assert not record.is_visible()
    link.click()
    record.wait_for(state="visible")
    assert "gauntlet run quick" in record.locator("code[data-copy]").text_content()
    assert record.locator("a.run").get_attribute("href").startswith("http://127.0.0.1:5000/#/experiments/1/runs/")


def test_an_address_with_a_panel_opens_it(open_page: Any, url: str) -> None:
    assert shown(open_page(url + "#s0-l2-1")) == ["s0-l2-1"]


def test_contents_lead_to_what_they_say(open_page: Any, url: str) -> None:
    page = open_page(url)
    for link in page.locator("nav.contents a").all():
        assert page.locator(link.get_attribute("href")).count() == 1


def test_printing_shows_every_threat_and_no_controls(open_page: Any, url: str) -> None:
    page = open_page(url)
    page.emulate_media(media="print")
    assert len(shown(page)) == 5
    assert not page.locator("[data-threats]").first.is_visible()
    assert not page.locator("button.copy").first.is_visible()


def test_printing_unfolds_what_is_folded(open_page: Any, url: str) -> None:
    page = open_page(url)
    folded = page.locator("details.card:not([open]) table.records")
    assert folded.count() > 0
    assert not any(table.is_visible() for table in folded.all())
    page.emulate_media(media="print")
    assert all(table.is_visible() and table.bounding_box()["height"] > 0 for table in folded.all())


def test_names_are_text_not_markup(open_page: Any, url: str) -> None:
    page = open_page(url)
    assert page.locator("script").count() == 1
    assert page.get_by_text("<script>alert('x')</script>").count() > 0


def test_pictures_decode_and_keep_their_pixels(open_page: Any, url: str) -> None:
    page = open_page(url)
    images = page.locator(".picture img")
    assert images.count() > 20
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth === 28)")
    assert images.first.evaluate("node => getComputedStyle(node).imageRendering") == "pixelated"


@pytest.fixture(scope="module")
def board_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("board")
    reports.write_board(board_entries(), out, title="Board test")
    return (out / "index.html").as_uri()


def test_the_board_is_filtered_sorted_and_leads_to_bundles(open_page: Any, board_url: str) -> None:
    page = open_page(board_url)
    panel = page.locator(".panel:visible")
    rows = panel.locator("tbody tr:visible")
    names = [" ".join(row.locator("th").inner_text().split()) for row in rows.all()]
    assert names == ["pgd mlp-8", "standard mlp-8", "masked <b> mlp-8"]
    page.locator("input[data-filter]").fill("STAN grace")
    assert [" ".join(row.locator("th").inner_text().split()) for row in rows.all()] == ["standard mlp-8"]
    assert "of" in page.locator("[data-filtered]").inner_text()
    page.locator("input[data-filter]").fill("")
    assert rows.count() == 3
    panel.get_by_role("button", name="Worst case").click()
    worst = [row.locator("td").nth(1).inner_text() for row in rows.all()]
    assert worst == ["\u2264 90.0", "50.0", "10.0"]
    panel.locator("summary").click()
    assert panel.locator("details li").all_inner_texts()[0].startswith("2026-01-01: 30.0")
    links = {link.get_attribute("href") for link in page.locator("a").all()}
    assert {"../a.tar", "../b/"} <= links
    page.get_by_role("radio", name="L\u2082").check(force=True)
    assert page.locator(".panel:visible h3").inner_text().startswith("L\u2082")


@pytest.mark.parametrize("width", [390, 1280])
def test_the_board_does_not_overflow(open_page: Any, board_url: str, width: int) -> None:
    page = open_page(board_url, width)
    page.evaluate("document.querySelectorAll('details').forEach(node => { node.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (390, "dark"),
        *(pytest.param(*other, marks=pytest.mark.long) for other in [(390, "light"), (1280, "light"), (1280, "dark")]),
    ],
)
def test_axe_finds_nothing(
    open_page: Any, url: str, others: list[str], board_url: str, width: int, scheme: str
) -> None:
    """Contrast, names of landmarks and of what can be pressed, order of headings, with everything unfolded."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    study = ROOT / "records" / "gu2014" / "study-gu2014.html"
    for address in (url, *others, board_url, study.as_uri()):
        page = open_page(address, width, color_scheme=scheme, bypass_csp=True)
        page.evaluate("document.querySelectorAll('details').forEach(node => { node.open = true; })")
        found = axe.Axe().run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == [], address


def test_models_are_filtered_by_name(open_page: Any, url: str) -> None:
    page = open_page(url)
    page.locator("input[data-filter]").fill("gauss mlp")
    shown = page.locator("#s0-linf-1 table.ranking tbody tr[data-row]:visible")
    assert [row.locator("th a").inner_text() for row in shown.all()] == ["gaussian-noise"]
    assert page.locator("[data-filtered]").inner_text() == "1 of 6 models"
    page.locator("input[data-filter]").fill("")
    assert shown.count() == 6
