"""What a user's code sets in the process is undone, and what its model needs of it is not."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.external.external import load
from harness.external.reference import parse
from harness.user_code import process_state
from harness.victims.duplicates import duplicate
from harness.victims.victim import Victim

ROOT = Path(__file__).parents[2]
HEAD = (
    "import argparse, builtins, decimal, gc, io, locale, logging, logging.config, os, random\n"
    "import signal, socket, ssl, sys, threading, warnings\n"
    "import numpy as np\nimport torch\nfrom torch import nn\n"
)
CHANGES = {
    "warnings.simplefilter('error')": "[f[:2] for f in warnings.filters]",
    "warnings.showwarning = print": "warnings.showwarning",
    "torch.set_default_dtype(torch.float64)": "torch.tensor(0.5).dtype",
    "torch.set_default_device('meta')": "torch.empty(1).device.type",
    "torch.set_grad_enabled(False)": "torch.is_grad_enabled()",
    "torch.autograd.set_detect_anomaly(True)": "torch.is_anomaly_enabled()",
    "torch.use_deterministic_algorithms(True, warn_only=True)": "torch.get_deterministic_debug_mode()",
    "torch.set_num_threads(3)": "torch.get_num_threads()",
    "torch.set_flush_denormal(True)": "float(torch.tensor([1e-40]) * 0.5)",
    "torch.autocast('cpu').__enter__()": "torch.is_autocast_enabled('cpu')",
    "torch.backends.cudnn.benchmark = True": "torch.backends.cudnn.benchmark",
    "torch.set_float32_matmul_precision('medium')": "torch.get_float32_matmul_precision()",
    "torch.set_printoptions(precision=9)": "repr(torch.ones(1) / 3)",
    "torch.manual_seed(1)": "torch.initial_seed(), torch.random.get_rng_state().sum()",
    "np.random.seed(1)": "np.random.get_state()[1].tolist()",
    "random.seed(1)": "random.getstate()",
    "np.seterr(all='raise')": "np.geterr()",
    "np.set_printoptions(precision=1)": "repr(np.ones(1) / 3)",
    "decimal.getcontext().prec = 5": "decimal.Decimal(1) / 3",
    "locale.setlocale(locale.LC_ALL, 'C.UTF-8' if locale.setlocale(locale.LC_ALL) == 'C' else 'C')": (
        "locale.setlocale(locale.LC_ALL)"
    ),
    "sys.setrecursionlimit(4321)": "sys.getrecursionlimit()",
    "sys.set_int_max_str_digits(0)": "sys.get_int_max_str_digits()",
    "gc.disable()": "gc.isenabled()",
    "os.chdir('/')": "os.getcwd()",
    "os.environ['GAUNTLET_HOME'] = 'elsewhere'": "dict(os.environ)",
    "os.environ.pop('PATH')": "sorted(os.environ)",
    "builtins.print = len": "builtins.print",
    "builtins.profile = len": "getattr(builtins, 'profile', None)",
    "signal.signal(signal.SIGUSR2, lambda *_: None)": "signal.getsignal(signal.SIGUSR2)",
    "logging.disable(logging.CRITICAL)": "logging.root.manager.disable",
    "logging.basicConfig(level=logging.DEBUG, force=True)": "logging.root.level, len(logging.root.handlers)",
    "logging.config.dictConfig({'version': 1})": "logging.getLogger('asyncio').disabled",
    "socket.setdefaulttimeout(0.01)": "socket.getdefaulttimeout()",
    "ssl._create_default_https_context = ssl._create_unverified_context": "ssl._create_default_https_context.__name__",
    "sys.stdout = sys.stderr = io.StringIO()": "id(sys.stdout), id(sys.stderr)",
    "sys.excepthook = print": "sys.excepthook",
    "threading.excepthook = print": "threading.excepthook",
    "sys.argv.append('--more')": "list(sys.argv)",
    "sys.path.insert(0, 'lib')": "list(sys.path)",
    "sys.path = ['lib', *sys.path]": "id(sys.path)",
    "sys.dont_write_bytecode = None": "sys.dont_write_bytecode",
}
"""What a file may do, and how one sees that it did."""


def seen(probe: str) -> Any:
    names: dict[str, Any] = {}
    exec(HEAD, names)
    return eval(probe, names)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("where", ["file", "factory", "failure"])
def test_what_a_file_sets_is_undone(change: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At import or in the factory, and also where it then fails."""
    monkeypatch.setattr(sys, "argv", ["gauntlet", "run"])
    top, inner = (change, "pass") if where == "file" else ("pass", change)
    text = f"{HEAD}import time\nSEEN = []\n{top}\ndef make():\n    {inner}\n    SEEN.append(({CHANGES[change]}))\n"
    text += "    net = nn.Flatten()\n    net.seen = SEEN[-1]\n"
    text += "    raise OSError(net.seen)\n" if where == "failure" else "    return net\n"
    (tmp_path / "net.py").write_text(text)
    reference = parse(f"{tmp_path / 'net.py'}:make")
    before = seen(CHANGES[change])
    for again in range(2):  # the second time, the file is not run
        if where == "failure":
            with pytest.raises(ValueError, match="OSError"):
                load(reference)
        else:
            assert load(reference).seen != before or again or "seed" in change  # the factory's seed is ours
        assert seen(CHANGES[change]) == before


def test_a_file_has_an_argv_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.py"
    path.write_text(
        "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--width', type=int, default=7)\n"
        "ARGS = parser.parse_args()\nfrom torch import nn\n"
        "def make(): return nn.Linear(ARGS.width + parser.parse_args().width, 1)\n"
    )
    monkeypatch.setattr(sys, "argv", ["gauntlet", "run", "quick", "--jobs", "2"])
    assert load(parse(f"{path}:make")).in_features == 14
    assert sys.argv == ["gauntlet", "run", "quick", "--jobs", "2"]


def test_a_factory_finds_what_its_file_has_set_however_often_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "width.txt").write_text("5")
    path = tmp_path / "net.py"
    path.write_text(
        "import os, pathlib\nfrom torch import nn\nos.chdir(os.path.dirname(__file__))\n"
        "os.environ['WIDTH_FILE'] = 'width.txt'\n"
        "def make(): return nn.Linear(int(pathlib.Path(os.environ['WIDTH_FILE']).read_text()), 1)\n"
    )
    assert [load(parse(f"{path}:make")).in_features for _ in range(2)] == [5, 5]


@pytest.mark.parametrize("where", ["file", "factory"])
def test_a_model_keeps_the_default_dtype_that_it_was_made_in(where: str, tmp_path: Path) -> None:
    setting = "torch.set_default_dtype(torch.float64)"
    top, inner = (setting, "pass") if where == "file" else ("pass", setting)
    path = tmp_path / "net.py"
    path.write_text(
        f"{HEAD}{top}\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.body = nn.Linear(4, 3)\n"
        "    def forward(self, x):\n        return self.body(x.flatten(1) @ torch.eye(4, dtype=None))\n"
        f"def make():\n    {inner}\n    return nn.Sequential(Net())\n"
    )
    x = torch.rand(2, 1, 2, 2)
    model = load(parse(f"{path}:make"))
    for one in (model, copy.deepcopy(model), duplicate(model), load(parse(f"{path}:make"))):
        assert one(x.double()).dtype == torch.float64  # float32 would not go with the identity matrix
        with pytest.raises(RuntimeError):
            one(x)
        assert torch.get_default_dtype() == torch.float32
    assert Victim(nn.Sequential(Double(), model))(x).dtype == torch.float64


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def test_a_stream_in_place_of_ours_does_not_close_it(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')\nprint('theirs')\n"
        "from torch import nn\nmake = nn.Flatten\n"
    )
    code = (
        "import gc, sys\nfrom harness.external.reference import parse\nfrom harness.external.external import load\n"
        "print('before', flush=True)\nload(parse('net.py:make'))\ngc.collect()\nprint('after')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.stdout.split() == ["before", "theirs", "after"], done.stderr


def test_a_setting_that_cannot_be_put_back_keeps_none_of_the_others(tmp_path: Path, monkeypatch: Any) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    limit = sys.getrecursionlimit()
    with process_state.kept():
        monkeypatch.chdir(tmp_path)
        gone.rmdir()
        sys.setrecursionlimit(limit + 100)
    assert sys.getrecursionlimit() == limit
    assert process_state.settings().keys() == process_state._SETTINGS.keys()


def test_exported_programs_and_registries_are_loaded_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.external import exported_program, mlflow_model

    def meddling(*_: Any, **__: Any) -> Any:
        torch.set_grad_enabled(False)
        raise ValueError("none")

    monkeypatch.setattr(torch.export, "load", meddling)
    with pytest.raises(ValueError, match="is no program"):
        exported_program.from_export(tmp_path / "net.pt2")
    assert torch.is_grad_enabled()
    monkeypatch.setattr("mlflow.pytorch.load_model", meddling)
    with pytest.raises(ValueError, match="cannot be loaded"):
        mlflow_model.load_folder(tmp_path, "models:/net/1")
    assert torch.is_grad_enabled()
