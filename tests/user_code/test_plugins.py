"""Classes of users' files: what identifies them, how they are pickled, what is refused."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import gauntlet
from defenses import known
from harness import identity
from harness.attacks.base import Attack
from harness.errors import UserError
from harness.execution.process_pool import Pool, Task
from harness.planning.specs import ModelSpec
from harness.user_code import plugins

EXAMPLES = Path(__file__).parents[2] / "examples"
SOURCE = """
from dataclasses import dataclass
from helper import WEIGHT
import gauntlet

@dataclass(frozen=True, kw_only=True)
class GentleTraining(gauntlet.Trainer):
    weight: float = WEIGHT

@dataclass(frozen=True, kw_only=True)
class Step(gauntlet.Attack):
    name = "step"
    other: gauntlet.Attack = gauntlet.Art("FastGradientMethod")
    def run(self, victim, x, y, threat):
        return x

MINE = Step(other=Step())
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helper.py").write_text("WEIGHT = 0.5\n")
    (tmp_path / "mine.py").write_text(SOURCE)
    return "mine.py:GentleTraining"


def test_identity_is_the_name_the_source_and_the_fields(mine: str, tmp_path: Path) -> None:
    kind = gauntlet.defense(mine)
    declared = identity.canonical(kind(epochs=2))
    assert (declared["is"], declared["weight"], declared["epochs"]) == ("gentle-training", 0.5, 2)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("mine.py", "helper.py"):
        (elsewhere / name).write_bytes((tmp_path / name).read_bytes())
    assert identity.key(gauntlet.defense(f"{elsewhere}/mine.py:GentleTraining")()) == identity.key(kind())
    assert identity.key(kind(weight=1.0)) != identity.key(kind())
    (elsewhere / "helper.py").write_text("WEIGHT = 0.5  # it may mean something else now\n")
    assert identity.key(gauntlet.defense(f"{elsewhere}/mine.py:GentleTraining")()) != identity.key(kind())


def test_what_is_declared_is_copied_and_pickled(mine: str) -> None:
    made = ModelSpec(dataset="digits", architecture="mlp-8", defense=gauntlet.defense(mine)(weight=0.25))
    assert pickle.loads(pickle.dumps(made)) == made == copy.deepcopy(made)
    nested = plugins.from_file("mine.py:MINE", "attack", lambda value: isinstance(value, Attack)).value
    assert pickle.loads(pickle.dumps(nested)) == nested
    assert type(pickle.loads(pickle.dumps(nested)).other) is type(nested)


def test_another_process_loads_the_source_anew(mine: str) -> None:
    made = gauntlet.defense(mine)(weight=0.25)
    script = "import pickle, sys; x = pickle.load(sys.stdin.buffer); print(x.name, x.weight, x.also['source'])"
    done = subprocess.run([sys.executable, "-c", script], input=pickle.dumps(made), capture_output=True, check=True)
    assert done.stdout.decode().split() == ["gentle-training", "0.25", type(made).also["source"]]


def name_of(_: object) -> object:
    return lambda made: made.name


def test_a_source_that_was_changed_meanwhile_is_noticed(mine: str, tmp_path: Path) -> None:
    made = gauntlet.defense(mine)()
    (tmp_path / "helper.py").write_text("WEIGHT = 0.75\n")
    waiting = iter([Task("first", made)])
    with Pool(1, name_of, None) as pool:  # type: ignore[arg-type]
        (done,) = [done for done in pool.run(lambda: next(waiting, None)) if done is not None]
    assert done.error is not None
    assert "mine.py has other code than when the run began: start the run again" in done.error
    assert done.fault


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("none.py:Mine", "no file .*none.py"),
        ("mine.py:Nothing", r"unknown defense in mine.py 'Nothing'; .*choose from GentleTraining$"),
        ("mine.py:Step", "mine.py:Step is no defense, but a class derived from Attack; choose from GentleTraining"),
        ("mine.py:WEIGHT", "mine.py:WEIGHT is no defense, but a float"),
        ("broken.py:Mine", "broken.py, line 2: ZeroDivisionError: division by zero"),
        ("taken.py:Mine", "taken.py:Mine calls itself pgd, which is the name of a defense of ours: rename it"),
        ("mine.py", "which defense of mine.py. choose from mine.py:GentleTraining$"),
        ("mine.py:", "which defense of mine.py. choose from mine.py:GentleTraining$"),
        ("gentle", "unknown defense 'gentle'.*choose from"),
    ],
)
def test_what_is_no_defense_is_refused(mine: str, text: str, complaint: str) -> None:
    Path("broken.py").write_text("\n1 / 0\n")
    Path("taken.py").write_text("import gauntlet\nclass Mine(gauntlet.Trainer):\n    name = 'pgd'\n")
    with pytest.raises(UserError, match=complaint):
        known()[text]


def test_a_users_package_of_our_name_is_not_in_the_way_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("defenses", "harness"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("MINE = 3\n")
    (tmp_path / "mine.py").write_text(
        "import defenses, gauntlet\n"
        "class Mine(gauntlet.Trainer):\n    epochs_ = defenses.MINE\n"
        "class Blur(gauntlet.defense('gaussian-blur')):\n    pass\n"
    )
    assert issubclass(gauntlet.defense("mine.py:Mine"), gauntlet.Trainer)
    assert gauntlet.defense("mine.py:Blur").name == "blur"


def test_a_network_is_named_with_the_digest_of_its_source() -> None:
    name = plugins.architecture(f"{EXAMPLES / 'my_network.py'}:wide")
    short, _, digest = name.partition("@")
    assert (short, len(digest)) == ("wide", 8)
    assert plugins.architecture_argument(name) == f"{EXAMPLES / 'my_network.py'}:wide"
    assert plugins.architecture_argument("mlp-8") == plugins.architecture("mlp-8") == "mlp-8"
    (made,) = [each for each in plugins.architectures() if each.name == name]
    assert pickle.loads(pickle.dumps(made)) == made


@dataclass(frozen=True, kw_only=True)
class InPython(gauntlet.Trainer):
    name = "in-python"


def test_classes_that_only_python_has_seen_are_left_alone() -> None:
    assert plugins.origin_of(InPython) is None
    assert "source" not in identity.canonical(InPython())
