"""Models by name. Libraries are real; what a hub would send is made here, since nothing can be fetched."""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.errors import UserError
from harness.external import hubs
from harness.external.external import Normalised, describe_model, digest, load, restore, words
from harness.external.reference import ModelReference, parse
from tests.helpers.commands import call, complaint

NET = "squeezenet1_1"
FACTORY = """
from torch import nn
def build(width: int = 4):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
"""


@pytest.fixture
def torch_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A cache of torchvision's weights that holds a network's, with random values."""
    import torchvision

    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(NET)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    file = Path(torchvision.models.get_model_weights(NET).DEFAULT.url).name
    torch.save(model.state_dict(), tmp_path / "hub" / "checkpoints" / file)
    return model.eval()


def logits(reference: ModelReference, x: torch.Tensor) -> torch.Tensor:
    out = load(reference)(x)
    return out if isinstance(out, torch.Tensor) else out.logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("text", [f"torchvision:{NET}", f"torchvision:{NET}:IMAGENET1K_V1"])
def test_torchvision_is_normalised_as_its_weights_say(text: str, torch_hub: nn.Module) -> None:
    reference, x = parse(text), torch.rand(2, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = torch_hub((x - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        assert torch.allclose(logits(reference, x), expected, atol=1e-6)
        assert torch.allclose(logits(dataclasses.replace(reference, mean=(0.0,), std=(1.0,)), x), torch_hub(x))
    model = load(reference)
    assert isinstance(model, Normalised)
    declared = describe_model(model, reference)
    assert declared.weights == digest(torch_hub)
    assert words(declared)[0] == text
    assert ModelReference(**json.loads(json.dumps(reference.to_json()))).text == text
    assert isinstance(restore(reference, declared), nn.Module)
    assert (reference.name, declared.label(None)[: len(reference.file)]) == (text, reference.file)  # type: ignore[arg-type]


def test_weights_from_a_file_take_the_place_of_the_hubs(tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(1)
    own = torchvision.models.get_model(NET, num_classes=3)
    file = tmp_path / "mine.pt"
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in own.state_dict().items()}}, file)
    model = load(parse(f"torchvision:{NET}?num_classes=3&state_dict={file}"))
    assert digest(model.inner) == digest(own)  # type: ignore[arg-type]
    assert not model.training


def test_what_a_file_of_weights_may_not_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(FACTORY)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 10))
    torch.save(model.state_dict(), "good.pt")
    reference = parse("net.py:build?state_dict=good.pt")
    assert reference.text == f"{tmp_path}/net.py:build?state_dict={tmp_path}/good.pt"
    assert digest(load(reference)) == digest(model)
    Path("elsewhere").mkdir()
    Path("good.pt").rename("elsewhere/good.pt")
    moved = parse("net.py:build?state_dict=elsewhere/good.pt")
    assert describe_model(load(moved), moved) == describe_model(model, reference)
    torch.save(model, "whole.pt")
    torch.save(nn.Linear(3, 3).state_dict(), "other.pt")
    torch.save([torch.zeros(3)], "list.pt")
    Path("evil.pt").write_bytes(pickle.dumps(Evil()))
    for name, said in {
        "whole.pt": "holds no tensors that can be read without running code",
        "evil.pt": "holds no tensors that can be read without running code",
        "other.pt": "holds weights of another model: it lacks 1.bias, 1.weight, 3.bias and 1 more",
        "list.pt": "holds no state dict, a mapping of names to tensors",
        "none.pt": "no file none.pt",
    }.items():
        with pytest.raises(UserError, match=said):
            load(parse(f"net.py:build?state_dict={name}"))
    with pytest.raises(UserError, match=r"has in another shape 1\.bias, 1\.weight, 3\.weight"):
        load(parse("net.py:build?width=8&state_dict=elsewhere/good.pt"))


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return exec, ("raise AssertionError('executed')",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("torchvision:resnet1", "unknown torchvision model 'resnet1'; did you mean resnet18"),
        (f"torchvision:{NET}:V3", f"unknown weights of {NET} 'V3'; .*IMAGENET1K_V1"),
        ("torchvision:", "which model of torchvision"),
        ("onnx:nowhere.onnx", "no file nowhere.onnx"),
    ],
)
def test_names_that_are_none(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load(parse(text))


def test_weights_that_cannot_be_fetched_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: Any, **__: Any) -> Any:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "empty"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", nowhere)
    line = complaint(call("plan", "quick", "--victim", f"torchvision:{NET}", "--home", tmp_path))
    assert f"torchvision:{NET} cannot be loaded (OSError: Network is unreachable)" in line
    assert line.endswith(f"with none: torchvision:{NET}?pretrained=false")
    model = load(parse(f"torchvision:{NET}?pretrained=false"))
    assert digest(model.inner) == digest(load(parse(f"torchvision:{NET}?pretrained=false")).inner)  # type: ignore[arg-type]


@pytest.mark.parametrize("hub", ["timm", "hf", "onnx", "robustbench"])
def test_a_library_that_is_not_there_names_the_extra(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = {"hf": "transformers", "onnx": "onnx2torch", "robustbench": "robustbench.utils"}.get(hub, hub)
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "net").touch()
    place = f"onnx:{tmp_path}/net" if hub == "onnx" else f"{hub}:net"
    with pytest.raises(UserError, match=rf"is not installed .*pip install 'gauntlet-bench\[{hub}\]'"):
        hubs.load(place, {})


def test_robustbench_is_asked_for_by_its_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package pins old versions: a stand-in takes its place, the words it is called with are what is tested."""
    asked: dict[str, Any] = {}

    def load_model(**given: Any) -> nn.Module:
        asked.update(given)
        return nn.Linear(3, 10)

    package = types.ModuleType("robustbench")
    package.utils = types.ModuleType("robustbench.utils")  # type: ignore[attr-defined]
    package.utils.load_model = load_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "robustbench", package)
    monkeypatch.setitem(sys.modules, "robustbench.utils", package.utils)
    model = load(parse("robustbench:Carmon2019Unlabeled?dataset=cifar10&threat_model=Linf"))
    assert asked == {"model_name": "Carmon2019Unlabeled", "dataset": "cifar10", "threat_model": "Linf"}
    assert isinstance(model, nn.Linear)


def test_timm_normalises_as_its_configuration_says(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    own = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32).eval()
    torch.save(own.state_dict(), tmp_path / "own.pt")
    reference = parse(f"timm:vit_tiny_patch16_224?num_classes=3&img_size=32&state_dict={tmp_path}/own.pt")
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(logits(reference, x), own((x - 0.5) / 0.5), atol=1e-6)
    with pytest.raises(UserError, match="unknown timm model 'resnet1888'"):
        load(parse("timm:resnet1888"))


def test_hugging_face_models_are_read_from_a_folder_too(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=3)
    own = transformers.ViTForImageClassification(config).eval()
    own.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "size": 32})
    )
    x = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(logits(parse(f"hf:{tmp_path}"), x), own((x - mean) / std).logits, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the exporter that needs no other package
def test_onnx_files_are_read(tmp_path: Path) -> None:
    pytest.importorskip("onnx2torch")
    torch.manual_seed(0)
    own = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10)).eval()
    x, path = torch.rand(2, 1, 8, 8), tmp_path / "net.onnx"
    torch.onnx.export(own, (x,), str(path), dynamo=False, dynamic_axes={"input": {0: "n"}}, input_names=["input"])
    reference = parse(f"onnx:{path}")
    with torch.no_grad():
        assert torch.allclose(logits(reference, torch.cat([x, x])), own(torch.cat([x, x])), atol=1e-5)
    assert reference.name == "onnx:net"
