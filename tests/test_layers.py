"""Imports point one way. What this file says is the architecture; what the imports do must agree."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"harness", "defenses", "suites", "reports"}
FILES = sorted(
    path.relative_to(ROOT).as_posix() for package in OURS for path in (ROOT / package).rglob("*.py") if path.is_file()
)

LEAVES = {
    "harness/errors.py": set(),
    "harness/threat.py": set(),
    "harness/determinism.py": set(),
    "harness/identity.py": set(),
    "harness/metrics/pairs.py": set(),
    "harness/trust/checks.py": {"harness.metrics.pairs"},
    "harness/metrics/comparison.py": {"harness.metrics.pairs"},
    "harness/trust/record_checks.py": {"harness.metrics.pairs", "harness.trust.checks"},
    "harness/trust/probe_checks.py": {"harness.metrics.pairs", "harness.trust.checks"},
    "harness/models/maxout.py": {"harness.errors"},
    "harness/models/registry.py": {
        "harness.errors",
        "harness.models.allconv",
        "harness.models.maxout",
        "harness.models.stages",
    },
    "harness/datasets/torchvision_sets.py": {"harness.datasets.sampling", "harness.errors"},
    "harness/datasets/image_folders.py": {
        "harness.datasets.sampling",
        "harness.datasets.torchvision_sets",
        "harness.errors",
    },
    "harness/datasets/registry.py": {
        "harness.datasets.image_folders",
        "harness.datasets.sampling",
        "harness.datasets.torchvision_sets",
        "harness.errors",
        "harness.threat",
    },
    "harness/models/perturbation_generator.py": {"harness.models.allconv", "harness.threat"},
    "harness/training/optim.py": {"harness.threat"},
    "harness/victims/adaptation.py": {"harness.errors"},
    "harness/user_code/process_state.py": {"harness.determinism"},
    "harness/user_code/python_file.py": {"harness.determinism", "harness.errors", "harness.user_code.process_state"},
    "harness/victims/bpda.py": {"harness.errors", "harness.user_code.python_file"},
    "harness/selftest/masked_gradients.py": {"harness.victims.adaptation"},
    "harness/victims/duplicates.py": {"harness.errors"},
    "harness/victims/agreement.py": set(),
    "harness/metrics/class_order.py": {"harness.metrics.comparison"},
    "harness/victims/victim.py": {
        "harness.determinism",
        "harness.errors",
        "harness.victims.adaptation",
        "harness.victims.bpda",
        "harness.victims.duplicates",
    },
    "harness/attacks/base.py": {"harness.threat", "harness.victims.victim"},
    "harness/selftest/linear_victim.py": {"harness.threat", "harness.victims.victim"},
    "harness/judging/referee.py": {"harness.threat", "harness.victims.victim"},
    "harness/redaction.py": set(),
    "harness/models/stages.py": set(),
    "harness/models/allconv.py": {"harness.errors"},
    "harness/datasets/sampling.py": set(),
}
"""What the modules at the bottom may know of ours."""

ATTACKS_KNOW = {
    "harness.errors",
    "harness.threat",
    "harness.victims.victim",
    "harness.models.perturbation_generator",
    "harness.training.optim",
}
ART = ("harness/attacks/toolkits/art",)
FOOLBOX = ("harness/attacks/toolkits/foolbox",)
REPORTS_KNOW = {*sys.stdlib_module_names, "pandas", "numpy", "jinja2", "markupsafe", "PIL", "harness", "reports"}


def imports(file: str, *, top_only: bool = False) -> set[str]:
    """Absolute names of the modules a file imports, also inside functions; not those for type checkers alone."""
    tree = ast.parse((ROOT / file).read_text())
    package = file.removesuffix(".py").removesuffix("/__init__").split("/")
    if not file.endswith("__init__.py"):
        package = package[:-1]
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                return
            case ast.FunctionDef() | ast.AsyncFunctionDef() if top_only:
                return
            case ast.Import(names=names):
                found.update(alias.name for alias in names)
            case ast.ImportFrom(module=module, level=level, names=names):
                base = (
                    ".".join([*package[: len(package) - level + 1], *([module] if module else [])]) if level else module
                )
                assert base is not None
                for alias in names:
                    # "from . import x" and "from harness import x" mean the module x where there is one
                    deeper = f"{base}.{alias.name}"
                    found.add(deeper if is_module(deeper) else base)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def ours(file: str) -> set[str]:
    return {name for name in imports(file) if name.split(".")[0] in OURS}


def outside(file: str, *, top_only: bool = False) -> set[str]:
    return {name.split(".")[0] for name in imports(file, top_only=top_only)} - OURS


def under(folder: str) -> list[str]:
    return [file for file in FILES if file.startswith(f"{folder}/")]


def test_the_reader_of_imports_reads() -> None:
    assert "harness.threat" in ours("harness/attacks/base.py")
    assert "harness.threat" in ours("harness/attacks/transfer.py")
    assert "harness.identity" in ours("harness/planning/plan.py")
    assert "harness.metrics.pairs" in ours("reports/__init__.py")
    assert "reports.boards.section" in ours("reports/__init__.py")
    assert "reports.drawing.text" in ours("reports/boards/costs.py")
    assert "torch" in outside("harness/threat.py")
    assert "mlflow" in outside("harness/tracking/connection.py")
    assert "mlflow" not in outside("harness/tracking/connection.py", top_only=True)


@pytest.mark.parametrize("file", LEAVES)
def test_the_bottom_knows_nothing_above_it(file: str) -> None:
    assert ours(file) <= LEAVES[file]


@pytest.mark.parametrize("file", under("harness/attacks"))
def test_attacks_know_what_an_attack_may_know(file: str) -> None:
    strangers = {name for name in ours(file) if name not in ATTACKS_KNOW and not name.startswith("harness.attacks")}
    assert strangers == set()


@pytest.mark.parametrize("file", under("defenses"))
def test_defenses_import_from_the_harness_alone(file: str) -> None:
    foreign = {name for name in ours(file) if name.split(".")[0] != "harness"}
    assert foreign <= {"defenses"}
    forbidden = {"cli", "api", "studies", "execution", "tracking", "records", "judging", "planning"}
    assert not {name for name in ours(file) if name.startswith("harness.") and name.split(".")[1] in forbidden}


@pytest.mark.parametrize("file", under("suites"))
def test_suites_declare(file: str) -> None:
    allowed = {
        "harness.planning.suite",
        "harness.planning.specs",
        "harness.errors",
        "harness.threat",
        "harness.studies.study",
    }
    strangers = {
        name
        for name in ours(file)
        if name not in allowed and not name.startswith(("harness.attacks", "defenses", "suites"))
    }
    assert strangers == set()
    assert outside(file) <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("file", under("reports"))
def test_reports_see_frames(file: str) -> None:
    assert ours(file) <= {
        "harness.metrics.pairs",
        "harness.leaderboard",
        "harness.trust.grade",
        "harness.trust.checks",
        "harness.metrics.comparison",
        "harness.studies.study",
        "harness.studies.findings",
        "harness.records.files",
        *(name for name in ours(file) if name.startswith("reports.")),
    }
    assert {name.split(".")[0] for name in imports(file)} <= REPORTS_KNOW
    # what is imported for type checkers alone escapes the contract of layers and the search for circles
    assert "TYPE_CHECKING" not in (ROOT / file).read_text()


@pytest.mark.parametrize("file", FILES)
def test_each_toolkit_has_one_door(file: str) -> None:
    foreign = outside(file)
    assert "mlflow" not in foreign or file in {"harness/tracking/connection.py", "harness/external/mlflow_model.py"}
    assert "art" not in foreign or file.startswith(ART)
    assert not foreign & {"foolbox", "eagerpy"} or file.startswith(FOOLBOX)
    assert not outside(file, top_only=True) & {"art", "foolbox", "eagerpy", "mlflow"}, "import it where it is needed"


@pytest.mark.parametrize("file", [file for file in FILES if not file.startswith("harness/cli/")])
def test_only_the_command_line_knows_everybody(file: str) -> None:
    known = {name.split(".")[1] for name in ours(file) if name.startswith("harness.")}
    assert "cli" not in known
    if file.startswith("harness/"):
        assert not {name for name in ours(file) if name.split(".")[0] == "reports"}


def test_the_core_knows_no_defense_and_no_suite() -> None:
    by_name = {"harness/cli/main.py", "harness/cli/commands.py", "harness/cli/tables.py", "harness/api.py"}
    knowing = {file for file in under("harness") if {n.split(".")[0] for n in ours(file)} & {"defenses", "suites"}}
    assert knowing <= by_name


def test_no_import_goes_in_circles() -> None:
    """Among imports at the top of modules: those inside functions cannot hang."""
    graph = {
        file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): {
            name for name in imports(file, top_only=True) if name.split(".")[0] in OURS
        }
        for file in FILES
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for other in sorted(graph.get(name, ())):
                if other != name and not name.startswith(f"{other}."):  # "from . import x" of a package's own
                    visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


LOOKS = ("list suites", "list attacks", "list datasets", "list defenses", "list models", "plan quick", "--help")


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
    done = subprocess.run(
        [sys.executable, "-c", code, *LOOKS],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": "", "HOME": str(tmp_path), "GAUNTLET_HOME": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "fast-gradient" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_frames_need_no_torch() -> None:
    code = "import sys, harness, harness.metrics.pairs; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
