"""What cannot fit is refused in one line, before anything is computed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from defenses.standard import Standard
from harness.attacks.noise import Noise
from harness.datasets.registry import DataSource
from harness.environment import ADDRESS_SPACE
from harness.errors import UserError
from harness.execution.memory import COPIES, check_memory, free
from harness.planning.plan import plan, specs
from harness.planning.suite import Suite


def test_a_shard_that_no_memory_holds() -> None:
    info = DataSource("digits").info()
    suite = Suite(name="any", summary="", attacks={"linf": (Noise(),)}, budgets={"linf": (0.1,)}, samples=50, batch=25)
    made = plan(suite, specs([info], ["softmax"], [Standard(epochs=1)], [0]), {info.name: info})
    each = 4 * 25 * (COPIES * 64 + 10)
    check_memory([made], 8, 2 * each)  # there are only two shards
    check_memory([made], 1, each)
    with pytest.raises(UserError, match=r"a shard of 25 images of 1x8x8 .* in 2 worker processes .* fewer --jobs"):
        check_memory([made], 8, 2 * each - 1)
    assert free() > 0


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
def test_little_address_space_is_one_line() -> None:
    code = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({ADDRESS_SPACE - 1}, {ADDRESS_SPACE - 1})); "
    code += "from gauntlet.__main__ import main; main()"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, "list", "suites"], capture_output=True, text=True, cwd=root)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("gauntlet: this process may use 4.0 GB of address space (ulimit -v)")
