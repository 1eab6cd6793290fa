"""Code in README, in the site and in the notebook: Python is run, commands are planned, settings are read."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import sys
import textwrap
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import gauntlet
from harness.cli.main import cli
from tests.helpers.commands import call
from tests.helpers.datasets import make_mnist

ROOT = Path(__file__).parents[1]
PAGES = [
    page
    for page in [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md")), *sorted(ROOT.glob("docs/**/*.md"))]
    if "```" in page.read_text(encoding="utf-8") and page.name != "performance.md"  # which benchmarks/ write
]
BLOCK = re.compile(
    r'^( *)(?:<!-- exempt: ([^\n]+) -->\n\1)?```(\w+)(?: title="([^"]+)")?\n(.*?)^\1```$', re.MULTILINE | re.DOTALL
)

PLANNED = {"run", "reproduce", "search", "train"}
"""Commands that --dry-run keeps from working."""

CALLED = {"plan", "list"}

PARSED = {"report", "diff", "sync", "explain", "ui", "doctor", "board", "export", "publish", "verify", "lower"}
"""Commands whose options are read, and no more: they need a home with results, or serve until they are stopped."""

SHELL = (
    "python3 -m venv ",
    ". .venv/bin/activate",
    "uv venv",
    "uv pip install ",
    "pip install ",
    "uvx nox -s ",
    ".venv/bin/nox -s ",
    ".venv/bin/pip install ",
    "export ",
    "mkdir -p ",
    "cp -r ",
    "eval ",
)
"""What installs (CI runs README's second command as it stands) or belongs to the shell."""


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """Title and text of each that is not exempt."""
    text = page.read_text(encoding="utf-8")
    return [(m[4] or "", textwrap.dedent(m[5])) for m in BLOCK.finditer(text) if m[3] == language and m[2] is None]


def commands(page: Path) -> Iterator[str]:
    """Each command of a page in one line, without its comment."""
    for _, text in blocks(page, "sh"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            yield from re.split(r" && ", shlex.join(words).replace("'&&'", "&&")) if words else ()


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with as many images as MNIST has, of noise."""
    root = tmp_path_factory.mktemp("data")
    make_mnist(root, train=60_000, test=10_000)
    return root


@pytest.fixture
def folder(tmp_path: Path, mnist: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the data that pages speak of."""
    rng = np.random.default_rng(0)
    (tmp_path / "DATA").symlink_to(mnist)
    folders = [(f"FOLDER/{part}/{label}", (8, 8)) for part in ("train", "test") for label in range(10)]
    folders += [(f"photos/{name}", (260, 300, 3)) for name in ("golden retriever", "n02123045")]
    for name, size in folders:
        place = tmp_path / name
        place.mkdir(parents=True)
        for number in range(3):
            Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(place / f"{number}.png")
    for example in (ROOT / "examples").glob("my_*.py"):
        shutil.copy(example, tmp_path)
    monkeypatch.chdir(tmp_path)
    for variable in ("GAUNTLET_HOME", "GAUNTLET_DATA", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")  # ART's, where a page imports it by itself
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_runs(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = types.ModuleType("page")
    for title, text in blocks(page, "python"):
        module = types.ModuleType(title.removesuffix(".py")) if title else whole
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(text, title or page.name, "exec"), vars(module))


def tried(command: str, folder: Path) -> None:
    """Run or plan a command of ours, or read its options."""
    name, *arguments = shlex.split(command)[1:]
    if name in PARSED or "$" in command or "--engine ray" in command:
        with click.Context(cli) as above:
            cli.commands[name].make_context(name, arguments, parent=above).close()
        return
    assert name in PLANNED | CALLED, command
    dry = ["--dry-run"] if name in PLANNED and "--dry-run" not in arguments else []
    result = call(name, *arguments, *dry)
    assert result.exit_code == 0, f"{command}\n{result.output}"
    assert list(folder.glob("*/models")) == [], command


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page))], ids=lambda page: page.stem)
def test_commands_can_be_given(page: Path, folder: Path) -> None:
    sources = {title: text for guide in PAGES for title, text in blocks(guide, "python") if title}
    sources["mine.py"] += "\n\ndef lenet():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
    small = "nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000))"
    sources["mine.py"] += f"\n\ndef resnet50():\n    return {small}\n"
    for title, text in sources.items():
        Path(title).write_text(text)
    example = torch.rand(2, 1, 28, 28)
    batch = {0: torch.export.Dim("batch")}
    lenet = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    torch.save(lenet.state_dict(), "weights.pt")
    torch.export.save(torch.export.export(lenet, (example,), dynamic_shapes=(batch,)), "mine.pt2")
    noxfile = (ROOT / "noxfile.py").read_text()
    for command in commands(page):
        if command.startswith(SHELL):
            continue
        if command.startswith("nox "):
            for session in re.findall(r"(?:-s|--session) ((?:\w+ ?)+)", command.split(" -- ")[0]):
                assert all(f"def {name}(" in noxfile for name in session.split()), command
            continue
        assert command.startswith("gauntlet "), command
        tried(command, folder)


def test_few_blocks_are_exempt_and_say_why() -> None:
    found = [(page, m) for page in PAGES for m in BLOCK.finditer(page.read_text(encoding="utf-8"))]
    reasons = [m[2] for _, m in found if m[2] is not None]
    assert len(reasons) == sum(page.read_text(encoding="utf-8").count("<!-- exempt:") for page in PAGES)
    assert len(reasons) <= 5
    assert all(len(reason) > 10 for reason in reasons)
    known = {"sh", "python", "text", "ini", "toml", "yaml"}
    assert {(page.name, m[3]) for page, m in found if m[3] not in known} == set()


def test_settings_can_be_read() -> None:
    readers = {"ini": configparser.RawConfigParser(strict=True).read_string, "toml": tomllib.loads}
    readers["yaml"] = lambda text: yaml.safe_load(text)
    texts = [(language, text) for page in PAGES for language in readers for _, text in blocks(page, language)]
    for language, text in texts:
        readers[language](text)
    assert {language for language, _ in texts} == set(readers)


@pytest.mark.long
def test_the_notebook_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notebook = json.loads((ROOT / "examples" / "first_hour.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    names: dict[str, object] = {"__name__": "notebook"}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), names)
    assert Path("report/index.html").is_file()
    assert "worst case" in capsys.readouterr().out


def test_every_public_name_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference" / "index.md").read_text()
    listed = set(re.findall(r"^::: [\w.]+\.(\w+)$", text, re.MULTILINE))
    listed |= {name for found in re.findall(r"members: \[([^\]]+)\]", text) for name in found.split(", ")}
    assert set(gauntlet.__all__) - listed == set()


def test_questions_quote_messages_that_are_printed() -> None:
    source = "".join(
        re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "harness").rglob("*.py"))
    )
    quoted = re.findall(r"^### `([^`]+)`$", (ROOT / "docs" / "guides" / "questions.md").read_text(), re.MULTILINE)
    assert len(quoted) >= 10
    assert [message for message in quoted if message not in source] == []
