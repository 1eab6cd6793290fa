"""What would decide open findings: against intervals that the findings themselves give at that size."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import reports
from harness.studies.deciding import MOST_SEEDS, SeedCost, Size, decisive, remedies
from harness.studies.findings import CONFIDENCE, Finding, standard_errors
from tests.studies.test_record import made


def finding(**changed: Any) -> Finding:
    """A value, printed as 10 with a tolerance of 1, measured as 10 on four seeds of 1,000 images."""
    fields: dict[str, Any] = {
        "kind": "value", "item": "table-1", "row": "a", "column": "b", "metric": "error", "unit": "%", "printed": 10.0,
        "rival": None, "tolerance": 1.0, "basis": "measured", "measured": 10.0, "low": 8.0, "high": 12.0,
        "margin": None, "margin_low": None, "margin_high": None, "over_seeds": 2.0, "over_images": math.nan,
        "sampled": True, "seeds": 4, "n": 1000, "verdict": "undecided", "profile": "cpu", "commits": "", "keys": "",
        "note": "",
    }  # fmt: skip
    return Finding(**fields | changed)


def cheap(size: Size) -> float:
    return size.seeds * size.images


def asked(one: Finding, confidence: float = CONFIDENCE) -> Size | None:
    return decisive(one, 1000, 10_000, confidence, cheap)


def test_seeds_are_asked_for_until_half_the_interval_is_within_the_tolerance() -> None:
    size = asked(finding())
    deviation = 2.0 / standard_errors(4, CONFIDENCE)
    halves = {seeds: deviation * standard_errors(seeds, CONFIDENCE) for seeds in range(4, MOST_SEEDS + 1)}
    assert size is not None
    assert halves[size.seeds] <= 1 < halves[size.seeds - 1]
    assert size.images == 1000


def test_more_images_are_asked_for_where_images_make_the_interval_wide() -> None:
    assert asked(finding(over_seeds=0.1, over_images=3.0)) == Size(4, 10_000)
    assert asked(finding(over_seeds=0.1, over_images=3.2)) is None  # a root of ten is not enough
    assert asked(finding(over_seeds=0.1, over_images=3.0, sampled=False)) is None  # there are no more


def test_the_cheaper_of_more_seeds_and_more_images() -> None:
    both = finding(over_seeds=0.95, over_images=0.4)
    seeds, images = asked(both), decisive(both, 1000, 10_000, CONFIDENCE, lambda size: size.seeds)
    assert seeds is not None
    assert seeds.images == 1000
    assert images == Size(4, 10_000)


def test_no_number_of_seeds_decides_what_lies_on_the_edge() -> None:
    assert asked(finding(over_seeds=20.0)) is None
    assert asked(finding(over_seeds=0.0, over_images=1.2, sampled=False)) is None


def test_a_clause_is_decided_once_its_margin_is_longer_than_half_its_interval() -> None:
    confidence = 1 - 0.05 / 8
    size = asked(finding(kind="clause", tolerance=None, margin=-1.0), confidence)
    assert size is not None
    deviation = 2.0 / standard_errors(4, confidence)
    assert deviation * standard_errors(size.seeds, confidence) < 1
    assert deviation * standard_errors(size.seeds - 1, confidence) >= 1
    assert asked(finding(kind="clause", tolerance=None, margin=0.0), confidence) is None


def test_a_record_says_what_would_decide_each_item_and_what_it_costs() -> None:
    record = made()
    wide = replace(record.findings["value", "table-1", "a", "error"], verdict="undecided", tolerance=0.7)
    assert wide.over_seeds == pytest.approx((wide.measured - 10) * 12.706, rel=1e-3)  # two seeds, Student's t
    record = replace(
        record,
        findings={**record.findings, wide.place: wide},
        facts={**record.facts, "costs": {"table-1": asdict(SeedCost(3600.0, 7200.0, 4, 2))}},
    )
    (one,) = (one for one in remedies(record) if one.item == "table-1")
    assert (one.undecided, one.not_run, one.decided, one.out_of_reach) == (1, 0, 1, 0)
    assert one.size == Size(3, 4)
    assert one.hours == pytest.approx(3.0)  # one seed more
    assert one.measured


def test_what_was_not_run_is_asked_for_five_seeds() -> None:
    record = made()
    record = replace(record, findings={})
    found = {one.item: one for one in remedies(record)}
    assert found["table-1"].not_run == 2  # what is true by construction is not asked for
    assert found["small"].size == Size(5, 4)
    assert found["small"].unforeseen == 1
    assert found["small"].hours is None


def test_what_was_run_without_a_number_is_not_run_again() -> None:
    record = made()
    (place,) = (place for place in record.findings if place[0] == "clause")
    failed = replace(record.findings[place], verdict="not run", seeds=0, note="seed 0: crashed")
    (one,) = remedies(replace(record, findings={**record.findings, place: failed}))
    assert (one.item, one.not_run, one.out_of_reach, one.command) == ("small", 1, 1, "")


def test_nothing_is_promised_of_data_or_profiles_that_judge_nothing() -> None:
    record = replace(made(), findings={})
    foreign = replace(record, facts={**record.facts, "dataset": "digits", "stands_in_for": "mnist"})
    assert [one.item for one in remedies(foreign)] == ["small"]  # claims are judged there
    assert "--dataset digits" in remedies(foreign)[0].command
    assert not remedies(replace(record, facts={**record.facts, "profile": "smoke"}))


@pytest.mark.parametrize(
    ("run", "samples", "words"),
    [
        ([0, 1], 4, "--seeds 0-4"),
        ([5, 6], 4, "--seeds 5,6,0,1,2"),
        ([0, 1, 2, 3, 4, 5], 8, "--seeds 0-5 --samples 8"),
    ],
)
def test_the_command_asks_for_the_size_that_the_row_says(run: list[int], samples: int, words: str) -> None:
    record = made()
    facts = {**record.facts, "seeds": run, "samples": samples, "test_size": 10_000}
    one = next(iter(remedies(replace(record, findings={}, facts=facts))))
    assert one.size == Size(max(5, len(run)), samples)
    assert one.command == (
        f"gauntlet reproduce made-up --profile cpu --only table-1 {words} --out study-made-up-table-1"
    )


def test_only_what_is_new_costs() -> None:
    cost = SeedCost(1800.0, 1800.0, 1000, 2)
    assert cost.hours(Size(4, 1000)) == pytest.approx(4.0)
    assert cost.hours(Size(4, 10_000)) == pytest.approx(4 * 5.5)
    assert cost.missing(Size(4, 1000)) == pytest.approx(2.0)
    assert cost.missing(Size(4, 10_000)) == pytest.approx(4 * 5.5 - 2 * 0.5)  # the models are there already
    assert replace(cost, seeds=0).missing(Size(4, 1000)) == pytest.approx(4.0)


def test_the_pages_show_the_rows(tmp_path: Path) -> None:
    record = replace(made(), findings={})
    record = replace(record, facts={**record.facts, "costs": {"table-1": asdict(SeedCost(3600.0, 0.0, 4, 0))}})
    *_, page = reports.write_study(record, tmp_path)
    html, markdown = page.read_text(), page.with_suffix(".md").read_text()
    table = markdown.partition("## What would decide the rest")[2].partition("\n## ")[0]
    first, second = (line for line in table.splitlines() if "gauntlet reproduce" in line)
    assert "| table-1 | 2 not run | 2 not foreseen | 5 seeds | at most 5.0 |" in first
    assert "| small | 1 not run | 1 not foreseen | 5 seeds | not known |" in second
    assert "at most 5.0" in html
    assert html.count("--out study-made-up-") == 2
    assert reports.summary({"made-up": record}, "records").splitlines()[-1].count("3 not foreseen") == 1
