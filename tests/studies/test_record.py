"""Records of studies: read back as they were written, and pages that are made from them alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pytest

import reports
from harness.attacks.lbfgs import LBFGS
from harness.errors import UserError
from harness.studies.findings import Findings, MeasurementSource
from harness.studies.record import JUDGEMENT_COLUMNS, StudyRecord, battery_other_now, by_place, read_record
from harness.studies.study import Choice, Claim, Clause, Item, Measure, Picture, Profile, Quoted, Study, Value
from harness.threat import Threat
from tests.helpers.boards import card

ERROR: Final = Measure(quantity="test_error", model="a")
SHOWN: Final = Measure(quantity="distortion", model="a", attack=LBFGS(), threat=Threat("l2", None))


def value(row: str, column: str, **fields: object) -> Value:
    return Value(row=row, column=column, metric="error", quantity=ERROR, unit="%", **fields)  # type: ignore[arg-type]


STUDY: Final = Study(
    name="made-up",
    title="A paper",
    source="Somebody 2014",
    profiles={"cpu": Profile(summary="small", dataset="mnist", seeds=(0, 1), samples=4)},
    models=lambda profile, info, seed: {},
    items=(
        Item(
            name="table-1",
            title="Errors",
            where="page 1",
            values=(
                value("a", "error", printed=11.0, tolerance=2.0, rival=20.0),
                value("a", "again", printed=11.0, tolerance=2.0, rival=20.0),
                value("a", "given", printed=12.0, tolerance=9.0, basis="construction"),
            ),
            quoted=(Quoted(row="b", column="error", printed=7.0, source="Others 2013", unit="%"),),
        ),
        Item(
            name="figure-1",
            title="Curve",
            where="page 2",
            kind="lines",
            axes=("x", "y"),
            values=(value("a", "0"), value("a", "1")),
        ),
        Item(
            name="figure-2",
            title="Images",
            where="page 3",
            kind="grid",
            pictures=(
                Picture(title="original & clean", measure=SHOWN, shows="original"),
                Picture(title="adversarial", measure=SHOWN, shows="adversarial"),
            ),
        ),
    ),
    claims=(
        Claim(
            name="small",
            text="Errors are small.",
            where="page 4",
            clauses=(Clause(text="a, below", left=ERROR, relation="<", right=0.5, unit="%"),),
        ),
    ),
    choices=(Choice(topic="rate", choice="fast", reason="none", effects=(("slow", value("a", "")),), fitted=True),),
)


def judged_row(**fields: object) -> dict[str, object]:
    usual = {
        "model": "a", "suite": "linf", "norm": "linf", "eps": 0.1, "n": 100, "seeds": 2, "clean_accuracy": 0.9,
        "worst_case_accuracy": 0.0, "std": 0.0125, "worst_case_low": 0.0, "worst_case_high": 0.5, "certified": 0.125,
        "certified_attacked": 0.375, "certified_n": 32.0, "certificate": "", "planted_found": 0.984,
        "planted_black_box": 0.906, "trust": "", "trust_reasons": "few images", "note": "", "strongest_attack": "apgd",
        "commits": "c", "keys": "k",
    }  # fmt: skip
    return usual | fields


def judging(*rows: dict[str, object], study: Study = STUDY, **facts: object) -> StudyRecord:
    frame = pd.DataFrame(rows, columns=list(JUDGEMENT_COLUMNS))
    return replace(made(), study=study, judgement=frame, facts={**made().facts, **facts})


def made(test_size: int = 10_000) -> StudyRecord:
    errors = (0.10, 0.1012345678901)
    source = MeasurementSource(
        lambda _, seed: card(test_accuracy=1 - errors[seed], epochs=1),
        lambda *_: None,
        lambda *_: None,
        lambda *_: "",
        (0, 1),
        test_size,
        lambda _, seed: f"c{seed}",
    )
    facts = {
        "study": "made-up", "profile": "cpu", "summary": "small", "dataset": "mnist", "seeds": [0, 1], "samples": 4,
        "command": "gauntlet reproduce made-up", "skipped": [], "models": 2, "pairs": 0, "training_seconds": 1,
        "attack_seconds": 0, "versions": {"python": "3"}, "commits": ["c0", "c1"], "machines": ["a box, 2 cores"],
        "days": ["2026-01-01"], "device": "cpu", "data_sha256": "ab", "declared": {"a": "mlp-4: standard"},
    }  # fmt: skip
    judged = pd.DataFrame(
        [
            judged_row(eps=0.1, worst_case_accuracy=0.25, worst_case_low=0.1 + 0.2, trust="B"),
            judged_row(eps=0.3, note="not ranked: crashed", certified=math.nan, certificate="no bounds of Sin"),
        ],
        columns=list(JUDGEMENT_COLUMNS),
    )
    gallery = {"x": np.full((3, 1, 4, 4), 0.25), "x_adv": np.full((3, 1, 4, 4), 0.75)}
    return StudyRecord(
        STUDY, by_place(Findings(STUDY, source, "cpu").rows()), judged, facts, galleries={SHOWN: gallery}
    )


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_record_read_back_is_the_one_written_and_makes_the_same_pages(tmp_path: Path) -> None:
    record = made()
    reports.write_study(record, tmp_path / "one")
    again = read_record(tmp_path / "one", STUDY)
    assert dict(again.findings) == dict(record.findings)
    pd.testing.assert_frame_equal(again.judgement, record.judgement, check_dtype=False)
    assert again.facts == record.facts
    reports.write_study(again, tmp_path / "two")
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_part_that_was_run_elsewhere_joins_the_record() -> None:
    whole, part = made(), made()
    facts = {"data_sha256": "d", "models": 3, "pairs": 2, "training_seconds": 5, "attack_seconds": 7, "days": ["1"]}
    facts |= {"machines": ["m"], "commits": ["c"], "declared": {"a": "one"}, "costs": {"table-1": {"seeds": 2}}}
    whole = judging(judged_row(model="a", n=1), **facts)
    rows = judging(judged_row(model="a", n=9), judged_row(model="b", n=9)).judgement
    few, more = {"table-1": {"seeds": 1}, "small": {"seeds": 1}}, {"commits": ["b"], "declared": {"b": "two"}}
    part = replace(part, facts={**whole.facts, **more, "costs": few}, judgement=rows)

    effect, table, again = (
        ("effect", "rate", "slow", ""),
        ("value", "table-1", "a", "error"),
        ("value", "table-1", "a", "again"),
    )
    findings = dict(part.findings)
    findings[table] = replace(findings[table], seeds=1, measured=99.0)  # fewer seeds than the record's two
    findings[again] = replace(findings[again], seeds=0)
    findings[effect] = replace(findings[effect], measured=3.0)
    lacking = {place: found for place, found in whole.findings.items() if place != effect}
    joined = replace(whole, findings=lacking).joined(replace(part, findings=findings), STUDY)
    assert joined.findings[effect].measured == 3.0
    assert {place: joined.findings[place] for place in lacking} == lacking
    assert dict(zip(joined.judgement["model"], joined.judgement["n"], strict=True)) == {"a": 9, "b": 9}
    assert joined.facts["models"] == 6
    assert joined.facts["training_seconds"] == 10
    assert joined.facts["commits"] == ["b", "c"]
    assert joined.facts["declared"] == {"a": "one", "b": "two"}
    assert joined.facts["costs"] == {"table-1": {"seeds": 2}, "small": {"seeds": 1}}

    with pytest.raises(UserError, match="not parts of one run: samples is 4 here and 9 there"):
        whole.joined(replace(part, facts={**part.facts, "samples": 9}), STUDY)
    old = {name: value for name, value in whole.facts.items() if name != "data_sha256"}
    with pytest.raises(UserError, match="data_sha256 is not recorded here and"):
        replace(whole, facts=old).joined(part, STUDY)


def test_a_model_whose_batteries_have_other_keys_now_is_named() -> None:
    rows = [judged_row(), judged_row(eps=0.2), judged_row(suite="l2", norm="l2", keys="m"), judged_row(model="b")]
    now = {("a", "linf", "linf"): "k", ("a", "l2", "l2"): "m", ("b", "linf", "linf"): "k"}
    assert battery_other_now(judging(*rows), now) == []
    assert battery_other_now(judging(*rows), now | {("a", "l2", "l2"): "n"}) == ["a"]
    del now["b", "linf", "linf"]  # no longer asked for
    assert battery_other_now(judging(*rows), now) == ["b"]


def test_slices_that_are_joined_are_of_all_that_either_was_asked_for() -> None:
    def slice_of(*only: str) -> StudyRecord:
        record = made()
        facts = {"data_sha256": "d", "models": 1, "pairs": 1, "training_seconds": 1, "attack_seconds": 1, "days": []}
        facts |= {"machines": [], "commits": [], "declared": {}, "costs": {}, "only": list(only)}
        facts |= {"command": " --only ".join(["gauntlet reproduce tiny", *only])}
        return replace(record, study=STUDY.chosen(only), facts={**record.facts, **facts})

    first, second, whole = STUDY.items[0].name, "choices", slice_of()
    one, other = slice_of(first), slice_of(second)
    assert not one.study.choices
    joined = one.joined(other, STUDY)
    assert joined.facts["only"] == [first, second]
    assert joined.facts["command"] == f"gauntlet reproduce tiny --only {first} --only choices"
    assert joined.study == STUDY.chosen([first, second])
    rest = slice_of(*STUDY.names, "battery")
    for both in (whole.joined(one, STUDY), one.joined(whole, STUDY), rest.joined(other, STUDY)):
        assert both.facts["only"] == []
        assert both.facts["command"] == "gauntlet reproduce tiny"
        assert both.study == STUDY
    more = replace(other, facts={**other.facts, "seeds": [0, 1, 2, 3], "command": "four seeds", "skipped": ["c"]})
    for both in (one.joined(more, STUDY), more.joined(one, STUDY)):
        assert both.facts["seeds"] == [0, 1, 2, 3]
        assert both.facts["command"].startswith("four seeds --only ")
        assert both.facts["skipped"] == ["c"]


def test_what_makes_up_all_of_a_study() -> None:
    topics = [choice.topic for choice in STUDY.choices if choice.effects]
    for only in ([*STUDY.names, "choices", "battery"], [*STUDY.names, *topics, "battery"]):
        assert STUDY.is_all(only)
        assert not STUDY.is_all(only[1:])
    assert not STUDY.is_all([*STUDY.names, "battery"])
    defended = replace(STUDY, defended=(("a", "called a"),))
    assert not defended.is_all([*STUDY.names, "choices"])
    assert replace(STUDY, defended=()).is_all([*STUDY.names, "choices"])


def test_a_digest_that_looks_like_a_number_is_kept(tmp_path: Path) -> None:
    record = judging(judged_row(keys="012345e78901", commits="0012"))
    reports.write_study(record, tmp_path)
    read = read_record(tmp_path, STUDY).judgement
    assert list(read["keys"]) == ["012345e78901"]
    assert list(read["commits"]) == ["0012"]


def test_the_counts_keep_apart_what_is_no_evidence() -> None:
    values, apart, clauses = made().counts()
    assert {name: count for name, count in values.items() if count} == {"reproduced": 1}
    assert {basis: dict(counts) for basis, counts in apart.items()} == {
        "repeat": {"reproduced": 1},
        "construction": {"reproduced": 1},
    }
    assert {name: count for name, count in clauses.items() if count} == {"held": 1}


def test_what_the_study_asks_for_now_and_the_record_lacks_was_not_run(tmp_path: Path) -> None:
    reports.write_study(made(), tmp_path)
    claim = replace(STUDY.claims[0], name="new")
    later = replace(STUDY, items=(replace(STUDY.items[0], name="table-9"),), claims=(*STUDY.claims, claim))
    record = read_record(tmp_path, later)
    found = record.value(later.items[0], later.items[0].values[0])
    assert (found.verdict, found.printed) == ("not run", 11.0)
    assert math.isnan(found.measured)
    assert record.verdict(claim) == "not run"
    assert record.verdict(STUDY.claims[0]) == "held"


def test_the_pages_show_counts_intervals_margins_and_provenance(tmp_path: Path) -> None:
    reports.write_study(made(), tmp_path)
    text = (tmp_path / "study-made-up.md").read_text()
    for words in (
        "**Printed values**: 1 reproduced",
        "Counted apart, repeats of another cell: 1 reproduced",
        "**Clauses of claims**: 1 held",
        "(7.00, quoted from Others 2013)",
        "a box, 2 cores",
        "2026-01-01",
        "**Fitted to print.**",
        "figures/figure-2.svg",
    ):
        assert words in text, words
    page = (tmp_path / "study-made-up.html").read_text()
    for words in ("quoted from Others 2013", "a box, 2 cores", "Fitted to print", "clauses held", 'class="band"'):
        assert words in page, words
    grid = (tmp_path / "figures" / "figure-2.svg").read_text()
    assert "original &amp; clean" in grid
    assert "data:image/png;base64," in grid
    assert grid.strip() in page


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "judgement.csv").unlink(), "is no record of a study"),
        (lambda folder: (folder / "environment.json").write_text("{"), "is no record of a study"),
        (lambda folder: (folder / "environment.json").write_text(json.dumps({"study": "other"})), "a record of other"),
        (lambda folder: (folder / "claims.csv").write_text("study,item\n"), "lacks the column kind"),
    ],
)
def test_a_damaged_record_is_refused_in_a_line(tmp_path: Path, damage: object, words: str) -> None:
    reports.write_study(made(), tmp_path)
    damage(tmp_path)  # type: ignore[operator]
    with pytest.raises(UserError, match=words) as raised:
        read_record(tmp_path, STUDY)
    assert "\n" not in str(raised.value)


def test_a_judgement_written_before_a_column_was_kept_has_it_empty(tmp_path: Path) -> None:
    reports.write_study(made(), tmp_path)
    written = pd.read_csv(tmp_path / "judgement.csv", keep_default_na=False)
    written.drop(columns=["std", "certified", "certificate"]).to_csv(tmp_path / "judgement.csv", index=False)
    read = read_record(tmp_path, STUDY).judgement
    assert tuple(read.columns) == JUDGEMENT_COLUMNS
    assert read["std"].isna().all()
    assert read["certified"].isna().all()
    assert list(read["certificate"]) == ["", ""]
    assert list(read["planted_found"]) == [0.984, 0.984]


def test_a_page_shows_what_is_proved_and_what_was_planted_beside_what_is_left(tmp_path: Path) -> None:
    *_, page = reports.write_study(made(), tmp_path)
    markdown = page.with_suffix(".md").read_text()
    plain = markdown.replace("\u00a0", " ")
    assert "25.0 \u00b1 1.2<br>\\[30.0, 50.0\\]<br>band 12.5 ... 37.5 (first 32)" in plain
    assert "\u2264 0.0 \u00b1 1.2" in plain
    assert "L\u221e 98.4 (90.6)" in markdown
    assert "- a, L\u221e: no bounds of Sin" in markdown
    assert markdown.index("What today's attacks leave") < markdown.index("## Claims")
    text = page.read_text()
    for shown in ("band 12.5 ... 37.5 (first 32)", "98.4 (90.6)", "25.0 \u00b1 1.2"):
        assert shown in text, shown


def test_of_the_records_of_a_model_the_board_shows_the_one_on_most_images_and_seeds() -> None:
    few, many = judged_row(worst_case_accuracy=0.75), judged_row(n=200, worst_case_accuracy=0.5)
    other = judged_row(model="b", worst_case_accuracy=0.625)
    unranked = judged_row(model="c", worst_case_accuracy=0.875, note="crashed")
    elsewhere = judging(judged_row(model="d"), dataset="cifar10-jpeg")
    records = {"one": judging(few, other), "two": judging(many, unranked), "three": elsewhere}
    markdown, page = reports.studies_board(records)
    grey, colour = markdown.split("### cifar10-jpeg")
    shown = [line.split(" | ")[1:5:3] + line.split(" | ")[-1:] for line in grey.splitlines() if "`made-up`" in line]
    assert [(one[0], one[-1]) for one in shown] == [
        ("b", "100 \u00d7 2 |"),
        ("a", "200 \u00d7 2 |"),
        ("c", "100 \u00d7 2 |"),
    ]
    assert "\u2264\u00a087.5" in grey
    assert "75.0" not in grey
    assert "| d |" in colour
    assert page.index('id="mnist"') < page.index('id="cifar10-jpeg"')
    assert 'href="two/study-made-up.html"' in page
    assert "75.0" not in page.partition("<main")[2]


@pytest.mark.parametrize("latest", ["one", "two"])
def test_of_records_of_equal_size_the_board_shows_the_latest(latest: str) -> None:
    records = {name: judging(judged_row(worst_case_accuracy=left)) for name, left in (("one", 0.25), ("two", 0.75))}
    days = {name: ["2026-01-01", "2026-02-02" if name == latest else "2026-01-02"] for name in records}
    records = {name: replace(one, facts={**one.facts, "days": days[name]}) for name, one in records.items()}
    markdown, _ = reports.studies_board(records)
    assert ("25.0" in markdown, "75.0" in markdown) == (latest == "one", latest == "two")


def test_records_without_a_judgement_make_an_empty_board() -> None:
    markdown, page = reports.studies_board({"one": judging()})
    assert markdown == ""
    assert "No record holds a judgement yet." in page
