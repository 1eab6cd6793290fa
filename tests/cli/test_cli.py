"""What a user gets wrong: one clear line, a non-zero exit, and nothing lost."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pandas as pd
import pytest
from click.testing import CliRunner

from harness import interruption
from harness.cli.main import cli
from tests.helpers.commands import call, complaint


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["plan", "quik"], "unknown suite 'quik'; did you mean quick? choose from"),
        (["plan", "quick", "--dataset", "mnits"], "unknown data set 'mnits'; did you mean mnist"),
        (["plan", "quick", "--profile", "cpu"], "quick is no study: only studies have profiles"),
        (["plan", "lee2017", "--profile", "ful"], "unknown profile of lee2017 'ful'; did you mean full?"),
        (["plan", "lee2017", "--model", "lenet"], "a study says itself what is run: leave out --model"),
        (["search", "gu2014"], "study gu2014 has no hyperparameter that is chosen on validation data"),
        (["search", "lee2017", "--profile", "smoke", "--setting", "eps"], "unknown setting of lee2017 'eps'"),
        (["plan", "quick", "--model", "lennet"], "unknown model 'lennet'; did you mean lenet"),
        (["plan", "quick", "--model", "mlp-0"], "unknown model 'mlp-0'"),
        (["plan", "quick", "--defense", "fast-gradent"], "unknown defense 'fast-gradent'; did you mean fast-gradient"),
        (["plan", "quick", "--defense", "pgd:step=3"], "unknown hyperparameter of pgd 'step'; did you mean steps"),
        (["plan", "quick", "--defense", "pgd:eps=-0.1"], "pgd: eps must be at least 0, got -0.1"),
        (["plan", "quick", "--defense", "pgd:eps=large"], "pgd: eps must be a number, got 'large'"),
        (["plan", "quick", "--defense", "pgd:norm=l3"], "unknown norm for pgd 'l3'"),
        (["plan", "quick", "--defense", "gaussian-blur"], "gaussian-blur is built upon a trained model"),
        (["plan", "quick", "--defense", "standard+pgd"], "pgd trains from nothing, it cannot be built upon standard"),
        (["plan", "quick", "--attack", "agpd"], "unknown attack in suite quick 'agpd'; did you mean apgd"),
        (["plan", "quick", "--seeds", "0,x"], "seeds are whole numbers"),
        (["plan", "quick", "--dataset", "parquet:nowhere.parquet"], "nowhere.parquet"),
        (["plan", "quick", "--dataset", "images:nowhere"], "nowhere"),
        (["run", "quick", "--device", "cuda:99"], "no device 'cuda:99' here"),
        (["report", "--home", "nowhere"], "no runs in nowhere; make some with: gauntlet run quick --home nowhere"),
        (["ui", "--home", "nowhere"], "no runs in nowhere"),
    ],
)
def test_says_what_is_wrong_and_what_the_choices_are(arguments: list[str], expected: str) -> None:
    assert expected in complaint(call(*arguments))


@pytest.mark.parametrize("arguments", [["plan", "quick", "--samples", "0"], ["list", "attack"], ["run"]])
def test_usage_errors(arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


def test_home_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    line = complaint(call("run", "quick", "--home", file / "home"))
    assert f"cannot write to the home directory {file / 'home'}" in line
    assert "--home DIR" in line
    assert file.read_text() == "not a folder"


def test_data_that_is_not_there(tmp_path: Path) -> None:
    result = call("train", "--dataset", "mnist", "--data-root", tmp_path, "--home", tmp_path / "home", "--jobs", 1)
    assert result.exit_code == 2
    assert "mnist is not in" in result.stderr
    assert "--download" in result.stderr
    assert "Traceback" not in result.output


@pytest.fixture(scope="module")
def small_home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished run, and the command that made it."""
    home = tmp_path_factory.mktemp("cli") / "home"
    command = ["run", "quick", "--model", "mlp-8", "--defense", "standard:epochs=1", "--attack", "noise*"]
    command += ["--samples", "20", "--jobs", "1", "--home", str(home)]
    result = call(*command)
    assert result.exit_code == 0, result.output
    return home, command


def test_a_run_writes_the_report(small_home: tuple[Path, list[str]]) -> None:
    home, _ = small_home
    assert {file.name for file in (home / "report").iterdir()} >= {
        "leaderboard.csv",
        "pairs.csv",
        "leaderboard.md",
        "index.html",
    }


def test_a_home_named_as_an_argument_is_told_how_to_be_named(small_home: tuple[Path, list[str]]) -> None:
    home, _ = small_home
    for word, said in [(str(home), f"({home}): name a home with --home {home}\n"), ("nowhere", "(nowhere)\n")]:
        result = call("report", word)
        assert result.exit_code == 2
        assert result.stderr.endswith(f"Got unexpected extra argument {said}")


def test_more_images_than_there_are_is_said(tmp_path: Path) -> None:
    for samples, said in [("359", False), ("360", True)]:
        output = call("plan", "quick", "--samples", samples, "--home", tmp_path).output
        assert ("digits has 359 test images, fewer than 360: all of them are taken" in output) == said


def test_both_sources_give_the_same_tables(small_home: tuple[Path, list[str]], tmp_path: Path) -> None:
    home, _ = small_home
    for source in ("home", "mlflow"):
        result = call("report", "--home", home, "--from", source, "--out", tmp_path / source)
        assert result.exit_code == 0, result.output
    for name in ("leaderboard.csv", "pairs.csv", "leaderboard.md"):
        assert (tmp_path / "home" / name).read_text() == (tmp_path / "mlflow" / name).read_text()
    told = (tmp_path / "mlflow" / "leaderboard.md").read_text()
    assert "of the suite's 30 pairs were not asked for" in told
    assert "Failures" not in told


def test_a_damaged_result_is_named_and_left_out(small_home: tuple[Path, list[str]], tmp_path: Path) -> None:
    home, _ = small_home
    file = next(home.glob("cells/*/samples.parquet"))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    try:
        line = complaint(call("report", "--home", home, "--from", "home", "--out", tmp_path))
        assert f"{file} is damaged" in line
        assert "left out" in line
        shown = len((tmp_path / "pairs.csv").read_text().splitlines())
        assert 1 < shown < len((home / "report" / "pairs.csv").read_text().splitlines())
    finally:
        file.write_bytes(content)


def test_damage_within_a_result_is_set_aside_and_mended_by_the_next_run(small_home: tuple[Path, list[str]]) -> None:
    """The footer of the file is whole: its digest is not."""
    home, command = small_home
    file = next(home.glob("cells/*/samples.parquet"))
    before = pd.read_parquet(file)
    content = bytearray(file.read_bytes())
    content[60] ^= 0xFF
    file.write_bytes(content)
    result = call(*command)
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.output.splitlines() if f"{file} is damaged" in line]
    assert f"kept as {file.parent.name}.damaged-1" in line
    pd.testing.assert_frame_equal(pd.read_parquet(file), before)
    shutil.rmtree(file.parent.with_name(f"{file.parent.name}.damaged-1"))


def test_a_damaged_checkpoint_is_set_aside_and_made_again(small_home: tuple[Path, list[str]]) -> None:
    home, command = small_home
    weights = next(home.glob("models/*/weights.safetensors"))
    content, folder = weights.read_bytes(), weights.parent
    results = {file: pd.read_parquet(file) for file in home.glob("cells/*/samples.parquet")}
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    result = call(*command)
    assert result.exit_code == 0, result.output
    assert f"{weights} is damaged" in result.output
    assert f"kept as {folder.name}.damaged-1" in result.output
    assert weights.read_bytes() == content
    for file, samples in results.items():
        pd.testing.assert_frame_equal(pd.read_parquet(file), samples)
    assert "is damaged" not in call(*command).output
    for aside in home.glob("*/*.damaged-*"):
        shutil.rmtree(aside)


def test_doctor(small_home: tuple[Path, list[str]]) -> None:
    home, _ = small_home
    result = call("doctor", "--home", home)
    assert result.exit_code == 0, result.output
    assert "reachable" in result.output
    result = call("doctor", "--home", home, "--tracking-uri", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "out of reach" in result.output


def test_lists_and_plans_import_no_toolkit() -> None:
    lists = [["list", what] for what in ("datasets", "models", "defenses", "attacks", "suites")]
    code = f"""
import sys
from click.testing import CliRunner
from harness.cli.main import cli
for arguments in {[*lists, ["plan", "quick"]]!r}:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, (arguments, result.output)
found = {{"art", "foolbox", "mlflow", "torchvision", "sklearn"}} & set(sys.modules)
assert not found, found
"""
    subprocess.run([sys.executable, "-c", code], check=True)


MORE_SIGNALS = [("SIGINT", 2), ("SIGTERM", 1), ("SIGHUP", 1)]
FOREVER = "standard:epochs=100000000"
"""A training that outlasts any test run: a command that ends has not waited for it."""


def interrupted(line: list[str], ready: Callable[[], bool], number: int = signal.SIGINT, times: int = 1) -> None:
    """Start a command that would not end, send a signal once it is ready, and see that it ends and says so."""
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # also under nohup
    command = [sys.executable, "-c", f"{listen}; from gauntlet.__main__ import main; main()", *line]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        while not ready():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        for _ in range(times):
            os.killpg(process.pid, number)  # as a terminal does
        _, said = process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + number
    assert said.splitlines() == ["gauntlet: interrupted; the same command again goes on from here"]


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(tmp_path: Path) -> None:
    home = tmp_path / "home"
    line = ["run", "quick", "--samples", "20", "--defense", "standard", "--jobs", "2", "--home", str(home)]
    interrupted([*line, "--defense", FOREVER], lambda: len(list(home.glob("cells/*/result.json"))) >= 3)
    assert not list(home.rglob("*.part"))
    finished = {file: file.stat().st_mtime_ns for file in home.glob("cells/*/result.json")}
    result = call(*line)
    assert result.exit_code == 0, result.output
    assert len(list(home.glob("cells/*/result.json"))) >= len(finished)
    assert all(file.stat().st_mtime_ns == when for file, when in finished.items())


@pytest.mark.parametrize(
    ("name", "times"), [("SIGINT", 1), *(pytest.param(*case, marks=pytest.mark.long) for case in MORE_SIGNALS)]
)
def test_a_signal_does_not_wait_for_what_is_under_way(tmp_path: Path, name: str, times: int) -> None:
    line = ["train", "--model", "softmax", "--defense", FOREVER, "--jobs", "1", "--home", str(tmp_path)]
    interrupted(line, lambda: any(tmp_path.glob("progress/train-*.json")), getattr(signal, name), times)


@pytest.mark.long
def test_under_nohup_a_command_ends_on_sigterm_alone(tmp_path: Path) -> None:
    line = ["train", "--model", "softmax", "--defense", FOREVER, "--jobs", "1", "--home", str(tmp_path)]
    command = ["nohup", sys.executable, "-m", "gauntlet", *line]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not any(tmp_path.glob("progress/train-*.json")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.terminate()
    _, said = process.communicate()
    assert process.returncode == 143
    assert said.splitlines()[-1] == interruption.SAID


def test_a_budget_begins_nothing_after_it_and_says_what_is_left(tmp_path: Path) -> None:
    line = ["run", "quick", "--samples", "5", "--defense", "standard:epochs=1", "--attack", "noise*"]
    line += ["--home", str(tmp_path)]
    first = call(*line, "--budget", "0.001s")
    assert first.exit_code == 0, first.output
    assert "the time is up; the same command again goes on from here" in first.output
    assert "to do: 1 training " in first.output
    assert not list(tmp_path.glob("models/*/card.json"))
    second = call(*line, "--budget", "1h")
    assert second.exit_code == 0, second.output
    assert "the time is up" not in second.output
    assert list(tmp_path.glob("cells/*/result.json"))


def test_the_list_of_commands_says_what_each_is_for_and_cuts_none() -> None:
    result = CliRunner().invoke(cli, ["--help"], terminal_width=80)
    assert result.exit_code == 0
    said = result.output.split("Commands:\n")[1].splitlines()
    assert [line.split()[0] for line in said] == sorted(cli.commands)
    assert all(line.endswith(".") and not line.endswith("...") and len(line.split()) > 3 for line in said), said


def test_every_option_has_a_help() -> None:
    bare = [
        f"{name} {option.opts[0]}"
        for name, command in cli.commands.items()
        for option in command.params
        if isinstance(option, click.Option) and not option.help
    ]
    assert not bare


def test_a_study_is_planned_like_a_suite() -> None:
    planned, dry = (
        call("plan", "lee2017", "--profile", "smoke"),
        call("reproduce", "lee2017", "--profile", "smoke", "--dry-run"),
    )
    assert planned.exit_code == dry.exit_code == 0
    # without what a probe of this machine says
    counts = [re.sub(r"about [\d.]+ \w+;|rough estimate.*", "", result.output) for result in (planned, dry)]
    assert counts[0] == counts[1]
    assert "trainings" in counts[0]


CRASHES = """
from dataclasses import dataclass
from typing import ClassVar

import gauntlet


@dataclass(frozen=True, kw_only=True)
class Bad(gauntlet.Attack):
    name: ClassVar[str] = "bad"
    norms: ClassVar[tuple[str, ...]] = ("linf",)

    def run(self, victim, x, y, threat):
        raise ValueError("cannot [do] that")
"""


def test_an_attack_that_crashed_is_no_success_however_often_one_asks(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(CRASHES)
    line = ["run", "quick", "--model", "mlp-8", "--defense", "standard:epochs=1", "--samples", "5", "--jobs", "1"]
    line += ["--add-attack", f"{tmp_path}/bad.py:Bad", "--attack", "bad", "--norm", "linf", "--certify", "0"]
    for _ in range(2):
        result = call(*line, "--home", tmp_path / "home")
        assert result.exit_code == 1
        said = complaint(result)
        assert said.startswith(
            "gauntlet: crashed: digits mlp-8 standard(epochs=1) seed 0, bad: ValueError: cannot [do]"
        )
        assert (tmp_path / "home" / "report" / "index.html").exists()
