"""Memory that a worker frees stays with it."""

from __future__ import annotations

import subprocess
import sys

import pytest

STEPS = """
import resource, sys
import torch
from harness.execution.memory import keep_freed
if sys.argv[1] == "keep":
    keep_freed()
def step():
    blocks = [torch.zeros(10 << 20) for _ in range(4)]  # 40 MiB each: from 32 MiB on glibc always asks the system
    return sum(float(block[0]) for block in blocks)
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other C libraries are not told")
def test_a_step_takes_the_memory_that_the_one_before_gave_back() -> None:
    def faults(how: str) -> int:
        out = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True)
        return int(out.stdout)

    assert faults("keep") < 0.1 * faults("give back")
