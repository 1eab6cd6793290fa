"""The code of users: which modules it means, what of it counts, and that ours are none of its business."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gauntlet
import harness.cli.tables  # what it imports is loaded before anything is compared
import harness.threat
from harness.attacks.toolkits import art
from harness.errors import UserError
from harness.external.external import describe_model, load, program
from harness.external.reference import parse
from harness.judging.proposal import Bench
from harness.user_code import python_file
from harness.victims.adaptation import Remedy
from harness.victims.bpda import find_function
from harness.victims.duplicates import duplicate

ROOT = Path(__file__).parents[2]
X = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stand in an empty folder; whatever is loaded there leaves modules and import path as they were."""
    monkeypatch.chdir(tmp_path)
    before = {name: module for name, module in sys.modules.items() if not name.startswith("gauntlet_external_")}
    path, finders, importing = list(sys.path), list(sys.meta_path), __import__
    yield tmp_path
    left = {name: module for name, module in sys.modules.items() if not name.startswith("gauntlet_external_")}
    assert {name for name in before if left.get(name) is not before[name]} == set()
    theirs = [name for name in left.keys() - before.keys() if str(tmp_path) in str(vars(left[name]).get("__file__"))]
    assert theirs == []
    assert (sys.path, sys.meta_path, __import__) == (path, finders, importing)
    assert not list(tmp_path.rglob("__pycache__"))


def write(**files: str) -> None:
    """Files by path, with ``__`` for a slash and without their ending."""
    for name, text in files.items():
        file = Path(*(part.replace("INIT", "__init__") for part in name.split("__"))).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def linear(size: int) -> str:
    return f"from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(9, {size}))\n"


def size(text: str) -> int:
    """Logits of a model."""
    return int(load(parse(text))(X).shape[1])


@pytest.mark.parametrize(
    ("form", "name"),
    [
        *((form, name) for form in ("{}", "{}__INIT") for name in (*python_file.OURS, "art", "pandas", "utils")),
        *(("{}__inner", name) for name in python_file.OURS),  # else a folder without __init__.py comes after a package
    ],
)
def test_a_neighbour_wins_over_what_is_loaded(form: str, name: str) -> None:
    """Whether a module, a package, or (for our names) a folder of modules."""
    module = f"{name}.inner" if form == "{}__inner" else name
    write(**{form.format(name): linear(4), "net": f"from {module} import make\n"})
    ours = sys.modules.get(name)
    assert size("net.py:make") == 4
    assert sys.modules.get(name) is ours


def test_two_models_have_a_module_of_one_of_our_names_each() -> None:
    for folder, count in (("a", 3), ("b", 5)):
        write(**{f"{folder}__defenses": linear(count), f"{folder}__net": "from defenses import make\n"})
    assert [size(f"{folder}/net.py:make") for folder in ("a", "b", "a")] == [3, 5, 3]


def test_ours_can_be_had_beside_theirs() -> None:
    """A package of theirs with our name lacks most of our modules; those are ours, the very same."""
    write(
        harness__INIT="",
        harness__wrap="from torch import nn\nclass Wrap(nn.Flatten): pass\n",
        harness__models__INIT="",
        harness__models__registry="ARCHITECTURES = None  # not ours\n",
        net="from harness.wrap import Wrap\nfrom harness.threat import Threat\nimport harness.models.registry\n"
        "from harness.cli.tables import models\nimport harness.attacks.toolkits.art as kit\n"
        "def make():\n    assert harness.models.registry.ARCHITECTURES is None\n    net = Wrap()\n"
        "    net.threat, net.rows = Threat('l2', 1), models().row_count\n"
        "    net.kit = kit.__name__, id(kit)\n    return net\n",
    )
    spec = harness.threat.__spec__
    net = load(parse("net.py:make"))
    assert type(net.threat) is harness.threat.Threat
    assert net.kit == (art.__name__, id(art))  # also what lies deeper is ours, and is not run again as theirs
    assert net.rows > 0  # our own code, called by theirs, found our own harness.models.registry
    assert harness.threat.__spec__ is spec


def test_imports_within_forward_mean_the_same_as_those_at_the_top() -> None:
    forward = (
        "class Net(nn.Module):\n    def forward(self, x):\n        {}\n        return x.flatten(1) * defenses.GAIN\n"
    )
    write(
        a__defenses="GAIN = 2\n",
        a__net="from torch import nn\n" + forward.format("import defenses"),
        b__pkg__INIT="",
        b__pkg__defenses="import warnings\nwarnings.simplefilter('error')\nGAIN = 3\n",
        b__pkg__net="from torch import nn\n" + forward.format("from . import defenses"),
        c__net="from torch import nn\n" + forward.format("import math, defenses"),
    )
    import warnings

    import defenses as ours

    filters = list(warnings.filters)
    nets = [load(parse(name)) for name in ("a/net.py:Net", "b/pkg/net.py:Net")]
    for _ in range(2):
        for net, gain in zip(nets, (2, 3), strict=True):
            assert torch.equal(Bench.of(net, 9, "cpu").referee(X), X.flatten(1) * gain)
    assert sys.modules["defenses"] is ours
    assert warnings.filters == filters
    with pytest.raises(AttributeError, match="GAIN"):  # who has none of that name is given ours, as before
        load(parse("c/net.py:Net"))(X)


def test_a_file_in_a_package_is_run_as_part_of_it() -> None:
    write(
        repo__zoo__INIT="RUNS = []\nRUNS.append(__name__)\n",
        repo__zoo__vision__INIT="",
        repo__zoo__vision__net="from ..parts.core import Core\nfrom . import width\nimport zoo, repo_tools\n"
        "def make():\n    assert zoo.RUNS == ['zoo'] and __name__ == 'zoo.vision.net'\n"
        "    return repo_tools.wrap(Core(width.WIDTH))\n",
        repo__zoo__vision__width="WIDTH = 6\n",
        repo__zoo__parts__INIT="",
        repo__zoo__parts__core="from torch import nn\nclass Core(nn.Linear):\n"
        "    def __init__(self, n): super().__init__(9, n)\n",
        repo__repo_tools="from torch import nn\ndef wrap(core): return nn.Sequential(nn.Flatten(), core)\n",
        repo__zoo__vision__other="",
    )
    reference = parse("repo/zoo/vision/net.py:make")
    assert load(reference)(X).shape == (2, 6)
    names = [name for name, _ in python_file.sources(Path(reference.place))]
    assert names[0] == "zoo/vision/net.py"
    assert names[1:] == [
        "repo_tools.py",
        "zoo/__init__.py",
        "zoo/parts/__init__.py",
        "zoo/parts/core.py",
        "zoo/vision/__init__.py",
        "zoo/vision/width.py",
    ]
    before = program(reference, nn.Identity())
    for name in names[1:]:
        file = Path("repo", name)
        file.write_text(file.read_text() + "# changed\n")
        assert program(reference, nn.Identity()) != before, name
        before = program(reference, nn.Identity())
    Path("repo/zoo/vision/width.py").write_text("WIDTH = 7\n")
    assert load(reference)(X).shape == (2, 7)  # modules that the file imports are run anew as well


def test_a_package_itself_may_be_named() -> None:
    write(zoo__INIT="from .net import make\n", zoo__net=linear(8))
    assert size("zoo/__init__.py:make") == 8


def test_a_module_of_a_package_may_have_the_name_of_what_it_uses() -> None:
    write(
        zoo__INIT="",
        zoo__click="import click\nfrom torch import nn\nassert click.Command\nmake = nn.Flatten\n",
        zoo__plain="import zoo_helper\nmake = zoo_helper.make\n",
        zoo__zoo_helper=linear(5),
    )
    assert size("zoo/click.py:make") == 9
    assert size("zoo/plain.py:make") == 5  # as scripts in a package's folder do


@pytest.mark.parametrize("name", ["code", "reports", "torchvision", "own-zoo"])
def test_a_package_may_have_any_name(name: str) -> None:
    """Also one of the standard library's, of ours, of an installed package, and one that no statement can import."""
    import code

    import torchvision

    write(**{f"{name}__INIT": "", f"{name}__net": "from .base import make\n", f"{name}__base": linear(5)})
    assert size(f"{name}/net.py:make") == 5
    assert sys.modules["code"] is code
    assert sys.modules["torchvision"] is torchvision


def test_pickled_models_find_their_code(there: Path) -> None:
    write(models__INIT="", models__base="from torch import nn\nclass Net(nn.Flatten): pass\n")
    write(net="import torch\ndef make(): return torch.load('whole.pt', weights_only=False)\n")
    write(save="import torch\nfrom models.base import Net\ntorch.save(Net(), 'whole.pt')\n")
    subprocess.run([sys.executable, "-B", "save.py"], check=True)
    assert type(load(parse("net.py:make"))).__module__ == "models.base"


def test_the_working_directory_counts(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a model was named is part of its reference: workers may stand elsewhere."""
    write(models__INIT="", models__base=linear(4), scripts__net="from models.base import make\n", bystander="")
    reference = parse("scripts/net.py:make")
    made = describe_model(load(reference), reference)
    monkeypatch.chdir("scripts")
    again = pickle.loads(pickle.dumps(reference))
    assert again == reference
    assert describe_model(load(again), again) == made
    with pytest.raises(UserError, match=r"net.py, line 1: ModuleNotFoundError: No module named 'models'"):
        load(parse("net.py:make"))
    for name, changes in {"bystander": False, "models/__init__": True, "models/base": True}.items():
        file = there / f"{name}.py"
        file.write_text(file.read_text() + "# changed\n")
        assert (program(again, nn.Identity()) != made.program) is changes, name
        made = describe_model(load(again), again)


def test_the_identity_of_a_plain_file_is_what_it_was() -> None:
    """Of its bytes, and those beside it that it imports, in the order of their paths; nothing else."""
    files = {"net": "import b_b, b.c\nfrom b import late\nmake = b_b.make\n", "b_b": linear(3)}
    files |= {"b/__init__": "", "b/c": "C = 1\n", "b/late": "from . import c\n"}
    write(**{name.replace("/__init__", "__INIT").replace("/", "__"): text for name, text in files.items()})
    write(unrelated="", defenses="")
    order = ["net", "b/__init__", "b/c", "b/late", "b_b"]
    listed = [(f"{name}.py", files[name].encode()) for name in order]
    digest = hashlib.sha256(repr(listed).encode() + repr(("make", ())).encode()).hexdigest()[:16]
    reference = parse("net.py:make")
    assert program(reference, load(reference)) == digest
    assert program(dataclasses.replace(reference, root=""), nn.Identity()) == digest


def test_what_stands_in_for_missing_packages_is_forgotten() -> None:
    write(
        net="import sys, types\nsys.modules['apex'] = types.ModuleType('apex')\nsys.modules['json'] = None\n"
        "del sys.modules['click']\nfrom torch import nn\n"
        "def make():\n    import apex\n    assert sys.modules['json'] is None\n    return nn.Flatten()\n"
    )
    for _ in range(2):
        load(parse("net.py:make"))
        assert "apex" not in sys.modules
        assert sys.modules["json"] is json


def test_a_stand_in_has_neighbours_too() -> None:
    write(soft="from defenses import GAIN\ndef doubled(x):\n    import late\n    return GAIN * late.same(x)\n")
    write(defenses="GAIN = 2\n", late="def same(x): return x\n", net=linear(2))
    function = find_function("soft.py:doubled")
    assert torch.equal(function(X), 2 * X)
    with pytest.raises(UserError, match=r"unknown function in .*soft.py 'double'; did you mean doubled\?"):
        find_function("soft.py:double")
    Path("bad.py").write_text("import soft\nsoft.none\n")
    with pytest.raises(UserError, match=r"bad.py, line 2: AttributeError"):
        find_function("bad.py:f")
    reference = parse("net.py:make")
    remedy = Remedy(stand_ins=(("front", "soft.py:doubled"),))
    before = program(reference, nn.Identity(), remedy)
    Path("late.py").write_text("def same(x): return x + 0\n")
    assert program(reference, nn.Identity(), remedy) != before


def test_a_file_without_neighbours_counts_as_a_stand_in_as_before() -> None:
    write(soft="def same(x): return x\n", net=linear(2))
    reference = parse("net.py:make")
    listed = [("net.py", Path("net.py").read_bytes())]
    content = repr(listed).encode() + repr(("make", ())).encode() + Path("soft.py").read_bytes()
    remedy = Remedy(stand_ins=(("front", "soft.py:same"),))
    assert program(reference, nn.Identity(), remedy) == hashlib.sha256(content).hexdigest()[:16]


# -- copies ------------------------------------------------------------------------------------------------------------

HELD = {
    "lock": ("threading.Lock()", "cannot pickle '_thread.lock' object"),
    "file": ("sys.__stdout__", "cannot pickle '_io.TextIOWrapper' object"),
    "steps": ("(i for i in range(3))", "cannot pickle 'generator' object"),
    "inner": ("Selfish()", "RuntimeError: only one of me"),
    "shared": ("Same()", "its copy shares weights with it"),
}
NET = """
import os
import sys
import threading
import torch
from torch import nn

class Selfish(nn.Module):
    def __deepcopy__(self, memo):
        raise RuntimeError("only one of me")

class Same(nn.Linear):
    def __init__(self): super().__init__(2, 2)
    def __deepcopy__(self, memo): return self

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
        self.{name} = {value}
    def forward(self, x): return self.body(x)

ONLY = Net()
def make(): return Net()
def only(): return ONLY
def drawn():
    net = Net()
    net.body[1].bias.data[0] = int.from_bytes(os.urandom(3), 'big')
    return net
"""


def tensors(model: nn.Module) -> set[int]:
    return {id(value) for value in (*model.parameters(), *model.buffers())}


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("factory", ["make", "only"])
def test_what_cannot_be_copied_is_loaded_again(name: str, factory: str) -> None:
    """Also by a factory that returns the same module each time, behind normalisation, and within another model."""
    write(net=NET.format(name=name, value=HELD[name][0]))
    plain = load(parse(f"net.py:{factory}"))
    behind = load(parse(f"net.py:{factory}", mean=(0.5,), std=(2.0,)))
    within = nn.Sequential(nn.ReLU(), load(parse(f"net.py:{factory}")))
    for model in (plain, behind, within):
        model.eval().requires_grad_(False)
        next(model.parameters()).requires_grad_(True)
        for copied in (duplicate(model), duplicate(duplicate(model))):
            assert type(copied).__qualname__ == type(model).__qualname__
            assert torch.equal(copied(X), model(X))
            assert not tensors(copied) & tensors(model)
            assert [part.training for part in copied.modules()] == [part.training for part in model.modules()]
            wanted = [parameter.requires_grad for parameter in model.parameters()]
            assert [parameter.requires_grad for parameter in copied.parameters()] == wanted


@pytest.mark.parametrize("name", HELD)
def test_what_can_be_neither_copied_nor_loaded_is_refused(name: str, there: Path) -> None:
    write(net=NET.format(name=name, value=HELD[name][0]))
    space: dict[str, Any] = {"__name__": "users", "__file__": __file__}
    exec(Path("net.py").read_text(), space)

    def refused(model: nn.Module) -> str:
        with pytest.raises(UserError) as caught:
            duplicate(model)
        said = str(caught.value)
        assert "\n" not in said
        assert HELD[name][1] in said
        assert name in said or name == "shared"
        return said

    assert "name the model as FILE.py:FACTORY" in refused(nn.Sequential(space["make"]()))
    changed = load(parse("net.py:make"))
    with torch.no_grad():
        changed.body[1].weight.add_(1)
    for model in (changed, load(parse("net.py:drawn"))):
        assert "has other weights then" in refused(model)
    model = load(parse("net.py:make"))
    Path("net.py").write_text(Path("net.py").read_text() + "\n")
    with pytest.raises(UserError, match="has other code than when it was loaded"):
        duplicate(model)


def test_what_can_be_copied_is_copied_and_not_loaded() -> None:
    write(net=linear(3))
    model = load(parse("net.py:make"))
    with torch.no_grad():
        model[1].weight.add_(1)
    Path("net.py").unlink()
    copied = duplicate(model)
    assert torch.equal(copied(X), model(X))
    assert not tensors(copied) & tensors(model)


class Computed(nn.Module):
    """Holds what was computed from its weights, in ways that a deep copy stumbles over."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, 4))
        self.scaled = self.weight * 2
        self.nested = {"rows": [self.weight[:5]]}

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.scaled + x.flatten(1)[:, :5] @ self.nested["rows"][0]


def test_tensors_with_a_history_are_copied_by_value() -> None:
    model = Computed()
    with pytest.raises(RuntimeError, match="deepcopy protocol"):
        __import__("copy").deepcopy(model)
    copied = duplicate(model)
    grads = []
    for net in (model, copied):
        x = X.clone().requires_grad_(True)
        logits = net(x)
        (grad,) = torch.autograd.grad(logits[:, 1].sum(), x)
        grads.append((logits.detach(), grad))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert copied.scaled.data_ptr() != model.scaled.data_ptr()
    assert model.scaled.grad_fn is not None


# -- the command -------------------------------------------------------------------------------------------------------


def run(*words: str, path: str = f".:{ROOT}") -> subprocess.CompletedProcess[str]:
    import os

    env = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env, check=False)


def shadow(*names: str) -> None:
    for name in names:
        Path(name).mkdir()
        Path(name, "__init__.py").write_text("raise RuntimeError('not to be imported')\n")


def test_folders_of_our_names_do_not_break_the_command() -> None:
    shadow(*gauntlet.OURS)
    done = run("-m", "gauntlet", "list", "suites")
    assert done.returncode == 0, done.stderr
    assert "unseen" in done.stdout


def test_nor_its_workers() -> None:
    shadow(*gauntlet.OURS)
    words = ["train", "--model", "softmax", "--defense", "standard:epochs=1", "--jobs", "1", "--home", "home"]
    done = run("-m", "gauntlet", *words)
    assert done.returncode == 0, done.stderr
    assert len(list(Path("home").glob("models/*/weights.safetensors"))) == 1


def test_a_name_that_is_taken_is_said_in_a_line() -> None:
    Path("reports.py").touch()
    done = run("-c", "import reports; from gauntlet.__main__ import main; main()")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        f"gauntlet: {Path('reports.py').resolve()} has the name of Gauntlet's package 'reports'"
    )
    shadow("suites")
    done = run("-c", "import gauntlet\ntry: gauntlet.evaluate\nexcept ImportError as error: print(error)")
    assert done.stdout.startswith(f"{Path('suites/__init__.py').resolve()} has the name of Gauntlet's package 'suites'")
    done = run("-P", "-c", "import gauntlet; gauntlet.evaluate; import defenses", path=str(ROOT))
    assert done.returncode == 0, done.stderr


def test_the_installed_command_finds_our_packages_beside_a_users(tmp_path: Path) -> None:
    """A folder of theirs with our name comes first on the path; the command knows where it was installed."""
    command = Path(sys.executable).with_name("gauntlet")
    if not command.exists():
        pytest.skip("the command is not installed in this environment")
    for name in ("harness", "suites"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    shown = subprocess.run(
        [command, "list", "suites"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert "quick" in shown.stdout
