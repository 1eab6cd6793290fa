"""One small home in three norms, and its bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.commands import call

SUITE = """
from harness.attacks.apgd import APGD
from harness.attacks.fmn import MinimumNorm
from harness.planning.suite import Suite

TINY = Suite(
    name="tiny", summary="", attacks={norm: (APGD(steps=4), MinimumNorm(steps=8)) for norm in ("linf", "l2", "l1")}
)
"""
N = 30


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A home of two models, and the folder that it was published to; copy what you change."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "suite.py").write_text(SUITE)
    run = ["run", f"{folder / 'suite.py'}:TINY", "--model", "mlp-8", "--defense", "standard:epochs=8"]
    run += ["--defense", "pgd:epochs=8,steps=2", "--samples", N, "--certify", 16, "--no-surrogate", "--jobs", 1]
    result = call(*run, "--witnesses", "all", "--home", folder / "home")
    assert result.exit_code == 0, result.output
    result = call("publish", folder / "home", "--out", folder / "bundle", "--by", "The Tester")
    assert result.exit_code == 0, result.output
    return folder / "home", folder / "bundle"
