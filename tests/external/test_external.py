from __future__ import annotations

import copy
import dataclasses
import json
import logging
import os
import pickle
import random
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness import identity
from harness.datasets.registry import Dataset
from harness.errors import UserError
from harness.external import mlflow_model
from harness.external.external import External, Normalised, bare, describe_model, digest, load, restore
from harness.external.interface import Interface
from harness.external.reference import parse
from harness.judging.proposal import Bench
from harness.trust import inspection
from harness.user_code import python_file
from harness.victims.adaptation import Remedy
from harness.victims.victim import Victim, input_gradient

NET = """
from pathlib import Path

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        last = nn.Linear(hidden, 10)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Dropout(0.5), last)
        self.register_buffer("shift", torch.full((1,), 0.5), persistent=False)
        self.gain = torch.full((1,), 2.0)

    def forward(self, x):
        z = self.body((x - self.shift) * self.gain.to(x.device))
        return z + torch.tensor([0.25], device=x.device) + torch.arange(10).to(x.device) / 100


class Rounded(Net):
    def forward(self, x):
        return super().forward((x * 8).round() / 8)


def build(hidden=16, kind=Net):
    model = kind(hidden)
    model.load_state_dict(torch.load(Path(__file__).with_name("weights.pt"), weights_only=True))
    return model


def rounded():
    return build(kind=Rounded)
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A user's file, with weights beside it."""
    return make(tmp_path)


def make(folder: Path) -> Path:
    torch.manual_seed(7)
    fresh = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 10))
    torch.save({f"body.{name}": value for name, value in fresh.state_dict().items()}, folder / "weights.pt")
    return script(folder, NET)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def script(folder: Path, text: str, name: str = "net.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def known(text: str | Path) -> External:
    """Parse, load, declare."""
    reference = parse(str(text))
    return describe_model(load(reference), reference)


def export(model: nn.Module, path: Path, n: int = 2, **options: Any) -> Path:
    options = {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},)} | options
    torch.export.save(torch.export.export(model, (torch.rand(n, 1, 8, 8),), **options), path)
    return path


def line(action: Callable[[], Any]) -> str:
    """The one line that a user sees."""
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_python_file_is_named_with_its_factory_and_arguments(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(net.parent)
    reference = parse("net.py:build?hidden=16&lr=1e-3&deep=True&name=a%20b&part=layer_1&off=-2", mean=(0.5,), std=(1,))
    assert reference.place == str(net)
    assert dict(reference.arguments) == {
        "hidden": 16,
        "lr": 1e-3,
        "deep": True,
        "name": "a b",
        "part": "layer_1",
        "off": -2,
    }
    assert [type(value) for _, value in reference.arguments] == [bool, int, float, str, int, str]  # by name
    assert reference.name == "net:build"
    assert parse(reference.text, mean=(0.5,), std=(1,)) == reference
    assert pickle.loads(pickle.dumps(reference)) == reference


def test_other_forms_are_named_by_path_and_address(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").touch()
    exported = parse(str(tmp_path / "net.pt2"))
    assert (exported.kind, exported.name, exported.text) == ("export", "net", str(tmp_path / "net.pt2"))
    for text in ("models:/net/3", "models:/net@prod", "runs:/0f/model", "models:/m-0123abc"):
        reference = parse(text)
        assert (reference.kind, reference.text) == ("mlflow", text)
        assert pickle.loads(pickle.dumps(reference)) == reference
    assert parse("models:/net@prod").name == "net@prod"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("none.py:build", "no file none.py"),
        ("none.pt2", "no file none.pt2"),
        ("net.py", "which function of net.py returns the model? write net.py:FACTORY"),
        ("net.py:", "write net.py:FACTORY"),
        ("net.py:a-b", "write net.py:FACTORY"),
        ("net.py:build?hidden", "net.py:build: write options as key=value&key=value, got 'hidden'"),
        ("net.py:build?a=1&a=2", "net.py:build: a is given twice"),
        ("net.py:build?1a=1", "got '1a=1'"),
        (
            "weights.pt",
            "holds weights without their code, or a pickle that runs what it likes; name it beside a function",
        ),
        (
            "weights.pth",
            "FILE.py:FACTORY?state_dict=weights.pth), or export the model with torch.export.save to a .pt2",
        ),
        ("weights.safetensors", "holds weights without their code"),
        ("net", "cannot read 'net' as a model; write FILE.py:FACTORY, FILE.pt2, models:/NAME/VERSION, models:/NAME@"),
        ("s3://bucket/net", "FILE.py:FACTORY, FILE.pt2"),
        ("models:/net", "write models:/NAME/VERSION, models:/NAME@ALIAS or runs:/RUN_ID/PATH"),
        ("models:net/1", "cannot read 'models:net/1'"),
        ("runs:/0123", "cannot read 'runs:/0123'"),
    ],
)
def test_a_name_that_cannot_be_read(net: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.chdir(net.parent)
    assert said in line(lambda: parse(text))


# -- identity ----------------------------------------------------------------------------------------------------------


def test_same_weights_behind_other_code_are_another_model(net: Path) -> None:
    plain, rounded = known(f"{net}:build"), known(f"{net}:rounded")
    assert plain.weights == rounded.weights
    assert identity.key(plain) != identity.key(rounded)
    assert plain.seed_identity() == rounded.seed_identity()
    assert plain.seed_identity() != plain
    called = [plain, rounded, known(f"{net}:build?hidden=16")]
    assert len({identity.key(model) for model in called}) == len({model.program for model in called}) == 3
    net.write_text(NET.replace("round()", "floor()"))
    assert known(f"{net}:rounded").weights == rounded.weights
    assert identity.key(known(f"{net}:rounded")) != identity.key(rounded)


def test_the_place_of_a_file_is_not_part_of_it(net: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("net.py", "weights.pt"):
        (elsewhere / name).write_bytes((net.parent / name).read_bytes())
    assert known(f"{net}:build") == known(f"{elsewhere / 'net.py'}:build")


def test_code_in_other_files_counts(tmp_path: Path) -> None:
    """In a module beside it, in a package, imported by a helper, or only when it is called."""
    script(
        tmp_path,
        "from torch import nn\nfrom lib import tools\ndef build():\n    import late\n    return tools.make()\n",
    )
    script(tmp_path, "from . import deep\ndef make():\n    return deep.make()\n", "lib/tools.py")
    script(tmp_path, "", "lib/__init__.py")
    script(tmp_path, "from torch import nn\ndef make():\n    return nn.Flatten()\n", "lib/deep.py")
    script(tmp_path, "", "late.py")
    script(tmp_path, "", "bystander.py")
    listed = python_file.sources(tmp_path / "net.py")
    assert [name for name, _ in listed] == ["net.py", "late.py", "lib/__init__.py", "lib/deep.py", "lib/tools.py"]
    before = known(f"{tmp_path / 'net.py'}:build")
    for name in ("late.py", "lib/__init__.py", "lib/deep.py"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "# changed\n")
        after = known(f"{tmp_path / 'net.py'}:build")
        assert after.program != before.program, name
        before = after
    (tmp_path / "bystander.py").write_text("# changed\n")
    assert known(f"{tmp_path / 'net.py'}:build") == before


def test_normalisation_is_part_of_it_and_not_of_its_weights(net: Path, x: Tensor) -> None:
    plain = parse(f"{net}:build")
    model = load(plain).eval()
    reference = parse(f"{net}:build", mean=(0.5,), std=(0.25,))
    behind = load(reference).eval()
    assert torch.equal(behind(x), model((x - 0.5) / 0.25))
    declared = describe_model(behind, reference)
    assert declared.weights == digest(model)
    assert declared == dataclasses.replace(describe_model(model, plain), mean=(0.5,), std=(0.25,))
    assert identity.key(declared) != identity.key(describe_model(model, plain))
    assert bare(behind).state_dict().keys() == model.state_dict().keys()


def test_normalisation_by_channel() -> None:
    x = torch.rand(4, 3, 2, 2)
    mean, std = (0.1, 0.2, 0.3), (1.0, 2.0, 4.0)
    expected = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    assert torch.allclose(Normalised(nn.Identity(), mean, std)(x), expected)
    assert not Normalised(nn.Identity().eval(), mean, std).training
    said = line(lambda: Normalised(nn.Identity(), mean, std)(x[:, :1]))  # would be broadcast to three channels
    assert said == "mean has 3 values, the images have 1 channels"
    assert "std has 2 values" in line(lambda: Normalised(nn.Identity(), (0.0,), (1.0, 2.0))(x))


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        ((0.5,), (), "mean and std belong together"),
        ((), (0.5,), "mean and std belong together"),
        ((0.5,), (0.0,), "std must be positive, got 0"),
        ((0.5, 0.5), (1.0, -0.25), "std must be positive, got 1,-0.25"),
        ((float("nan"),), (1.0,), "mean and std must be finite, got (nan,) and (1.0,)"),
    ],
)
def test_normalisation_that_makes_no_sense(
    net: Path, mean: tuple[float, ...], std: tuple[float, ...], said: str
) -> None:
    assert said in line(lambda: parse(f"{net}:build", mean=mean, std=std))
    assert said in line(lambda: External(mean=mean, std=std))


def test_a_declaration_stands_for_a_model_that_is_there(digits: Dataset) -> None:
    model = External(weights="0123456789abcdef", program="fedcba9876543210")
    assert not External.trainable
    assert External().resolve(digits.info) == External()
    assert "is not trained" in line(lambda: model.fit("mlp-32", digits))
    assert "is not built" in line(lambda: model.build("mlp-32", digits.info))
    assert model.label(digits.info) == "external(01234567-fedcba98)"
    others = [
        model,
        dataclasses.replace(model, program=""),
        dataclasses.replace(model, mean=(0.5,), std=(1.0,)),
        dataclasses.replace(model, mean=(0.1234567891,), std=(2.0,)),
        dataclasses.replace(model, mean=(0.1234567892,), std=(2.0,)),
        dataclasses.replace(model, remedy=Remedy(draws=4)),
    ]
    assert len({other.label(digits.info) for other in others}) == len({identity.key(o) for o in others}) == 6
    assert others[-1].remedy.draws == others[-1].seed_identity().remedy.draws == 4


def test_digests_see_every_tensor() -> None:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.bfloat16))
            self.register_buffer("kept", torch.tensor(1))
            self.register_buffer("unkept", torch.zeros(3), persistent=False)

    base = Held()
    changed = [copy.deepcopy(base) for _ in range(5)]
    changed[0].weight.data[1, 1] = 1
    changed[1].kept.add_(1)  # type: ignore[operator]
    changed[2].unkept[0] = 1  # type: ignore[index]
    changed[3].weight.data = changed[3].weight.data.float()
    changed[4].weight.data = changed[4].weight.data.view(4, 1)
    assert digest(base) == digest(copy.deepcopy(base))
    assert len({digest(model) for model in (base, *changed)}) == 6


def test_a_model_that_changes_under_way_is_refused(net: Path, x: Tensor) -> None:
    reference = parse(f"{net}:build")
    declared = describe_model(load(reference), reference, Remedy(draws=2))
    assert torch.equal(restore(reference, declared).eval()(x), load(reference).eval()(x))
    net.write_text(NET + "\n")
    assert "has other code than when the run began" in line(lambda: restore(reference, declared))
    net.write_text(NET)
    state = torch.load(net.parent / "weights.pt", weights_only=True)
    torch.save({name: value + 1 for name, value in state.items()}, net.parent / "weights.pt")
    assert "has other weights than when the run began" in line(lambda: restore(reference, declared))


# -- Python files ------------------------------------------------------------------------------------------------------


def test_a_factory_that_draws_draws_the_same_and_disturbs_nobody(tmp_path: Path) -> None:
    path = script(
        tmp_path, "import random\nfrom torch import nn\ndef build(): return nn.Linear(random.randint(2, 9), 2)\n"
    )
    random.seed(5)
    torch.manual_seed(5)
    first = known(f"{path}:build")
    drawn = random.random(), float(torch.rand(1))
    random.seed(5)
    torch.manual_seed(5)
    assert drawn == (random.random(), float(torch.rand(1)))
    assert known(f"{path}:build") == first


def test_two_models_may_each_have_a_helper_of_one_name(tmp_path: Path) -> None:
    for name, size in (("a", 3), ("b", 5)):
        script(tmp_path / name, "import helper\ndef build(): return helper.make()\n")
        script(tmp_path / name, f"from torch import nn\ndef make(): return nn.Linear({size}, 2)\n", "helper.py")
    modules, path = set(sys.modules), list(sys.path)
    sizes = [load(parse(f"{tmp_path / name / 'net.py'}:build")).in_features for name in ("a", "b", "a")]
    assert sizes == [3, 5, 3]
    assert sys.path == path
    assert "helper" not in sys.modules
    assert {name for name in set(sys.modules) - modules if not name.startswith("gauntlet_external_")} == set()
    assert not list(tmp_path.rglob("__pycache__"))  # the folder is somebody else's


def test_helpers_found_by_a_path_of_the_users_own_are_kept_apart_too(tmp_path: Path) -> None:
    for name, size in (("a", 3), ("b", 5)):
        script(
            tmp_path / name,
            f"import sys\nsys.path.append({str(tmp_path / name / 'lib')!r})\nfrom helper import build\n",
        )
        script(
            tmp_path / name / "lib", f"from torch import nn\ndef build(): return nn.Linear({size}, 2)\n", "helper.py"
        )
    path = list(sys.path)
    sizes = [load(parse(f"{tmp_path / name / 'net.py'}:build")).in_features for name in ("a", "b")]
    assert sizes == [3, 5]
    assert sys.path == path


def test_a_file_is_run_once_until_it_changes(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        "from torch import nn\nMADE = []\ndef build():\n    MADE.append(1)\n    return nn.Linear(len(MADE), 2)\n",
    )
    text = f"{path}:build"
    assert [load(parse(text)).in_features for _ in range(2)] == [1, 2]
    path.write_text(path.read_text().replace("len(MADE)", "len(MADE) + 6"))
    assert load(parse(text)).in_features == 7


@pytest.mark.parametrize(
    ("text", "factory", "said"),
    [
        ("import torch\n\n1 / 0\n", "build", "{path}, line 3: ZeroDivisionError: division by zero"),
        ("def build(:\n", "build", "{path}, line 1: SyntaxError: invalid syntax"),
        ("def build():\n    x = 1\n    return other()\n", "build", "{path}, line 3: NameError: name 'other' is not"),
        ("import nowhere\n", "build", "{path}, line 1: ModuleNotFoundError: No module named 'nowhere'"),
        ("import sys\nsys.exit(3)\n", "build", "{path}, line 2: SystemExit: 3"),
        ("def build():\n    raise OSError\n", "build", "{path}, line 2: OSError"),
        ("def build():\n    raise ValueError('a\\nb')\n", "build", "{path}, line 2: ValueError: a b"),
        (
            "import torch\ndef make(): pass\nclass Net: pass\n",
            "build",
            "unknown factory in {path} 'build'; choose from make, Net",
        ),
        ("def buildd(): pass\n", "build", "did you mean buildd?"),
        ("from math import sqrt\nbuild = 3\n", "build", "choose from sqrt"),
        ("def build(): return {'a': 1}\n", "build", "{path}:build returned dict, expected a torch.nn.Module"),
        ("def build(): pass\n", "build", "{path}:build returned NoneType, expected a torch.nn.Module"),
        ("from torch import nn\nbuild = nn.Linear(3, 3)\n", "build", "build in {path} is a model; name a function"),
        (
            "import torch\nbuild = torch.nn.Linear\n",
            "build",
            "missing a required argument: 'in_features'; arguments are given as build?NAME=VALUE",
        ),
        (
            "from torch import nn\ndef build(): return nn.LazyLinear(3)\n",
            "build",
            "{path}:build has parameters without a size",
        ),
    ],
)
def test_what_is_wrong_in_a_users_file_is_said_in_a_line(tmp_path: Path, text: str, factory: str, said: str) -> None:
    path = script(tmp_path, text)
    before = set(sys.modules)
    assert said.format(path=path) in line(lambda: load(parse(f"{path}:{factory}")))
    if "line" in said and "def build():" not in text:
        assert not {name for name in set(sys.modules) - before if name.startswith("gauntlet_")}  # not half-run


def test_the_line_is_the_last_one_of_theirs(tmp_path: Path) -> None:
    path = script(tmp_path, "import helper\ndef build():\n    return helper.make()\n")
    helper = script(tmp_path, "import torch\ndef make():\n    return torch.nn.Linear('a', 1)\n", "helper.py")
    assert line(lambda: load(parse(f"{path}:build"))).startswith(f"{helper}, line 3: TypeError: ")
    assert "unexpected keyword argument 'depth'" in line(lambda: load(parse(f"{path}:build?depth=3")))
    helper.write_text("def make(:\n")
    assert line(lambda: load(parse(f"{path}:build"))).startswith(f"{helper}, line 1: SyntaxError: ")


def test_another_process_loads_the_same_model(net: Path, x: Tensor) -> None:
    reference = parse(f"{net}:rounded", mean=(0.5,), std=(0.5,))
    declared = describe_model(load(reference), reference)
    code = (
        "import json, pickle, sys, torch\n"
        "from harness.external.external import describe_model, load\n"
        "torch.set_num_threads(1)\n"
        "reference = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "model = load(reference).eval()\n"
        "x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(3))\n"
        "made = describe_model(model, reference)\n"
        "print(json.dumps([made.weights, made.program, model(x).tolist()]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, pickle.dumps(reference).hex()],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    weights, program, logits = json.loads(done.stdout)
    assert (weights, program) == (declared.weights, declared.program)
    assert torch.equal(torch.tensor(logits), load(reference).eval()(x))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_scripted_program_counts_with_its_code(tmp_path: Path, x: Tensor) -> None:
    text = "import torch\nfrom pathlib import Path\n"
    text += "def build(): return torch.jit.load(str(Path(__file__).with_name('net.pt')))\n"

    class Plain(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1))

    class Bounded(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).clamp(-1, 1)

    torch.manual_seed(0)
    plain = Plain(64, 10)
    bounded = Bounded(64, 10)
    bounded.load_state_dict(plain.state_dict())
    made = []
    for model in (plain, bounded):
        torch.jit.trace(model, (torch.rand(2, 1, 8, 8),)).save(str(tmp_path / "net.pt"))
        reference = parse(f"{script(tmp_path, text)}:build")
        loaded = load(reference)
        made.append(describe_model(loaded, reference))
        assert made[-1] == describe_model(load(reference), reference)
        assert made[-1].weights == digest(model)
        victim = Victim(loaded, classes=10)
        with victim.guarded():
            assert torch.equal(victim(x), model(x))
    assert made[0].weights == made[1].weights
    assert made[0].program != made[1].program


# -- exported programs -------------------------------------------------------------------------------------------------


def test_an_exported_program_behaves_as_the_model_it_was(net: Path, x: Tensor) -> None:
    reference = parse(f"{net}:build")
    model = load(reference).eval()
    exported = parse(str(export(model, net.with_suffix(".pt2"))))
    program = load(exported)
    assert describe_model(program, exported).weights == digest(model)
    assert identity.key(describe_model(program, exported)) != identity.key(describe_model(model, reference))
    assert describe_model(program, exported).seed_identity() == describe_model(model, reference).seed_identity()
    victims = [Victim(m, classes=10) for m in (model, program)]
    victims.append(Victim(copy.deepcopy(program).train().eval(), classes=10))
    for n in (1, 2, 5):
        with victims[1].guarded():
            values = [input_gradient(victim, x[:n], lambda z: z[:, 3]) for victim in victims]
        for value in values[1:]:
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(value, values[0], strict=True))
    assert not any(p.requires_grad for p in victims[1].parameters())
    assert any(p.requires_grad for p in program.parameters())
    assert torch.equal(Bench.of(program, 10, "cpu").referee.predict(x), model(x).argmax(1))


def test_an_exported_program_moves_with_its_constants(net: Path, x: Tensor) -> None:
    """To the device without memory, which stands for any: one tensor left behind and it raises."""
    program = load(parse(str(export(load(parse(f"{net}:build")).eval(), net.with_suffix(".pt2")))))
    moved = copy.deepcopy(program).to("meta")
    assert moved(x.to("meta")).device.type == "meta"
    assert moved(x.to("meta")).shape == (5, 10)
    assert program.eval()(x).device.type == "cpu"


def test_two_programs_of_the_same_weights_are_two_models(net: Path) -> None:
    made = []
    for name in ("build", "rounded"):
        model = load(parse(f"{net}:{name}")).eval()
        path = export(model, net.with_name(f"{name}.pt2"))
        made.append(known(path))
        assert known(path) == made[-1]
    constant = load(parse(f"{net}:build")).eval()
    constant.gain.fill_(3)  # neither parameter nor buffer
    made.append(known(export(constant, net.with_name("constant.pt2"))))
    assert len({model.weights for model in made}) == 1
    assert len({model.program for model in made}) == len({identity.key(model) for model in made}) == 3
    again = load(parse(f"{net}:build")).eval()
    assert known(export(again, net.with_name("again.pt2"))) == made[0]


def test_exported_programs_that_cannot_be_judged(net: Path) -> None:
    model, path = load(parse(f"{net}:build")), net.with_suffix(".pt2")

    def refused() -> str:
        said = line(lambda: load(parse(str(path))))
        assert said.startswith(str(path))
        return said

    export(model, path)
    assert "was exported in train mode (aten::dropout); call eval() on the model and export again" in refused()
    export(nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()), path)
    assert "was exported in train mode (aten::batch_norm)" in refused()
    model.eval()
    torch.export.save(torch.export.export(Two(), (torch.rand(2, 1), torch.rand(2, 1))), path)
    assert "takes 2 inputs, expected one batch of images" in refused()
    path.write_bytes(b"none")
    assert "is no program that torch.export.save wrote (" in refused()
    torch.save({}, path)
    assert "is no program that torch.export.save wrote (" in refused()


@pytest.mark.parametrize(
    ("shapes", "interface"),
    [
        (None, Interface(batch=2, fixed=True)),
        (({0: torch.export.Dim("batch", max=64)},), Interface()),
        (({0: torch.export.Dim("batch", max=9)},), Interface(batch=8)),
    ],
)
def test_an_exported_program_of_some_batch_sizes_is_served(
    shapes: Any, interface: Interface, net: Path, digits: Dataset
) -> None:
    path = net.with_suffix(".pt2")
    export(load(parse(f"{net}:build")).eval(), path, dynamic_shapes=shapes)
    model = load(parse(str(path)))
    _, (x, y) = digits.test_sample(150)
    found = inspection.inspect(model, x, y, 10)
    assert found.interface == interface
    expected = load(parse(f"{net}:build")).eval()(x)
    torch.testing.assert_close(Victim(found.interface.around(model))(x), expected)


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def test_the_example_works(tmp_path: Path) -> None:
    file = Path(__file__).parents[2] / "examples" / "my_model.py"
    trained = runpy.run_path(str(file))["Net"](4)
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    model = load(parse(f"{file}:build?weights={tmp_path / 'weights.pt'}&width=4"))
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(model(x), trained(x))
    assert not model.training
    assert "RuntimeError: Error(s) in loading state_dict for Net: size mismatch" in line(
        lambda: load(parse(f"{file}:build?weights={tmp_path / 'weights.pt'}&width=5"))
    )


# -- looks at a model --------------------------------------------------------------------------------------------------


def test_fingerprints_see_what_files_do_not_show(tmp_path: Path) -> None:
    text = (
        "import json\nfrom pathlib import Path\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.body = nn.Linear(64, 10)\n"
        "        self.levels = json.loads(Path(__file__).with_name('settings.json').read_text())\n"
        "    def forward(self, x): return self.body((x * self.levels).round().flatten(1) / self.levels)\n"
    )
    reference = parse(f"{script(tmp_path, text)}:Net")
    seen = []
    for levels in (8, 16, 8):
        (tmp_path / "settings.json").write_text(str(levels))
        model = load(reference)
        before = digest(model), model.training
        seen.append((describe_model(model, reference), inspection.fingerprint(model, (1, 8, 8), 10)))
        assert before == (digest(model), model.training)
    assert seen[0] == seen[2]
    assert seen[0][0] == seen[1][0]
    assert seen[0][1] != seen[1][1]


def test_fingerprints_see_gradients_and_the_lack_of_them(trained: nn.Module) -> None:
    class Masked(nn.Module):
        def __init__(self, way: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.inner, self.way = trained, way

        def forward(self, x: Tensor) -> Tensor:
            return self.way(self.inner(x))

    ways = (lambda z: z, lambda z: z.detach(), lambda z: z.detach() + 0 * z, lambda z: z * 1.5)
    prints = [inspection.fingerprint(Masked(way), (1, 8, 8), 10) for way in ways]
    assert len(set(prints)) == 4
    assert prints[0] == inspection.fingerprint(trained, (1, 8, 8), 10)
    draws = Masked(lambda z: z + torch.rand_like(z))
    torch.manual_seed(1)
    first, drawn = inspection.fingerprint(draws, (1, 8, 8), 10), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    assert inspection.fingerprint(draws, (1, 8, 8), 10) == first
    with torch.no_grad():
        assert inspection.fingerprint(trained, (1, 8, 8), 10) == prints[0]


class Through(nn.Module):
    """A model with something done to its images or its logits, or instead of both."""

    def __init__(self, model: nn.Module, do: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.model, self.do = model, do
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        return self.do(self.model, x)


def looked_at(digits: Dataset, model: nn.Module, y: Callable[[Tensor], Tensor] = lambda y: y) -> inspection.Inspection:
    _, (x, labels) = digits.test_sample(100)
    return inspection.inspect(model, x, y(labels), 10)


def test_a_sound_model_is_let_in(digits: Dataset, trained: nn.Module) -> None:
    _, (x, y) = digits.test_sample(100)
    model = copy.deepcopy(trained).train()
    before = digest(model)
    found = looked_at(digits, model)
    assert (found.notes, found.interface, found.remedy) == ((), Interface(), Remedy())
    answers = found.facts.answers
    assert len(answers) == 7  # ways of asking
    assert all(seen.differ == seen.labels == 0 for seen in answers.values())
    assert found.facts.model_dump(exclude={"answers", "clean_accuracy", "passes"}) == {
        "outputs": "logits",
        "dtype": "float32",
        "train_mode": True,
        "images": 64,
        "changed_labels": 0,
        "writes": False,
        "gradients": True,
        "gradient_fault": "",
    }
    assert found.facts.clean_accuracy == pytest.approx(float((trained(x).argmax(1) == y).double().mean()), abs=0.05)
    assert found.facts.passes < 900
    assert model.training
    assert digest(model) == before
    assert not looked_at(digits, trained).facts.train_mode


def test_facts_of_a_model(digits: Dataset, trained: nn.Module) -> None:
    def seen(do: Callable[[nn.Module, Tensor], Any]) -> inspection.Inspection:
        return looked_at(digits, Through(trained, do))

    assert seen(lambda f, x: f(x).softmax(1)).facts.outputs == "probabilities"
    assert seen(lambda f, x: f(x).log_softmax(1)).facts.outputs == "log-probabilities"
    assert seen(lambda f, x: f(x).sigmoid()).facts.outputs == "logits"
    random = seen(lambda f, x: f(x + 0.5 * torch.randn_like(x)))
    assert 0 < random.facts.changed_labels <= 16
    assert random.remedy.draws == 16
    assert random.facts.answers == {}
    doubled = looked_at(digits, Through(copy.deepcopy(trained).double(), lambda f, x: f(x.double())))
    assert doubled.notes == ("the model holds float32, float64 and returns float64; images are float32",)
    shifted = looked_at(digits, trained, lambda y: (y + 1) % 10)
    assert "with its classes in another order the model would be right on" in shifted.notes[0]
    constant = seen(lambda f, x: torch.eye(10)[torch.zeros(len(x), dtype=torch.int64)])
    assert any(
        "no better than chance: are labels and normalisation (mean, std) those" in note for note in constant.notes
    )


@pytest.mark.parametrize(
    ("do", "said"),
    [
        (lambda f, x: f(x)[:, :5], "the model returned 5 logits, the data set has 10 classes"),
        (lambda f, x: f(x).argmax(1), "the model returned shape (16,) for 16 images"),
        (lambda f, x: f(x).squeeze(0), "the model returned shape (10,) for 1 images"),  # breaks for one image alone
        (lambda f, x: (f(x), f(x)), "the model returned tuple, expected a tensor of logits (N, 10): which of [0], [1]"),
        (lambda f, x: f(x).round().long(), "the model returned torch.int64, expected floating-point logits"),
        (lambda f, x: f(x) / 0, "the model returned NaN or infinite logits for 16 of 16 images"),
        (
            lambda f, x: f(x[..., :-1]),
            "the model does not take 16 images of shape (1, 8, 8): RuntimeError: addmm: mat1",
        ),
        (lambda f, x: f(x.double()), "the model does not take 16 images of shape (1, 8, 8): RuntimeError: "),
        (lambda f, x: f(x) - f(x).mean(0), "the model answers 4 of 4 images otherwise alone"),
    ],
    ids=["classes", "labels", "squeezed", "tuple", "integers", "infinite", "size", "raises", "batch"],
)
def test_models_that_cannot_be_judged(
    digits: Dataset, trained: nn.Module, do: Callable[[nn.Module, Tensor], Any], said: str
) -> None:
    assert said in line(lambda: looked_at(digits, Through(trained, do)))


def test_more_models_that_cannot_be_judged(digits: Dataset, trained: nn.Module) -> None:
    for dtype in (torch.float64, torch.float16):
        name = str(dtype).removeprefix("torch.")
        said = line(lambda dtype=dtype: looked_at(digits, copy.deepcopy(trained).to(dtype)))
        assert said == f"the model computes in {name}, images are float32: call its .float() first"

    class Counting(Through):
        def forward(self, x: Tensor) -> Tensor:
            self.seen.add_(1)  # type: ignore[operator]
            return super().forward(x)

    assert "the model changes its own buffers" in line(lambda: looked_at(digits, Counting(trained, lambda f, x: f(x))))

    class Selfish(Through):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("only one of me")

    said = line(lambda: looked_at(digits, Selfish(trained, lambda f, x: f(x))))
    assert "the model cannot be copied, and attack and referee need one each: it is a Selfish (RuntimeError: " in said


# -- MLflow ------------------------------------------------------------------------------------------------------------


def test_mlflow_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "name it with --tracking-uri" in line(lambda: parse("models:/net/1", fetched=tmp_path / "fetched"))
    store = f"sqlite:///{tmp_path / 'none.db'}"
    said = line(lambda: parse("models:/net/1", fetched=tmp_path / "fetched", tracking_uri=store))
    assert said == f"cannot fetch models:/net/1: there is no tracking store {store}"
    assert "models:/net/1 was not fetched yet" in line(lambda: load(parse("models:/net/1")))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, dict[str, str]]]:
    """One model in a store, registered: exported as version 1, pickled with its code as version 2."""
    folder = tmp_path_factory.mktemp("mlflow")
    make(folder)
    before = dict(os.environ)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    store = f"sqlite:///{folder / 'store.db'}"
    with mlflow_model._mlflow(store) as mlflow:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        experiment = mlflow.create_experiment("models", artifact_location=(folder / "artifacts").as_uri())
        sys.path.insert(0, str(folder))
        try:
            import net  # type: ignore[import-not-found]  # as the user's own training script would

            with mlflow.start_run(experiment_id=experiment) as run:
                plain = {"pip_requirements": ["torch"], "registered_model_name": "net"}
                example = torch.rand(2, 1, 8, 8).numpy()
                mlflow.pytorch.log_model(net.build().eval(), name="exported", input_example=example, **plain)
                pickled = {"serialization_format": "pickle", "code_paths": [str(folder / "net.py")]}
                mlflow.pytorch.log_model(net.build().eval(), name="pickled", **pickled, **plain)
                bare_pickle = {"serialization_format": "pickle", "pip_requirements": ["torch"]}
                orphan = mlflow.pytorch.log_model(net.build(), name="orphan", **bare_pickle)
                (folder / "MLmodel").write_text("flavors:\n  sklearn:\n    data: model.pkl\n")
                mlflow.log_artifact(str(folder / "MLmodel"), "other")
            mlflow.MlflowClient().set_registered_model_alias("net", "prod", "2")
        finally:
            sys.path.remove(str(folder))
            sys.modules.pop("net", None)
    yield folder, store, {"run": run.info.run_id, "orphan": orphan.model_id}
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.slow
def test_three_forms_of_one_model(logged: tuple[Path, str, dict[str, str]], tmp_path: Path, x: Tensor) -> None:
    folder, store, ids = logged
    fetched = tmp_path / "fetched"
    model = load(parse(f"{folder / 'net.py'}:build")).eval()
    export(model, tmp_path / "net.pt2")
    references = {
        "python": parse(f"{folder / 'net.py'}:build"),
        "export": parse(str(tmp_path / "net.pt2")),
        "exported": parse("models:/net/1", fetched=fetched, tracking_uri=store),
        "run": parse(f"runs:/{ids['run']}/exported", fetched=fetched, tracking_uri=store),
        "pickled": parse("models:/net@prod", fetched=fetched, tracking_uri=store),
    }
    before = set(sys.modules), list(sys.path)
    made = {}
    for name, reference in references.items():
        loaded = load(reference)
        made[name] = describe_model(loaded, reference)
        victim = Victim(loaded, classes=10)
        assert torch.equal(victim(x), model(x)), name
        assert restore(reference, made[name]) is not None
    assert {one.weights for one in made.values()} == {digest(model)}
    assert len({one.seed_identity() for one in made.values()}) == 1
    assert made["export"] == made["exported"] == made["run"]  # one graph
    assert len({identity.key(one) for one in made.values()}) == 3
    assert "net" not in sys.modules
    assert sys.path == before[1]
    parse("models:/net/1", fetched=fetched, tracking_uri=store)  # again
    assert sorted(folder.name for folder in fetched.iterdir()) == sorted(
        {Path(references[name].folder).name for name in ("exported", "run", "pickled")}
    )


@pytest.mark.slow
def test_mlflow_leaves_no_trace(
    logged: tuple[Path, str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another store that MLflow is set to is neither asked nor changed, and none is made where the user stands."""
    import mlflow

    _, store, _ = logged
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    reference = parse("models:/net/1", fetched=tmp_path / "fetched", tracking_uri=store)
    assert os.environ["MLFLOW_TRACKING_URI"] == mlflow.get_tracking_uri() == "http://127.0.0.1:9"
    mlflow.set_tracking_uri(None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    load(reference)
    assert [path.name for path in tmp_path.iterdir()] == ["fetched"]


@pytest.mark.slow
def test_models_that_mlflow_cannot_give(logged: tuple[Path, str, dict[str, str]], tmp_path: Path) -> None:
    _, store, ids = logged

    def refused(text: str, store: str = store) -> str:
        return line(lambda: load(parse(text, fetched=tmp_path / "fetched", tracking_uri=store)))

    assert "cannot fetch models:/net/7 from sqlite:" in refused("models:/net/7")
    assert "Model Version (name=net, version=7) not found" in refused("models:/net/7")
    assert "Registered Model with name=none not found" in refused("models:/none/1")
    assert "alias nobody" in refused("models:/net@nobody")
    assert "cannot fetch runs:/0123/model" in refused("runs:/0123/model")
    assert "cannot fetch runs:/" in refused(f"runs:/{ids['run']}/nothing")
    said = refused(f"runs:/{ids['run']}/other")
    assert said == f"runs:/{ids['run']}/other is no PyTorch model; it can be loaded as sklearn"
    assert "cannot fetch models:/net/1 from http://127.0.0.1:9 (" in refused("models:/net/1", "http://127.0.0.1:9")
    said = refused(f"models:/{ids['orphan']}")
    assert said.endswith("cannot be loaded (ModuleNotFoundError: No module named 'net'); log it with code_paths=[...]")
    assert [path for path in (tmp_path / "fetched").iterdir() if path.name.endswith(".part")] == []
