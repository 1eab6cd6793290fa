from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from harness.models.registry import build_model
from harness.models.stages import Stages
from harness.training.jacobian_penalty import closed_form, estimate, exact, has_closed_form, squared_norm, steps, trace


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    softmax: bool = False


def conv(*args: int, **more: object) -> nn.Conv2d:
    return nn.Conv2d(*args, **more)  # type: ignore[arg-type]


CASES = {
    "dense": Case(lambda: nn.Linear(7, 5), (7,)),
    "dense without bias": Case(lambda: nn.Linear(7, 5, bias=False), (7,)),
    "dense, ReLU": Case(lambda: nn.Sequential(nn.Linear(7, 5), nn.ReLU()), (7,)),
    "dense, sigmoid": Case(lambda: nn.Sequential(nn.Linear(7, 5), nn.Sigmoid()), (7,)),
    "dense over positions": Case(lambda: nn.Sequential(nn.Linear(7, 5), nn.ReLU()), (3, 7)),
    "dense, softmax": Case(lambda: nn.Linear(7, 5), (7,), softmax=True),
    "flattened, dense": Case(
        lambda: nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(12, 5), nn.ReLU())), (3, 2, 2)
    ),
    "flatten": Case(nn.Flatten, (3, 2, 2)),
    "identity": Case(nn.Identity, (4,)),
    "convolution": Case(lambda: conv(2, 3, 3), (2, 6, 5)),
    "convolution, ReLU, padded": Case(lambda: nn.Sequential(conv(2, 3, 3, padding=1), nn.ReLU()), (2, 6, 5)),
    "convolution, ReLU, far padded": Case(lambda: nn.Sequential(conv(2, 3, 3, padding=(2, 0)), nn.ReLU()), (2, 4, 5)),
    "convolution, same": Case(lambda: nn.Sequential(conv(2, 3, 5, padding="same"), nn.ReLU()), (2, 6, 5)),
    "convolution, stride 2": Case(lambda: nn.Sequential(conv(2, 3, 3, stride=2, padding=1), nn.ReLU()), (2, 6, 7)),
    "convolution, strides, dilation, groups": Case(
        lambda: nn.Sequential(conv(4, 6, 3, stride=(1, 2), padding=2, dilation=2, groups=2), nn.Sigmoid()), (4, 6, 7)
    ),
    "convolution, ReLU, pooling": Case(lambda: nn.Sequential(conv(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2)), (2, 8, 7)),
    "padded convolution, ReLU, pooling": Case(
        lambda: nn.Sequential(conv(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)), (2, 6, 6)
    ),
    "same convolution, overlapping pooling": Case(
        lambda: nn.Sequential(conv(2, 3, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
        (2, 6, 7),
    ),
    "valid convolution, sigmoid, pooling": Case(
        lambda: nn.Sequential(conv(2, 3, 3, padding="valid"), nn.Sigmoid(), nn.MaxPool2d(2)), (2, 6, 6)
    ),
    "padded convolution, pooling, flatten": Case(
        lambda: nn.Sequential(conv(2, 3, 3, padding=1), nn.MaxPool2d(2), nn.Flatten()), (2, 6, 6)
    ),
}


def autograd_norm(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The yardstick: the whole Jacobian of each sample, row by row, and its squared norm."""
    norms = []
    for sample in x:
        leaf = sample[None].requires_grad_(True)
        outputs = function(leaf).flatten()
        rows = [torch.autograd.grad(value, leaf, create_graph=True)[0].flatten() for value in outputs]
        norms.append(torch.stack(rows).square().sum())
    return torch.stack(norms)


def gradients(value: Tensor, module: nn.Module, *, retain_graph: bool = False) -> list[Tensor]:
    parameters = list(module.parameters())
    if not parameters:
        return []
    found = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=retain_graph)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_closed_forms_are_the_norms_of_autograds_jacobians(case: Case, scale: float) -> None:
    """Values, and gradients by the weights of a mixture over samples, so that no sample's may stand for another's."""
    torch.manual_seed(1)
    module = case.make().double()
    x = scale * torch.randn(4, *case.shape, dtype=torch.double)

    def function(v: Tensor) -> Tensor:
        return module(v).softmax(1) if case.softmax else module(v)

    assert has_closed_form(module, softmax=case.softmax)
    mine = closed_form(module, x, module(x), softmax=case.softmax)
    assert mine is not None
    theirs = autograd_norm(function, x)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    mixture = torch.tensor([0.1, -2.0, 0.7, 1.3], dtype=torch.double)
    if list(module.parameters()):
        for a, b in zip(gradients(mine @ mixture, module), gradients(theirs @ mixture, module), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    single = module.float()
    x = x.float()
    torch.testing.assert_close(
        closed_form(single, x, single(x), softmax=case.softmax), theirs.float(), rtol=1e-5, atol=1e-6
    )


def test_a_gate_that_moves_hands_its_gradient_down() -> None:
    """The sigmoid's slope depends on what comes from the layer below, and so does the penalty."""
    torch.manual_seed(0)
    below, above = nn.Linear(6, 5), nn.Sequential(nn.Linear(5, 4), nn.Sigmoid())
    h = below(torch.randn(3, 6))
    norm = closed_form(above, h, above(h))
    assert norm is not None
    mine = gradients(norm.sum(), below, retain_graph=True)
    theirs = torch.stack([autograd_norm_at(above, row) for row in h])
    for a, b in zip(mine, gradients(theirs.sum(), below), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert b.abs().max() > 1e-4


def autograd_norm_at(function: nn.Module, point: Tensor) -> Tensor:
    """As autograd_norm at a point that is itself part of a graph."""
    rows = [torch.autograd.grad(value, point, create_graph=True)[0] for value in function(point[None])[0]]
    return torch.stack(rows).square().sum()


@pytest.mark.parametrize(
    ("module", "softmax"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.Tanh()), False),
        (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), False),
        (nn.Sequential(nn.Linear(3, 3), nn.ReLU()), True),
        (nn.Flatten(), True),
        (nn.BatchNorm2d(3), False),
        (nn.Sequential(conv(2, 3, 3, padding=1, padding_mode="circular"), nn.ReLU()), False),
        (nn.Sequential(conv(2, 3, 3), nn.MaxPool2d(2), nn.ReLU()), False),
        (nn.Sequential(conv(2, 3, 3), nn.ReLU(), nn.AvgPool2d(2)), False),
    ],
    ids=str,
)
def test_what_has_no_formula(module: nn.Module, softmax: bool) -> None:
    assert not has_closed_form(module, softmax=softmax)
    assert closed_form(module, torch.zeros(1, 3), torch.zeros(1, 3), softmax=softmax) is None


@pytest.mark.parametrize("softmax", [False, True])
def test_the_estimate_converges_to_the_norm(softmax: bool) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x = torch.randn(4, 6, dtype=torch.double)
    theirs = autograd_norm(lambda v: module(v).softmax(1) if softmax else module(v), x)
    leaf = x.requires_grad_(True)
    mine = squared_norm(module, leaf, module(leaf), softmax=softmax, draws=4000)
    # signs: the standard error of the mean of 4000 draws is a few percent at most
    torch.testing.assert_close(mine, theirs, rtol=0.1, atol=0)
    for a, b in zip(gradients(mine.sum(), module), gradients(theirs.sum(), module), strict=True):
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.1 * float(b.abs().max()) + 1e-12)


def test_the_estimate_is_unbiased_draw_by_draw() -> None:
    """Over all 2^K signs the mean is the norm to the last digit; a sample of them hits every one."""
    torch.manual_seed(0)
    module = nn.Linear(4, 2).double()
    x = torch.randn(1, 4, dtype=torch.double).requires_grad_(True)
    w = module.weight
    found = {round(estimate(x, module(x)).item(), 9) for _ in range(40)}
    both = {round((w[0] + sign * w[1]).square().sum().item(), 9) for sign in (-1, 1)}
    assert found == both
    assert sum(both) / 2 == pytest.approx(w.square().sum().item(), abs=1e-8)


@pytest.mark.parametrize("name", ["mlp-9-8", "ae-400", "convnet-gu"])
def test_the_exact_norm_end_to_end(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, (1, 6, 6), 5).double()
    x = torch.rand(3, 1, 6, 6, dtype=torch.double)
    theirs = autograd_norm(lambda v: model(v).softmax(1), x)
    leaf = x.clone().requires_grad_(True)
    mine = exact(leaf, model(leaf).softmax(1))
    torch.testing.assert_close(mine, theirs)
    for a, b in zip(gradients(mine.sum(), model), gradients(theirs.sum(), model), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("mlp-9-8", {"hidden1": 2, "hidden2": 1, "logits": 1}),
        ("convnet-gu", {"conv1": 1, "conv2": 1, "hidden1": 2, "logits": 1}),
        ("resnet", {"stem": 2, "group1": 1, "group2": 1, "group3": 1, "logits": 2}),
    ],
)
def test_layers_are_the_hidden_representations_and_the_logits(name: str, layers: dict[str, int]) -> None:
    model = build_model(name, (1, 8, 8), 5).eval()
    assert {name: len(part) for name, part in steps(model).items()} == layers  # type: ignore[arg-type]
    x = torch.rand(3, 1, 8, 8)
    logits, found = trace(model, x)
    assert torch.equal(logits, model(x))
    assert [layer.name for layer in found] == list(layers)
    assert torch.equal(found[0].before, x)
    for layer in found:
        torch.testing.assert_close(layer.module(layer.before), layer.after)
    assert found[-1].after is logits
    assert not x.requires_grad


@pytest.mark.parametrize(
    ("name", "needed"), [("mlp-4", False), ("ae-400", False), ("convnet-gu", False), ("resnet", True)]
)
def test_gradients_by_the_images_are_asked_for_where_they_are_needed(name: str, needed: bool) -> None:
    model = build_model(name, (1, 8, 8), 5)
    x = torch.rand(2, 1, 8, 8)
    assert trace(model, x)[1][0].before.requires_grad is needed
    assert trace(model, x, leaf=True)[1][0].before.requires_grad
    assert all(has_closed_form(part) for part in steps(model).values()) is not needed


def test_a_tap_acts_between_what_leaves_a_layer_and_what_enters_the_next() -> None:
    model = build_model("mlp-4-3", (1, 2, 2), 5)
    _, layers = trace(model, torch.rand(2, 1, 2, 2), lambda stage, h: h + 1 if stage in model.hidden else h)
    assert torch.equal(layers[1].before, layers[0].after + 1)
    for layer in layers:
        torch.testing.assert_close(layer.module(layer.before), layer.after)


def test_a_layer_without_a_formula_is_estimated_from_the_same_pass() -> None:
    """Two stages that mix into one layer, of which neither the first nor the whole has a formula."""
    torch.manual_seed(0)
    stages = OrderedDict[str, nn.Module](a=nn.Linear(3, 4), b=nn.Tanh(), logits=nn.Linear(4, 2))
    model = Stages(stages, ("b",)).double()
    x = torch.randn(5, 3, dtype=torch.double)
    _, (hidden, logits) = trace(model, x)
    mine = squared_norm(hidden.module, hidden.before, hidden.after, draws=3000)
    torch.testing.assert_close(mine, autograd_norm(hidden.module, x), rtol=0.1, atol=0)
    torch.testing.assert_close(
        squared_norm(logits.module, logits.before, logits.after),
        model.stages["logits"].weight.square().sum().expand(5),  # type: ignore[operator, union-attr]
    )
