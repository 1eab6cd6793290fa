"""Defenses, attacks, suites, data sets, networks and checks from files and from an installed package."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import gauntlet
from harness.datasets.registry import DATASETS
from harness.planning.specs import ModelSpec
from harness.records.plans import defense_argument
from harness.trust import grade
from harness.user_code import plugins
from suites import suite as find_suite
from tests.helpers.commands import call, complaint

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


def planned(*arguments: object) -> str:
    result = call("plan", *arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of examples/, built as a wheel and installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("package")
    source = shutil.copytree(EXAMPLES / "plugin", folder / "source")
    build = "import sys, setuptools.build_meta as backend; print(backend.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", build, str(folder)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(folder / done.stdout.splitlines()[-1]) as wheel:
        wheel.extractall(folder / "installed")  # what pip does with a wheel of Python alone
    return folder / "installed"


@pytest.fixture
def _installed(package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(package))
    for cached in (plugins._points, plugins._package_digest, grade._points):
        cached.cache_clear()
    yield
    for cached in (plugins._points, plugins._package_digest, grade._points):
        cached.cache_clear()
    sys.modules.pop("gauntlet_example", None)


def test_every_example_is_planned(tmp_path: Path) -> None:
    text = planned(
        f"{EXAMPLES}/my_suite.py:SUITE",
        *("--defense", f"{EXAMPLES}/my_defense.py:Mixup:alpha=1/4,epochs=2"),
        *("--defense", "standard+gaussian-blur"),
        *("--model", f"{EXAMPLES}/my_network.py:wide"),
        *("--dataset", f"{EXAMPLES}/my_data.py:bars?size=12"),
        *("--add-attack", f"{EXAMPLES}/my_attack.py:Momentum:steps=20"),
        *("--add-attack", f"{EXAMPLES}/my_attack.py:APGD"),
        *("--home", tmp_path),
    )
    assert re.search(r"bars@\w{8} +wide@\w{8} +mixup\(epochs=2, alpha=0.25\) +0 +momentum\(steps=20\)", text)
    assert "standard > gaussian-blur" in text
    assert "apgd-art(max_iter=20)" in text


def test_a_defense_takes_at_most_forty_lines_and_the_docs_show_it() -> None:
    source = (EXAMPLES / "my_defense.py").read_text()
    assert len(source.splitlines()) <= 40
    assert source.partition("from __future__")[2] in (ROOT / "docs" / "guides" / "add-a-defense.md").read_text()
    for file in (*EXAMPLES.glob("my_*.py"), EXAMPLES / "plugin" / "gauntlet_example" / "__init__.py"):
        imported = re.findall(r"^(?:from|import) (\w+)", file.read_text(), re.MULTILINE)
        assert not {"harness", "defenses", "suites", "reports"} & set(imported), file


@pytest.mark.slow
def test_the_recorded_command_does_the_same_again_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(EXAMPLES)
    home = tmp_path / "home"
    result = call(
        *("run", "my_suite.py:SUITE", "--defense", "my_defense.py:Mixup:epochs=1", "--model", "my_network.py:wide"),
        *("--dataset", "my_data.py:bars", "--add-attack", "my_attack.py:Momentum", "--eps", "8/255", "--samples", 8),
        *("--attack", "momentum", "--home", home, "--jobs", 1),
    )
    assert result.exit_code == 0, result.output
    (plan,) = (json.loads(file.read_text()) for file in (home / "plans").glob("*.json"))
    assert plan["suite"] == "toolkits-only + momentum at linf 8/255"
    (command,) = {cell["command"] for cell in plan["cells"]}
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    assert words[:3] == ["gauntlet", "run", f"{EXAMPLES}/my_suite.py:SUITE"]
    again = planned(*words[2:], "--home", home)
    assert "1 pair (1 done, 0 to do)" in again
    assert "mlflow" not in result.stderr
    assert (home / "report" / "index.html").is_file()


@pytest.mark.usefixtures("_installed")
def test_lists_say_what_a_package_offers() -> None:
    for what, name in {
        "defenses": "label-smoothing",
        "attacks": "corner",
        "suites": "example",
        "datasets": "stripes",
        "models": "linear",
        "checks": "seed-spread",
    }.items():
        result = call("list", what)
        assert result.exit_code == 0, result.output
        assert re.search(rf"^{name} .*gauntlet-example 1.0$", result.output.rstrip(), re.MULTILINE), result.output


@pytest.mark.usefixtures("_installed")
def test_a_class_that_two_names_lead_to_is_known_by_its_own() -> None:
    attack = find_suite("example").attacks["linf"][0]
    plugin = plugins.origin_of(type(attack))
    assert plugin is not None
    assert plugin.text == "corner"
    assert pickle.loads(pickle.dumps(attack)) == attack
    spec = ModelSpec(dataset="digits", architecture="mlp-8", defense=gauntlet.defense("label-smoothing")(amount=0.2))
    assert defense_argument(spec, DATASETS["digits"]) == "label-smoothing:epochs=None,amount=0.2"


@pytest.mark.usefixtures("_installed")
def test_what_a_package_offers_is_named_like_ours(tmp_path: Path) -> None:
    text = planned(
        *("example", "--defense", "label-smoothing:amount=1/5", "--model", "linear", "--dataset", "stripes"),
        *("--add-attack", "corner:draws=3", "--home", tmp_path),
    )
    assert re.search(r"stripes@\w{8} +linear@\w{8} +label-smoothing\(amount=0.2\) +0 +corner\(draws=3\)", text)
    assert "unknown defense 'label-smothing'; did you mean label-smoothing" in complaint(
        call("plan", "quick", "--defense", "label-smothing", "--home", tmp_path)
    )
    for option, name in (("--model", "linear"), ("--dataset", "stripes")):
        assert f"did you mean {name}?" in complaint(call("plan", "quick", option, name[1:], "--home", tmp_path))


@pytest.mark.slow
def test_worker_processes_know_an_installed_package(package: Path, tmp_path: Path) -> None:
    words = [*("run", "example", "--defense", "label-smoothing:epochs=1", "--model", "linear", "--dataset", "stripes")]
    words += ["--home", str(tmp_path), "--jobs", "2"]
    there = os.pathsep.join([str(package), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "gauntlet", *words],
        env={**os.environ, "PYTHONPATH": there, "COLUMNS": "200"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "1 training run" in done.stdout  # what the package's check found
    (plan,) = (json.loads(file.read_text()) for file in (tmp_path / "plans").glob("*.json"))
    assert all(
        "--dataset stripes --model linear --defense label-smoothing:epochs=1" in cell["command"]
        for cell in plan["cells"]
    )


@pytest.mark.usefixtures("_installed")
def test_a_package_that_is_broken_is_named(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(package, broken)
    (broken / "gauntlet_example" / "__init__.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(broken))
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(package)])
    sys.modules.pop("gauntlet_example", None)
    plugins._points.cache_clear()
    result = call("list", "defenses")
    assert result.exit_code == 0
    assert "label-smoothing of gauntlet-example 1.0 cannot be loaded (ZeroDivisionError" in result.output
    line = complaint(call("plan", "quick", "--defense", "label-smoothing", "--home", tmp_path))
    assert "cannot be loaded" in line
