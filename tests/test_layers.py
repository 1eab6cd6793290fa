"""What imports cost and hide. Which package may import which is in pyproject.toml: ``nox -s lint`` checks it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gauntlet

ROOT = Path(__file__).parent.parent
LOOKS = ("list suites", "list attacks", "list datasets", "list defenses", "list models", "plan quick", "--help")


def run(code: str, *arguments: str, home: Path | None = None) -> str:
    environment = {"PATH": "", "OMP_NUM_THREADS": "1"}
    if home is not None:
        environment |= {"HOME": str(home), "GAUNTLET_HOME": str(home / "runs")}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_looking_around_loads_no_toolkit(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from harness.cli.main import cli\n"
        "for words in sys.argv[1:]:\n"
        "    try: cli(words.split())\n"
        "    except SystemExit as end: assert not end.code, (words, end.code)\n"
        "    loaded = {'art', 'foolbox', 'mlflow', 'eagerpy', 'sklearn'} & set(sys.modules)\n"
        "    assert not loaded, (words, loaded)\n"
    )
    assert "fast-gradient" in run(code, *LOOKS, home=tmp_path)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("gauntlet", {"torch", "pandas", "numpy", "click", "pydantic"}),
        ("gauntlet.__main__", {"torch", "pandas", "numpy", "click", "pydantic"}),
        ("harness.cli.main", {"torch", "pandas", "numpy", "mlflow", "pydantic"}),
        ("harness.schema.pairs", {"torch", "pandas", "numpy"}),
        ("harness.identity", {"torch", "pandas", "numpy"}),
        ("harness.metrics.pairs", {"torch", "mlflow"}),
        ("harness.trust.grade", {"torch", "mlflow"}),
        ("reports", {"torch", "mlflow", "art", "foolbox"}),
    ],
)
def test_what_an_import_leaves_alone(module: str, absent: set[str]) -> None:
    run(f"import sys, {module}; found = {absent!r} & set(sys.modules); assert not found, found")


def test_reports_hide_no_import_from_the_linter() -> None:
    """What is imported for type checkers alone escapes the contract of layers."""
    assert not [file for file in (ROOT / "reports").rglob("*.py") if "TYPE_CHECKING" in file.read_text()]


def test_toolkits_are_imported_where_they_are_needed() -> None:
    toolkits = {"art", "foolbox", "eagerpy", "mlflow"}
    for file in (file for folder in gauntlet.OURS for file in (ROOT / folder).rglob("*.py")):
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not {name.partition(".")[0] for name in names} & toolkits, file


def test_the_public_face_offers_what_it_names() -> None:
    assert len(gauntlet.__all__) == len(set(gauntlet.__all__))
    for name in gauntlet.__all__:
        assert getattr(gauntlet, name) is not None
        assert name in dir(gauntlet)
    face = ast.parse((ROOT / "gauntlet" / "__init__.py").read_text())
    (block,) = [one for one in face.body if isinstance(one, ast.If) and ast.unparse(one.test) == "TYPE_CHECKING"]
    imports = [one for one in block.body if isinstance(one, ast.ImportFrom)]
    assert {alias.asname: one.module for one in imports for alias in one.names} == gauntlet._MODULES
    with pytest.raises(AttributeError, match="has no attribute 'evaluat'"):
        _ = gauntlet.evaluat
