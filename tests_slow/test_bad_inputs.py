"""A thousand bad inputs: command lines, declarations, checkpoints, results. No traceback, no hang, no damage.

Whatever a command is given, it ends well, or with one line and a status other than 0; and the home is as it was.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from defenses import defenses
from defenses.standard import Standard
from harness.cli.main import cli
from harness.cli.parsing import parse_chain
from harness.datasets.registry import DataSource
from harness.errors import UserError
from harness.planning.plan import specs
from harness.planning.specs import ModelSpec
from harness.records.checkpoints import has_model, load_model, save_model, whole_model
from harness.records.home import Home
from suites import studies, suites
from tests.helpers.boards import card as made_card
from tests.helpers.commands import call
from tests.records.test_damage import bytes_, check, state, values
from tests.records.test_damage import home as home

LONGEST = 60.0
"""Seconds after which a command counts as hanging."""

ended: Counter[str] = Counter()
"""Inputs by what became of them: a generator whose inputs are all good, or all bad in one way, tests little."""


def times(examples: int) -> settings:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=checks)


@pytest.fixture(scope="module", autouse=True)
def inputs() -> Iterator[None]:
    """A thousand in all, when the whole file is run."""
    yield
    print(f"\n{sum(ended.values())} inputs: {dict(ended)}")


# -- command lines -------------------------------------------------------------------------------------------------

letters = st.characters(codec="utf-8", exclude_characters="\x00")  # no shell hands over a null
words = st.one_of(
    st.text(letters, max_size=12),
    st.sampled_from(["", "-", "--", "0", "-1", "1e999", "nan", "inf", "none", "../..", "/dev/null", "*", "[", "%s"]),
    st.sampled_from(["quick", "digits", "mnist", "softmax", "mlp-16", "mlp-0", "standard", "pgd", "lee2017", "smoke"]),
    st.sampled_from(["0,1", "1-", "3-1", "0-99999999999", "1/2", "2/1", "0/0", "cpu", "cuda:99", "meta", "a:6379"]),
)


def mangled(text: str) -> st.SearchStrategy[str]:
    """A word with a letter lost, doubled or changed, or as it is."""
    at = st.integers(0, max(len(text) - 1, 0))
    return st.one_of(
        st.just(text),
        at.map(lambda i: text[:i] + text[i + 1 :]),
        at.map(lambda i: text[:i] + text[i : i + 1] * 2 + text[i + 1 :]),
        st.tuples(at, letters).map(lambda change: text[: change[0]] + change[1] + text[change[0] + 1 :]),
    )


fields = st.sampled_from(["eps", "epochs", "norm", "p", "lr", "c", "subset", "beside"])
declared = st.one_of(
    st.sampled_from(sorted(defenses())).flatmap(mangled),
    st.tuples(st.sampled_from(sorted(defenses())), st.lists(st.tuples(fields, words), max_size=2)).map(
        lambda parts: parts[0] + ":" + ",".join(f"{name}={value}" for name, value in parts[1])
    ),
    st.lists(st.sampled_from(sorted(defenses())), min_size=2, max_size=3).map("+".join),
    words,
)
victims = st.sampled_from(["x.py:f", "x.pt2", "models:/a/1", "runs:/x/y", "x.py", ":", "x.py:f?a"])

OPTIONS = {
    "--dataset": st.one_of(mangled("digits"), words),
    "--model": st.one_of(mangled("softmax"), mangled("mlp-16"), words),
    "--defense": declared,
    "--seeds": words,
    "--samples": words,
    "--attack": st.one_of(mangled("apgd"), mangled("fgsm*"), words),
    "--part": words,
    "--victim": st.one_of(victims, words),
    "--mean": words,
    "--std": words,
    "--remedy": st.one_of(st.sampled_from(["draws=", "temperature=0", "votes=-1"]), words),
    "--stand-in": words,
    "--jobs": words,
    "--device": words,
    "--engine": words,
    "--gpus-per-task": words,
    "--profile": st.one_of(mangled("smoke"), words),
    "--only": words,
    "--setting": st.one_of(mangled("dropout"), words),
    "--from": words,
    "--nonsense": words,
}

WITH_SUITE = ("--dataset", "--model", "--defense", "--seeds", "--samples", "--attack", "--part", "--victim")
WITH_SUITE += ("--mean", "--std", "--remedy", "--stand-in", "--jobs", "--device", "--engine", "--gpus-per-task")
suite_names, study_names = (st.sampled_from(sorted(names)).flatmap(mangled) for names in (suites(), studies()))
COMMANDS: dict[str, tuple[st.SearchStrategy[str] | None, tuple[str, ...], tuple[str, ...]]] = {
    "plan": (suite_names, (*WITH_SUITE[:12], "--nonsense"), ()),
    "run": (suite_names, WITH_SUITE, ("--dry-run",)),
    "reproduce": (study_names, ("--profile", "--only", "--seeds"), ("--dry-run",)),
    "search": (st.just("lee2017").flatmap(mangled), ("--profile", "--setting"), ("--dry-run",)),
    "explain": (words, (), ()),
    "diff": (words, (), ()),
    "report": (None, ("--from", "--nonsense"), ()),
    "list": (words, ("--nonsense",), ()),
}
"""Argument, options, and what is added so that a line that is good by chance computes nothing."""


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    command = draw(st.sampled_from(sorted(COMMANDS)))
    argument, options, always = COMMANDS[command]
    given_ = [draw(mangled(command)) if draw(st.integers(0, 19)) == 0 else command]
    given_ += [draw(argument)] if argument is not None else []
    for name in draw(st.lists(st.sampled_from(options), max_size=3)) if options else []:
        given_ += [draw(mangled(name)) if draw(st.integers(0, 9)) == 0 else name, draw(OPTIONS[name])]
    if draw(st.integers(0, 9)) == 0:
        given_.append(draw(words))
    return [*given_, *always]


@times(500)
@given(line=lines())
def test_command_lines(home: Home, line: list[str]) -> None:
    if "--help" in line or "-h" in line or "--version" in line:
        return
    before = state(home)
    started = time.monotonic()
    takes_home = line[0] in ("run", "plan", "reproduce", "search", "explain", "report")
    result = call(*line, *(["--home", str(home.path)] if takes_home else []))
    assert time.monotonic() - started < LONGEST
    well_ended(result)
    after = state(home)
    assert {path: after[path] for path in before} == before
    new = {path.relative_to(home.path).parts[0] for path in set(after) - set(before)}
    assert new <= {"report", "mlflow.log", "mlflow.db", "mlflow.db-wal", "mlflow.db-shm", "origin", ".lock"}, new


def one_line(error: UserError) -> None:
    assert str(error)
    assert "\n" not in str(error)


def well_ended(result: Any) -> None:
    """Success, or one line of ours, or a usage of click's."""
    assert "Traceback" not in result.output, result.output[-2000:]
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    if result.exit_code == 0:
        ended["fine"] += 1
        return
    said = result.stderr.splitlines()
    ours = [text for text in said if text.startswith("gauntlet: ")]
    usage = [text for text in said if text.startswith("Error: ")]
    assert len(ours) + len(usage) == 1 or result.exit_code == 1, result.output[-2000:]
    ended["refused by us" if ours else "refused by click" if usage else "told of damage"] += 1


# -- lines made of what click knows of every command ---------------------------------------------------------------

odd_words = st.one_of(
    words,
    st.sampled_from(
        sorted({*defenses(), *suites(), *studies(), "digits", "noise", "art:SquareAttack", "foolbox:LinfPGD"})
    ),
    st.sampled_from(
        ["8/255", "linf=8/255,1/0", "l2=", "1/3,", "0", "1e-400", "-0", "½", "٣", "next", "random", "7", "inf h"]
    ),
    st.sampled_from(
        ["images:.", "parquet:x", "timm:x", "hf:", "onnx:/dev/null", "torchvision::", "a.py:b:c", "\udcff", "a" * 300]
    ),
    st.sampled_from(
        ["noise:distribution=cauchy", "art:SquareAttack?eps=nan", "a.py:A:b=[", "none", "votes=0", "grid=1"]
    ),
)
COMPUTES = ("train", "run", "reproduce", "search", "ui", "doctor", "verify", "lower", "publish", "board", "export")
"""Commands that compute, write elsewhere or serve where a line is good by chance."""
STAYS = {"run": "--dry-run", "reproduce": "--dry-run", "search": "--dry-run"}


@st.composite
def any_line(draw: st.DrawFn) -> list[str]:
    """A command with options of its own, each with a value of its kind or of another; in any order, some twice."""
    name = draw(st.sampled_from(sorted(cli.commands)))
    pieces: list[list[str]] = []
    for option in cli.commands[name].params:
        given_ = draw(st.sampled_from([0, 0, 0, 1, 2] if isinstance(option, click.Option) else [1, 1, 1, 0, 2]))
        for _ in range(given_):
            kind = option.type
            if isinstance(kind, click.Choice):
                fitting = st.sampled_from([str(choice) for choice in kind.choices])
            elif isinstance(kind, click.types.IntRange):
                fitting = st.integers(-1, 70000).map(str)
            else:
                fitting = odd_words
            value = draw(st.one_of(fitting, odd_words))
            if not isinstance(option, click.Option):
                pieces.append([value])
            elif option.is_flag:
                pieces.append([option.opts[0]])
            else:
                joined = draw(st.booleans())
                pieces.append([f"{option.opts[0]}={value}"] if joined else [option.opts[0], value])
    line = [word for piece in draw(st.permutations(pieces)) for word in piece]
    return [name, *line]


@times(1000)
@given(line=any_line())
def test_lines_of_every_command(home: Home, tmp_path: Path, line: list[str]) -> None:
    if {"--help", "-h", "--attacks", "--download"} & set(line):
        return
    line = [word for word in line if not word.startswith(("--home", "--out", "--csv"))]
    name, before = line[0], state(home)
    if name in COMPUTES and name not in STAYS:
        try:  # what click makes of it; the command itself is for others' tests
            cli.commands[name].make_context(name, line[1:])
            ended["fine"] += 1
        except click.UsageError:
            ended["refused by click"] += 1
    else:
        options = {option.opts[0] for option in cli.commands[name].params}
        where = ["--home", str(home.path)] if "--home" in options else []
        where += ["--out", str(tmp_path / "out")] if "--out" in options else []
        well_ended(call(*line, *where, *([STAYS[name]] if name in STAYS else [])))
    after = state(home)
    assert {path: after.get(path) for path in before} == before


# -- declarations --------------------------------------------------------------------------------------------------

FIELDS = sorted({field for kind in defenses().values() for field in vars(kind()) if field.islower()})


@times(250)
@given(
    names=st.lists(st.sampled_from(sorted(defenses())), min_size=1, max_size=2),
    settings_=st.lists(st.tuples(st.sampled_from(FIELDS), words), max_size=3),
)
def test_declarations(names: list[str], settings_: list[tuple[str, str]]) -> None:
    text = "+".join(names) + ":" + ",".join(f"{name}={value}" for name, value in settings_)
    info = DataSource("digits").info()
    try:
        chain = parse_chain(text, defenses())
        made = specs([info], ["softmax"], [chain], [0])
        assert all(spec.key for spec in made)
        ended["fine"] += 1
    except UserError as error:
        one_line(error)
        ended["refused by us"] += 1


# -- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, ModelSpec]:
    place = Home(tmp_path_factory.mktemp("checkpoints") / "home").create()
    data = DataSource("digits").load()
    (spec,) = specs([data.info], ["mlp-16"], [Standard(epochs=1)], [0])
    model = spec.defense.fit("mlp-16", data).model
    save_model(place, spec, model, made_card(architecture="mlp-16", defense="standard"))
    return place, spec


@times(250)
@given(name=st.sampled_from(["weights.safetensors", "card.json"]), damage=bytes_, value=values, said=st.data())
def test_checkpoints(trained: tuple[Home, ModelSpec], name: str, damage: Any, value: Any, said: st.DataObject) -> None:
    place, spec = trained
    info = DataSource("digits").info()
    file = place.model(spec.key) / name
    content = file.read_bytes()
    if name == "card.json" and said.draw(st.booleans()):
        record = json.loads(content)
        key = said.draw(st.sampled_from(sorted(record)))
        changed = json.dumps(record | {key: value}).encode()
    else:
        changed = damage(content)
    file.write_bytes(changed)
    try:
        for read in (whole_model, has_model, load_model):
            try:
                if read is whole_model:
                    whole_model(place.model(spec.key))
                elif read is has_model:
                    has_model(place, spec)
                else:
                    load_model(place, spec, info)
            except UserError as error:
                one_line(error)
                outcome = "refused by us"
            else:
                outcome = "fine"
        # other weights than those that were trained are never taken for them
        if name == "weights.safetensors" and changed != content:
            assert outcome == "refused by us"
        ended[outcome] += 1
        assert file.read_bytes() == changed
    finally:
        file.write_bytes(content)


# -- results -------------------------------------------------------------------------------------------------------


@times(250)
@given(name=st.sampled_from(["result.json", "samples.parquet", "runs.json", "plan"]), damage=bytes_)
def test_results(home: Home, tmp_path: Path, name: str, damage: Any) -> None:
    file = home.plans / "p.json" if name == "plan" else home.cell("c000") / name
    if name == "runs.json" and not file.exists():
        file.write_text('{"home": "a"}')
    _, told = check(home, tmp_path, file, damage)
    ended["told of damage" if told else "fine"] += 1
