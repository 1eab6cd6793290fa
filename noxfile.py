"""Sessions: ``nox --list`` shows them; arguments after ``--`` reach the command that a session runs."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["bench"]

CONSTRAINTS = "constraints.txt"


def install(session: nox.Session, *groups: str, extras: str = "", imported: bool = True) -> None:
    """Install the project, editable, with the pinned versions; ``imported``: to be run, and not read alone."""
    if imported:
        # uv writes no byte code by itself, and the first import of torch, ART and MLflow would take 15 s longer
        session.env["UV_COMPILE_BYTECODE"] = "1"
    wanted = [requirement for group in groups for requirement in nox.project.dependency_groups(pyproject(), group)]
    session.install("-c", CONSTRAINTS, "-e", f".{extras}", *wanted)


def pyproject() -> dict[str, object]:
    return nox.project.load_toml(Path(__file__).with_name("pyproject.toml"))


@nox.session
def bench(session: nox.Session) -> None:
    """Train the embedded-data models, attack them with the quick suite, write the leaderboard."""
    install(session)
    named = bool(session.posargs) and not session.posargs[0].startswith("-")
    session.run("gauntlet", "run", *([] if named else ["quick"]), *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, on up to four cores."""
    install(session, "tests")
    session.run("pytest", "-n", "auto", "--maxprocesses", "4", "--dist", "worksteal", *session.posargs)


@nox.session
def long(session: nox.Session) -> None:
    """Run the tests that the session tests leaves out because they take minutes: kills, studies, compiled attacks."""
    install(session, "tests")
    session.run("pytest", "-m", "long", "-n", "auto", "--maxprocesses", "4", "--dist", "worksteal", *session.posargs)


@nox.session
def judgement(session: nox.Session) -> None:
    """Let the batteries judge victims whose weakness is known, and every attack prove its strength; takes long.

    ``-- zoo --home DIR`` writes docs/trust.md alone; see tests_slow/judge_zoo.py for what else it takes.
    """
    install(session, "tests")
    if session.posargs[:1] == ["zoo"]:
        session.run("python", "-m", "tests_slow.judge_zoo", *session.posargs[1:])
        return
    session.run(
        "pytest",
        "tests_slow/test_grades.py",
        "tests_slow/test_doors.py",
        "tests_slow/test_truth.py",
        "tests_slow/test_planted.py",
        "-n",
        "auto",
        "--maxprocesses",
        "4",
        "--timeout",
        "3600",
        *session.posargs,
    )
    session.run("gauntlet", "doctor", "--attacks")
    session.run("python", "-m", "tests_slow.judge_zoo", "--home", str(Path(session.create_tmp()) / "zoo"))


@nox.session
def cluster(session: nox.Session) -> None:
    """Run on Ray, also where a worker and a node die in mid-run; takes minutes. Needs Linux's network namespaces."""
    install(session, "tests", extras="[ray]")
    files = ("tests/execution/test_ray_engine.py", "tests_slow/test_ray_cluster.py")
    session.run("pytest", *files, "-n0", "--timeout", "1500", *session.posargs)


@nox.session
def team(session: nox.Session) -> None:
    """Track to a PostgreSQL behind an MLflow server, both going away in mid-run; needs PostgreSQL's programs."""
    install(session, "tests", extras="[team]")
    session.run("pytest", "tests_slow/test_team.py", "-n0", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Give commands and readers a thousand bad inputs; takes minutes."""
    install(session, "tests")
    session.run("pytest", "tests_slow/test_bad_inputs.py", "-n0", "-s", "--timeout", "1500", *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """Kill, damage, fill, break and disturb runs in every way; counts, and docs/reliability.md. Takes long.

    With names of kinds only these, printed: kills, signals, stores, vanishing, damages, paths, disks, clocks, together.
    """
    install(session, "tests")
    session.run("python", "-m", "tests_slow.chaos", *session.posargs)


@nox.session
def audit(session: nox.Session) -> None:
    """Look for known vulnerabilities in what is installed here, in the pinned versions; needs the network."""
    install(session, "audit", extras="[ray,team]")
    session.run("python", "-m", "tests_slow.audit", *session.posargs)


@nox.session(python=["3.11", "3.12", "3.13"])
@nox.parametrize("versions", ["pinned", "lowest"])
def compat(session: nox.Session, versions: str) -> None:
    """Install the wheel in each Python, with the pinned and with the lowest declared versions, and run the quick suite.

    The lowest need uv. Takes long; one alone: nox -s "compat-3.12(versions='lowest')".
    """
    session.env["UV_COMPILE_BYTECODE"] = "1"
    session.install(*(["-c", CONSTRAINTS] if versions == "pinned" else ["--resolution", "lowest-direct"]), ".")
    home = session.create_tmp()
    with session.chdir(home):  # out of the checkout: what is imported is what was installed
        session.run("python", "-m", "gauntlet", "run", "quick", "--samples", "40", "--home", "home", *session.posargs)


@nox.session
def verify(session: nox.Session) -> None:
    """Check a bundle's numbers without attacking: ``-- BUNDLE``. Without one: 500 single changes, each to be named."""
    if session.posargs and not session.posargs[0].startswith("-"):
        install(session)
        session.run("gauntlet", "verify", *session.posargs)
        return
    install(session, "tests")
    session.run("pytest", "tests/publishing", "-n0", *session.posargs, env={"GAUNTLET_CHANGES": "500"})


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting, and which package imports which."""
    session.install("-c", CONSTRAINTS, *nox.project.dependency_groups(pyproject(), "lint"))
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-cache")


@nox.session
def types(session: nox.Session) -> None:
    """Check types: strict on the harness."""
    install(session, "types", imported=False)
    session.run("mypy", *session.posargs)


@nox.session
def report(session: nox.Session) -> None:
    """Write the leaderboard again from the tracked runs."""
    install(session)
    session.run("gauntlet", "report", *session.posargs)


@nox.session
def board(session: nox.Session) -> None:
    """Make a site of the bundles in a folder, e.g. ``nox -s board -- FOLDER``."""
    install(session)
    session.run("gauntlet", "board", *session.posargs)


@nox.session
def ui(session: nox.Session) -> None:
    """Open the MLflow UI on the runs."""
    install(session)
    session.run("gauntlet", "ui", *session.posargs)


@nox.session
def reproduce(session: nox.Session) -> None:
    """Run a paper's experiments, e.g. ``nox -s reproduce -- gu2014 --data-root DATA``."""
    install(session)
    session.run("gauntlet", "reproduce", *session.posargs)


@nox.session
def papers(session: nox.Session) -> None:
    """Write the pages that follow from records/ again; nothing is measured."""
    install(session)
    session.run("python", "docs/papers/render.py")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation site in site/, links checked; with "serve", show it while it is edited."""
    install(session, "docs")
    session.env["NO_MKDOCS_2_WARNING"] = "1"
    session.run("mkdocs", *(session.posargs or ["build", "--strict"]))


@nox.session
def pages(session: nox.Session) -> None:
    """Build the documentation site and let axe-core look at every page, light and dark, wide and narrow."""
    install(session, "tests", "docs")
    session.env["NO_MKDOCS_2_WARNING"] = "1"
    site = session.create_tmp()
    session.run("mkdocs", "build", "--strict", "--site-dir", site)
    session.run("pytest", "tests_slow/test_pages.py", "-n0", *session.posargs, env={"SITE": site})


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure speed as ratios within one run, and write docs/performance.md; with names, only print. Takes long.

    Arguments: names, then options of the one named.
    """
    known = sorted(file.stem for file in Path("benchmarks").glob("bench_*.py"))
    names = [Path(name).stem for name in takewhile(lambda word: not word.startswith("-"), session.posargs)]
    options = session.posargs[len(names) :]
    if unknown := [name for name in names if name not in known]:
        session.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}")
    if options and len(names) != 1:
        session.error(f"options need the name of one benchmark before them; there are {', '.join(known)}")
    install(session, "benchmarks", extras="[toolkits]")  # ART's AutoAttack can be measured too
    if not names:
        session.run("python", "benchmarks/write.py")
    for name in names:
        session.run("python", f"benchmarks/{name}.py", *options)
