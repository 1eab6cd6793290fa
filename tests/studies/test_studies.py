"""Every declared study is sound, and the smallest profile of each runs from the command line to its page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from rich.markup import escape

from harness.attacks.transfer import Transfer
from harness.cli.main import cli
from harness.cli.tables import plan_table
from harness.datasets.registry import load_dataset
from harness.environment import git_commit
from harness.errors import UserError
from harness.records.home import Home
from harness.studies.experiment import Experiment, design
from harness.studies.findings import CLAIM_COLUMNS
from harness.studies.quantities import QUANTITIES
from harness.studies.record import battery_other_now, read_record
from harness.studies.reproduce import asked, battery_keys, judgement
from harness.studies.study import Study
from reports import write_study
from suites import studies, study, suites

STUDIES = sorted(studies())
SHORT = ("lyu2015-cifar10",)
"""Whose smoke profiles are run with every change."""


def smoke(name: str, **options: object) -> Experiment:
    info = load_dataset(study(name).profile("smoke").dataset).info
    return design(study(name), "smoke", info, suites(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_asks_only_for_what_it_declares(name: str) -> None:
    made = smoke(name)
    names = {model for model, _ in made.models}
    for measure in made.study.measures():
        assert measure.quantity in QUANTITIES
        assert measure.model in names
        assert measure.source in {*names, ""}
        assert (QUANTITIES[measure.quantity].needs == "card") == (measure.attack is None)
    assert {model for model, _ in made.study.defended} <= names
    for profile in made.study.profiles.values():
        assert set(profile.skipped) <= {model for model, _ in made.study.defended}
        assert set(profile.batteries) <= set(suites())
    assert list(made.study.profiles) == ["smoke", "cpu", "night", "full"]


@pytest.mark.parametrize("name", STUDIES)
def test_every_value_has_one_place(name: str) -> None:
    for item in studies()[name].items:
        places = [(value.row, value.column) for value in item.values]
        assert len(set(places)) == len(places), item.name
        assert item.values or item.pictures, item.name


def test_the_plan_crafts_once_what_several_models_are_shown() -> None:
    made = smoke("gu2014")
    crafted = {cell.crafted_key for cell in made.plan.cells if cell.crafted_key is not None}
    own = [cell for cell in made.plan.cells if cell.source is not None and cell.source.key == cell.victim.key]
    assert len(crafted) == 4  # one for each plain network
    assert len(own) == 4  # and each meets its own images from there
    assert all(isinstance(cell.attack, Transfer) for cell in own)
    assert made.plan.ranked == frozenset()
    assert made.plan.battery == ()


def test_a_part_of_a_study_needs_a_part_of_its_models() -> None:
    whole, part = smoke("gu2014"), smoke("gu2014", only=["table-6"])
    assert {spec.architecture for spec in part.plan.models} == {"mlp-200-200"}
    assert {cell.key for cell in part.plan.cells} < {cell.key for cell in whole.plan.cells}
    assert part.judgements == ()
    effects = smoke("gu2014", only=["choices"])
    assert effects.study.choices == whole.study.choices
    assert effects.judgements == effects.study.items == ()
    assert {cell.key for cell in effects.plan.cells} < {cell.key for cell in whole.plan.cells}
    assert smoke("gu2014", only=["battery"]).judgements
    with pytest.raises(UserError, match="did you mean table-6"):
        smoke("gu2014", only=["table-7"])
    with pytest.raises(UserError, match="at least one seed"):
        smoke("gu2014", seeds=())


def test_batteries_are_cascades_of_whole_suites() -> None:
    made = smoke("gu2014")
    assert [plan.suite.name for plan in made.judgements] == ["quick"]
    assert all(cell.cascaded for cell in made.judgements[0].cells)
    assert len(made.judgements[0].ranked) == len(made.study.defended) - len(made.profile.skipped)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    "name",
    [name if name in SHORT else pytest.param(name, marks=(pytest.mark.slow, pytest.mark.long)) for name in STUDIES],
)
def test_the_smoke_profile_from_the_command_line_to_the_page(name: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    command = ("reproduce", name, "--profile", "smoke", "--home", str(home))
    output = run(*command, "--jobs", "2")
    out = home / f"study-{name}"
    check_outputs(studies()[name], out)
    assert all(claim.name in output for claim in studies()[name].claims)
    assert str(home) not in (out / "environment.json").read_text()

    # again: nothing is left to do, and the same is said
    before = {path: path.stat().st_mtime_ns for path in (home / "cells").rglob("result.json")}
    page = (out / f"study-{name}.html").read_bytes()
    run(*command, "--jobs", "1")
    assert {path: path.stat().st_mtime_ns for path in (home / "cells").rglob("result.json")} == before
    assert (out / f"study-{name}.html").read_bytes() == page

    # a model that one attack of a battery has not met is not judged
    made, there = smoke(name), Home(home)
    whole = judgement(made, there)
    assert (whole["certified_n"].notna() | (whole["certificate"] != "")).any()
    assert set(whole["commits"]) == {git_commit()}
    assert battery_other_now(read_record(out, studies()[name]), battery_keys(made)) == []
    cell = made.judgements[0].cells[-1]
    shutil.rmtree(there.cell(cell.key))
    (lost,) = (called for called, _, spec in made.judged if spec.key == cell.victim.key)
    left = judgement(made, there)
    assert set(left["model"]) == set(whole["model"]) - {lost} < set(whole["model"])

    # a paper's own attacks rank nobody
    run("report", "--home", str(home))
    board = pd.read_csv(home / "report" / "leaderboard.csv")
    assert set(board["suite"]) == set(studies()[name].profile("smoke").batteries)


def check_outputs(made: Study, out: Path) -> None:
    """Every table, figure and claim is there, in every file."""
    frame = pd.read_csv(out / "claims.csv")
    assert list(frame.columns) == list(CLAIM_COLUMNS)
    with_values = [item.name for item in made.items if item.values]
    assert set(frame[frame["kind"] == "value"]["item"]) == set(with_values)
    assert set(frame[frame["kind"] == "clause"]["item"]) == {claim.name for claim in made.claims}
    effects = [(choice.topic, name) for choice in made.choices for name, _ in choice.effects]
    found = frame[frame["kind"] == "effect"]
    assert list(zip(found["item"], found["row"], strict=True)) == effects
    of_items = frame[frame["kind"] == "value"]
    # what is about distances needs an adversarial to be found; everything else is a number whatever comes of it
    sure = of_items[of_items["metric"].str.contains("error on|accuracy")]
    assert sure["measured"].notna().all()
    assert of_items["measured"].notna().mean() > 0.5
    for _, row in of_items[of_items["printed"].notna()].iterrows():  # digits are no data set of a paper's
        assert row["verdict"] == ("not run" if pd.isna(row["measured"]) else "not judged")
    for item in made.items:
        if item.kind != "table":
            assert (out / "figures" / f"{item.name}.svg").stat().st_size > 300, item.name
    facts = json.loads((out / "environment.json").read_text())
    assert facts["command"] == f"gauntlet reproduce {made.name} --profile smoke"
    assert set(facts["costs"]) == set(made.names)  # an item of pictures alone has pairs too
    assert all(cost["seeds"] == 1 and cost["fixed"] + cost["scaled"] > 0 for cost in facts["costs"].values())
    page, markdown = ((out / f"study-{made.name}.{kind}").read_text() for kind in ("html", "md"))
    for item in made.items:
        assert f'id="{item.name}"' in page
        assert item.title.split(",")[0] in markdown
    assert "What today's attacks leave" in markdown
    assert "&lt;Macro" not in page
    # the pages follow from the record alone
    again = out.with_name("again")
    write_study(read_record(out, made), again)
    for file in again.rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (out / file.relative_to(again)).read_bytes(), file.name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gu2015"], "did you mean gu2014"),
        (["gu2014", "--profile", "huge"], "choose from"),
        (["gu2014", "--profile", "smoke", "--only", "table-9"], "item of gu2014"),
        (["gu2014", "--profile", "smoke", "--seeds", "x"], "seeds"),
        (["gu2014", "--profile", "smoke", "--dataset", "mnits"], "unknown data set 'mnits'; did you mean mnist"),
    ],
)
def test_bad_input_gets_one_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    result = CliRunner().invoke(cli, ["reproduce", *arguments, "--home", str(home)])
    assert result.exit_code == 2
    assert words in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not home.exists()


def test_another_data_set_stands_in_for_the_profiles() -> None:
    info = load_dataset("digits").info
    made = design(study("lee2017"), "full", info, suites(), only=["table-2a"])
    assert "--dataset digits" in made.command
    assert {spec.dataset for spec in made.plan.models} == {"digits"}
    own = design(study("gu2014"), "smoke", info, suites(), only=["table-6"])
    assert "--dataset" not in own.command
    printed = [finding for finding in asked(made) if finding.printed is not None]
    assert {finding.verdict for finding in printed} == {"not run"}
    assert "printed for cifar10" in printed[0].note


@pytest.mark.parametrize("name", STUDIES)
def test_a_part_of_a_study_asks_for_pairs_of_the_whole(name: str) -> None:
    whole = {cell.key for cell in smoke(name).plan.cells}
    for item in study(name).names:
        assert {cell.key for cell in smoke(name, only=[item]).plan.cells} <= whole, item


def test_more_images_are_asked_for_by_name() -> None:
    few, many = smoke("gu2014", only=["table-5"]), smoke("gu2014", only=["table-5"], samples=100)
    assert "--samples 100" in many.command
    assert "--samples" not in few.command
    assert {cell.n for cell in many.plan.cells} == {100}
    assert {model.key for model in many.plan.models} == {model.key for model in few.plan.models}
    assert many.images == 100
    assert smoke("gu2014", samples=10**6).images == few.info.test_size


def test_a_dry_run_lists_and_does_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    output = run("reproduce", "gu2014", "--profile", "smoke", "--only", "table-6", "--dry-run", "--home", str(home))
    made = smoke("gu2014", only=["table-6"])
    assert f"{len(made.plan.models)} models (0 trained), {len(made.plan.cells)} pairs (0 done" in output
    assert not home.exists()


def test_a_study_is_listed_with_its_seeds_and_threats_folded(tmp_path: Path) -> None:
    made, home = smoke("gu2014", seeds=(0, 3)), Home(tmp_path)
    (battery,) = made.judgements
    for plan, folded in ((made.plan, "0 3"), (battery, "0")):
        table = plan_table(plan, home, folded=True)
        seeds, attacks, _, pairs, done = (list(column.cells) for column in table.columns[3:])
        assert set(seeds) == {folded}
        assert sum(int(str(count)) for count in pairs) == len(plan.cells) + len(plan.certifications)
        assert set(done) == {"0"}
        networks = {(cell.victim.architecture, cell.victim.label(plan.infos["digits"])) for cell in plan.cells}
        assert sum(bool(name) for name in table.columns[0].cells) == len(networks)
        assert {str(name) for name in attacks} >= {escape(cell.attack.label) for cell in plan.cells}
    threats = " ".join(map(str, plan_table(battery, home, folded=True).columns[5].cells))
    assert "linf 0.05, linf 0.1, linf 0.15" in threats
