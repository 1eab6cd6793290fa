"""Commands called within the test process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from harness.cli.main import cli


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def complaint(result: Result) -> str:
    """The one line that a command ended with."""
    assert result.exit_code != 0, result.output
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    lines = [line for line in result.stderr.splitlines() if line.startswith("gauntlet: ")]
    assert len(lines) == 1, result.output
    return lines[0]
