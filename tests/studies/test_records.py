"""The committed records: what they say is what the studies ask and what the pages show."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

import reports
from harness.studies.record import StudyRecord
from reports.studies.values import CLAUSE_MEANINGS, VALUE_MEANINGS

ROOT: Final = Path(__file__).parents[2]
RECORDS: Final = sorted(path.name for path in (ROOT / "records").iterdir() if path.is_dir())
PAGES: Final = {
    page: [name for name in RECORDS if name.split("-")[0] == page]
    for page in dict.fromkeys(n.split("-")[0] for n in RECORDS)
}


def rendering() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render", ROOT / "docs" / "papers" / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(name: str) -> StudyRecord:
    read: StudyRecord = rendering().read(ROOT / "records" / name)
    return read


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_holds_what_the_paper_prints(name: str) -> None:
    read = record(name)
    for item in read.study.items:
        for value in item.values:
            found = read.value(item, value)
            assert found.printed == value.printed, (item.name, value.row, value.column)
            assert (found.unit, found.rival) == (value.unit, value.rival), (item.name, value.row, value.column)
    asked = {
        *(("value", item.name, value.row, value.column) for item in read.study.items for value in item.values),
        *(("clause", claim.name, clause.text, "") for claim in read.study.claims for clause in claim.clauses),
        *(("effect", choice.topic, effect, "") for choice in read.study.choices for effect, _ in choice.effects),
    }
    assert not {place for place in read.findings if place not in asked}, "the study no longer asks for these"


@pytest.mark.parametrize("name", RECORDS)
def test_the_pages_beside_a_record_are_made_from_it(name: str, tmp_path: Path) -> None:
    reports.write_study(record(name), tmp_path)
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        there = ROOT / "records" / name / path.relative_to(tmp_path)
        assert there.read_bytes() == path.read_bytes(), f"{there} is another: python docs/papers/render.py"


def test_the_pages_about_all_records_are_made_from_them() -> None:
    module = rendering()
    for path, text in module.pages(module.read_all()):
        assert path.read_text(encoding="utf-8") == text, f"{path} is another: python docs/papers/render.py"
        assert path.suffix == ".html" or all(name in text for name in RECORDS), path


def numbers(read: StudyRecord) -> list[float]:
    """Everything measured, printed or declared, and what is compared with by a margin."""
    found = [
        number
        for finding in read.findings.values()
        for number in (
            finding.printed, finding.measured, finding.low, finding.high, finding.margin, finding.margin_low,
            finding.margin_high,
        )
        if number is not None
    ]  # fmt: skip
    compared = [one for one in read.findings.values() if one.measured is not None and one.margin is not None]
    found += [finding.measured + sign * finding.margin for finding in compared for sign in (1, -1)]
    accuracies = read.judgement[["clean_accuracy", "worst_case_accuracy", "worst_case_low", "worst_case_high"]]
    searched = [
        path.read_text(encoding="utf-8") for path in (ROOT / "records").glob(f"{read.study.name}*/search-*.csv")
    ]
    found += [float(number) for text in searched for number in re.findall(r"\d+\.\d+", text)]
    found += [100 * number for number in found[-1000:] if searched and number < 1]
    declared = re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", repr(read.study))
    return [*found, *(100 * accuracies.astype(float)).to_numpy().ravel(), *map(float, declared)]


@pytest.mark.parametrize("page", PAGES)
def test_every_number_on_a_page_is_in_its_record(page: str) -> None:
    """Decimals and percentages, to as many digits as are written; numbers in code and links are no measurements."""
    known = [number for name in PAGES[page] for number in numbers(record(name))]
    text = (ROOT / "docs" / "papers" / f"{page}.md").read_text(encoding="utf-8")
    text = re.sub(r"\(\.\./[^)]*\)|`[^`]*`|arXiv:\S+|section [\d.]+", "", text)
    strangers = []
    for found in re.finditer(r"(?<![\w.-])(\d[\d,]*\.\d+|\d[\d,]*(?= %))", text):
        written = found[1].replace(",", "")
        digits = len(written.partition(".")[2])
        if not any(abs(abs(number) - float(written)) <= 0.5 * 10**-digits + 1e-9 for number in known):
            strangers.append(text[max(0, found.start() - 40) : found.end() + 20].replace("\n", " "))
    assert not strangers


def test_a_smoke_profile_is_marked_wherever_a_verdict_is_shown(tmp_path: Path) -> None:
    measured = record("gu2014")
    smoke = dataclasses.replace(measured, facts={**measured.facts, "profile": "smoke"})
    assert not measured.caveat
    *_, page = reports.write_study(smoke, tmp_path)
    text = page.read_text()
    verdicts = text.count('class="verdict ') - text.count('class="verdict mark')
    explained = len(CLAUSE_MEANINGS) + len(VALUE_MEANINGS)
    assert (
        verdicts - explained == text.count(">smoke</span>") > len(smoke.study.claims)
    )  # beside tables and figures too
    table = page.with_suffix(".md").read_text().partition("## Claims")[2].partition("\n\n-")[0]
    assert table.count("(smoke)") == len(smoke.study.claims)
    assert smoke.caveat[1:] in text
