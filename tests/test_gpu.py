"""``benchmarks/gpu.py`` runs to its end at small sizes: on the CPU, and on a GPU where there is one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.long
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=cuda)])
def test_every_path_of_a_gpu(device: str, tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    command = [sys.executable, str(SCRIPT), "--small", "--device", device, "--page", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    text = page.read_text()
    parts = ("Attacks against", "Training against", "Certificates against", "More than fits", "cascade", "L-BFGS")
    assert all(part in text for part in parts)
    assert "nothing differs from the CPU" in text
    assert "not begun" not in text
