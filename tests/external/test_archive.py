"""A ``.pt2`` with code in it executes nothing, and every program that torch.export writes of a model is read."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.external.exported_program import from_export
from tests.helpers.commands import call, complaint

MARK = "executed"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(64, 10)
        self.register_buffer("mean", torch.tensor(0.5))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        x = torch.max_pool2d(torch.relu(self.norm(self.conv(x - self.mean))), 2)
        return self.head(torch.cat([x, x])[:batch].reshape(batch, -1))  # type: ignore[no-any-return]


def export(path: Path, model: nn.Module, x: object) -> Path:
    shapes = ({0: torch.export.Dim("batch", min=1, max=512)},)
    torch.export.save(torch.export.export(model.eval(), (x,), dynamic_shapes=shapes), path)
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return export(tmp_path_factory.mktemp("program") / "net.pt2", Net(), torch.rand(4, 1, 8, 8))


class Payload:
    """What runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def altered(source: Path, target: Path, change: Callable[[str, bytes], bytes | None], **more: bytes) -> Path:
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as after:
        top = before.namelist()[0].partition("/")[0]
        for name in before.namelist():
            content = change(name.removeprefix(f"{top}/"), before.read(name))
            if content is not None:
                after.writestr(name, content)
        for name, content in more.items():
            after.writestr(f"{top}/{name}", content)
    return target


def edited(edit: Callable[[Any], None], file: str = "models/model.json") -> Callable[[str, bytes], bytes]:
    def change(name: str, content: bytes) -> bytes:
        if name != file:
            return content
        value = json.loads(content)
        edit(value)
        return json.dumps(value).encode()

    return change


def test_what_torch_writes_is_read(program: Path) -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.rand(7, 1, 8, 8)
    assert torch.equal(from_export(program)(x), model(x))


@pytest.mark.parametrize("protocol", ["pickle", "torch"])
def test_a_pickle_in_place_of_the_sample_inputs_executes_nothing(program: Path, tmp_path: Path, protocol: str) -> None:
    mark, evil = tmp_path / MARK, tmp_path / "evil.pt2"
    if protocol == "pickle":
        content = pickle.dumps(Payload(mark))
    else:
        torch.save(((Payload(mark),), {}), tmp_path / "inputs.pt")
        content = (tmp_path / "inputs.pt").read_bytes()
    altered(program, evil, lambda name, old: content if name == "data/sample_inputs/model.pt" else old)
    line = complaint(call("plan", "quick", "--victim", evil, "--home", tmp_path / "home"))
    assert "data/sample_inputs/model.pt in it is a pickle of more than tensors, which may run code" in line
    assert not mark.exists()


def test_the_same_file_runs_its_pickle_when_torch_reads_it(program: Path, tmp_path: Path) -> None:
    """Else the test above could not fail."""
    mark, evil = tmp_path / MARK, tmp_path / "evil.pt2"
    torch.save(((Payload(mark),), {}), tmp_path / "inputs.pt")
    content = (tmp_path / "inputs.pt").read_bytes()
    altered(program, evil, lambda name, old: content if name == "data/sample_inputs/model.pt" else old)
    torch.export.load(evil)
    assert mark.exists()


def _weight(config: Any) -> None:
    next(iter(config["config"].values()))["use_pickle"] = True


def _custom(config: Any) -> None:
    config["config"]["mine"] = {"path_name": "custom_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}


def _target(program: Any) -> None:
    program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"


def _loader(program: Any) -> None:
    program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.load_library"


def _name(program: Any) -> None:
    program["graph_module"]["graph"]["inputs"][0]["as_tensor"]["name"] = "x=__import__('os').system('true')"


def _size(program: Any) -> None:
    values = program["graph_module"]["graph"]["tensor_values"]
    size = next(size for value in values.values() for size in value["sizes"] if "as_expr" in size)
    size["as_expr"]["expr_str"] = "().__class__.__base__.__subclasses__()"


@pytest.mark.parametrize(
    ("change", "more", "complaint"),
    [
        (edited(_weight, "data/weights/model_weights_config.json"), {}, "in it is a pickle, which may run code"),
        (edited(_custom, "data/constants/model_constants_config.json"), {}, "mine in it is a pickle"),
        (edited(_target), {}, "it calls 'torch.os.system', which is no operator"),
        (edited(_loader), {}, "it calls 'torch.ops.load_library'"),
        (edited(_name), {}, "a name in it is .*which may run code"),
        (edited(_size), {}, "a size in it is .*which may run code"),
        (lambda _, old: old, {"data/aotinductor/model/a.so": b""}, "a.so in it may run code"),
        (lambda _, old: old, {"data/weights/model.pt": b""}, "model.pt in it is a pickle"),
        (
            lambda name, old: None if name.startswith("models/") else old,
            {"serialized_state_dict.pt": b""},
            "has to be exported again",
        ),
    ],
)
def test_what_would_run_code_is_refused(
    program: Path, tmp_path: Path, change: Callable[[str, bytes], bytes], more: dict[str, bytes], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        from_export(altered(program, tmp_path / "evil.pt2", change, **more))


def test_torch_load_is_as_it_was_afterwards(program: Path) -> None:
    before = torch.load
    from_export(program)
    assert torch.load is before
