from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.models.registry import ARCHITECTURES, PAPER_MLPS, architecture_names, build_model, check_architecture
from harness.models.stages import Shape, Stages, Standardize

SHAPES: tuple[Shape, ...] = ((1, 8, 8), (1, 28, 28), (3, 32, 32))
NAMES = ("mlp-100-100", "mlp-7", "mlp-5-4-3", "mlp-sigmoid-6-5", *ARCHITECTURES)
MAXOUT = ("maxout", "conv-maxout", "conv-maxout-small")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_fits_every_shape(name: str, shape: Shape) -> None:
    model = build_model(name, shape, 7)
    x = torch.rand(3, *shape)
    seen: list[str] = []

    def tap(stage: str, output: Tensor) -> Tensor:
        seen.append(stage)
        assert len(output) == 3
        return output

    model.eval()
    logits = model(x, tap=tap)
    assert logits.shape == (3, 7)
    assert torch.equal(model(x), logits)
    assert tuple(seen) == tuple(model.stages)
    assert seen[-1] == "logits"
    assert bool(model.hidden) == (name != "softmax")
    assert set(model.hidden) < set(seen)
    assert "logits" not in model.hidden


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MAXOUT])
def test_hidden_representations_follow_a_nonlinearity(name: str) -> None:
    model = build_model(name, (1, 8, 8), 3).eval()
    outputs: dict[str, Tensor] = {}
    model(torch.rand(4, 1, 8, 8), tap=lambda stage, output: outputs.setdefault(stage, output))
    assert all((outputs[stage] >= 0).all() for stage in model.hidden)


def test_what_a_tap_returns_goes_on() -> None:
    model = build_model("mlp-6-5", (1, 2, 2), 3)
    x = torch.rand(2, 1, 2, 2)
    cut = model(x, tap=lambda stage, output: torch.zeros_like(output) if stage == "hidden2" else output)
    torch.testing.assert_close(cut, model.stages["logits"].bias.expand(2, 3))


def test_widths_are_those_of_the_name() -> None:
    model = build_model("mlp-200-300", (1, 28, 28), 10)
    assert [tuple(p.shape) for p in model.parameters() if p.dim() == 2] == [(200, 784), (300, 200), (10, 300)]


def test_the_name_says_the_nonlinearity() -> None:
    for name, kind in (("mlp-6-5", nn.ReLU), ("mlp-sigmoid-6-5", nn.Sigmoid)):
        model = build_model(name, (1, 4, 4), 3)
        assert [type(model.stages[stage][1]) for stage in model.hidden] == [kind, kind]  # type: ignore[index]


def test_softmax_regression_is_one_layer() -> None:
    model = build_model("softmax", (1, 28, 28), 10)
    assert [tuple(p.shape) for p in model.parameters()] == [(10, 784), (10,)]


def test_lenet_is_the_papers_size_on_mnist() -> None:
    assert sum(p.numel() for p in build_model("lenet", (1, 28, 28), 10).parameters()) == 431_080


def test_the_small_convnet_has_lenets_stages() -> None:
    small, large = (build_model(name, (1, 28, 28), 10) for name in ("convnet-gu", "lenet"))
    assert (small.hidden, list(small.stages)) == (large.hidden, list(large.stages))
    weights = [tuple(p.shape) for p in small.parameters() if p.dim() > 1]
    assert weights == [(16, 1, 5, 5), (32, 16, 5, 5), (128, 512), (10, 128)]


@pytest.mark.parametrize("name", ["lenet", "convnet-gu"])
@pytest.mark.parametrize("shape", [(1, 3, 28), (3, 1, 1)])
def test_images_too_small_for_two_poolings(shape: Shape, name: str) -> None:
    with pytest.raises(UserError, match=f"{name} needs images of at least 4x4 pixels"):
        build_model(name, shape, 10)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_autoencoder_is_trained_without_labels(name: str) -> None:
    model = build_model(name, (1, 28, 28), 10)
    assert model.unsupervised == (("hidden1",) if name == "ae-400" else ())


def test_the_autoencoder_is_the_papers_size() -> None:
    model = build_model("ae-400", (1, 28, 28), 10)
    assert [tuple(p.shape) for p in model.parameters() if p.dim() == 2] == [(400, 784), (10, 400)]
    outputs: dict[str, Tensor] = {}
    model(torch.rand(4, 1, 28, 28), tap=lambda stage, output: outputs.setdefault(stage, output))
    flat, h = outputs["flatten"], outputs["hidden1"]
    torch.testing.assert_close(
        h, (flat @ model.stages["hidden1"][0].weight.T + model.stages["hidden1"][0].bias).sigmoid()
    )  # type: ignore[index]


@pytest.mark.parametrize("name", NAMES)
def test_what_enters_a_stage_is_what_left_the_one_before(name: str) -> None:
    model = build_model(name, (1, 8, 8), 3).eval()
    x = torch.rand(4, 1, 8, 8)
    before = [x]
    model(x, tap=lambda _stage, output: before.append(output) or output)  # type: ignore[func-returns-value]
    for stage, expected in zip(model.stages, before, strict=False):
        assert torch.equal(model.entering(stage, x), expected)
    with pytest.raises(KeyError, match="hidden9"):
        model.entering("hidden9", x)


def test_weights_come_from_the_global_generator() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return next(build_model("lenet", (1, 8, 8), 10).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        "mlp-",
        "mlp-0",
        "mlp-10-0",
        "mlp-05",
        "mlp-100-",
        "mlp--5",
        "mlp-1e3",
        "mlp-sigmoid",
        "mlp-sigmoid-0",
        "",
        "x",
    ],
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UserError, match=r"unknown model .*choose from mlp-100-100, .*lenet, .*resnet, .*mlp-A-B-"):
        check_architecture(name)


@pytest.mark.parametrize(("name", "near"), [("lenat", "lenet"), ("resnet18", "resnet"), ("mlp_100_100", "mlp-100-100")])
def test_near_names_are_suggested(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"did you mean .*{near}"):
        build_model(name, (1, 8, 8), 10)


def test_names_to_show_can_be_built() -> None:
    assert set(architecture_names()) == {*PAPER_MLPS, *ARCHITECTURES}
    for name in architecture_names():
        check_architecture(name)


def test_hidden_stages_must_exist() -> None:
    with pytest.raises(ValueError, match="no stage named b, c"):
        Stages(OrderedDict(a=nn.Flatten()), ("a", "c", "b"))
    with pytest.raises(ValueError, match="no stage named d"):
        Stages(OrderedDict(a=nn.Flatten()), ("a",), unsupervised=("d",))


def test_standardising_is_per_channel_and_part_of_the_model() -> None:
    layer = Standardize((0.0, 0.5), (1.0, 0.25))
    x = torch.tensor([0.5, 0.75]).view(1, 2, 1, 1)
    assert layer(x).flatten().tolist() == [0.5, 1.0]
    assert {"mean", "std"} == set(layer.state_dict())


def test_no_architecture_imports_what_takes_a_worker_seconds() -> None:
    """torchvision and torch's compiler take 4 s each."""
    code = (
        "import sys, harness.execution.worker as _; from harness.models.registry import ARCHITECTURES, build_model\n"
        "for name in ARCHITECTURES: build_model(name, (3, 32, 32), 10)\n"
        "print([name for name in ('torchvision', 'torch._dynamo') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
