"""The networks of Lee et al. 2017, and what the generator sees and minimises."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from harness.attacks.line_search import log_odds
from harness.errors import UserError
from harness.models.perturbation_generator import PerturbationGenerator, generator_loss, probability_gradient
from harness.models.registry import build_model


def convolutions(model: nn.Module) -> list[tuple[tuple[int, ...], int]]:
    return [(tuple(part.weight.shape), part.stride[0]) for part in model.modules() if isinstance(part, nn.Conv2d)]


@pytest.mark.parametrize("classes", [10, 100])
def test_the_classifier_is_that_of_table_1(classes: int) -> None:
    model = build_model("allconv", (3, 32, 32), classes).eval()
    assert convolutions(model) == [
        ((48, 3, 3, 3), 1),
        ((48, 48, 3, 3), 2),
        ((96, 48, 3, 3), 1),
        ((96, 96, 3, 3), 2),
        ((96, 96, 3, 3), 1),
        ((96, 96, 1, 1), 1),
        ((classes, 96, 1, 1), 1),
    ]
    seen: dict[str, Tensor] = {}
    logits = model(torch.rand(2, 3, 32, 32), tap=lambda name, out: seen.setdefault(name, out))
    assert seen["scores"].shape == (2, classes, 8, 8)
    torch.testing.assert_close(logits, seen["scores"].mean((2, 3)))
    assert model.hidden == tuple(f"conv{number}" for number in range(1, 7))


def test_the_generator_is_that_of_table_1() -> None:
    generator = PerturbationGenerator(3)
    assert convolutions(generator) == [
        ((48, 3, 3, 3), 1),
        *[((48, 48, 3, 3), 1)] * 5,
        ((48, 48, 1, 1), 1),
        ((3, 48, 1, 1), 1),
    ]
    out = generator(1e3 * torch.randn(4, 3, 32, 32)).detach()
    assert out.shape == (4, 3, 32, 32)
    assert out.is_contiguous()
    assert float(out.abs().max()) <= 1
    assert float(out.abs().max()) > 0.9
    assert not generator(torch.zeros(1, 3, 8, 8)).any()  # biases begin at zero


@pytest.mark.parametrize("net", ["classifier", "generator"])
def test_initial_weights_are_xaviers(net: str) -> None:
    torch.manual_seed(0)
    model: nn.Module = PerturbationGenerator(3) if net == "generator" else build_model("allconv", (3, 32, 32), 10)
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            fan_out, fan_in, *kernel = part.weight.shape
            limit = math.sqrt(6 / (math.prod(kernel) * (fan_in + fan_out)))
            assert 0.9 * limit < float(part.weight.detach().abs().max()) <= limit
            assert part.bias is not None
            assert not part.bias.any()


def test_tiny_images_are_refused() -> None:
    with pytest.raises(UserError, match="at least 4x4 pixels, got 3x8"):
        build_model("allconv", (1, 3, 8), 10)
    assert build_model("allconv", (1, 4, 4), 3)(torch.rand(2, 1, 4, 4)).shape == (2, 3)


def gradients(scale: float) -> tuple[Tensor, Tensor]:
    """Of the label's probability for a linear model: ours, and by autograd through the softmax in float64."""
    torch.manual_seed(1)
    x, weight, y = torch.rand(6, 9), scale * torch.randn(9, 5), torch.arange(6) % 5
    leaf = x.clone().requires_grad_(True)
    odds = log_odds(leaf @ weight, y)
    (grad,) = torch.autograd.grad(odds.sum(), leaf)
    ours = probability_gradient(odds.detach(), grad)
    exact = x.double().requires_grad_(True)
    probability = (exact @ weight.double()).softmax(1).gather(1, y.unsqueeze(1))
    return ours, torch.autograd.grad(probability.sum(), exact)[0]


def test_the_generator_sees_the_gradient_of_the_probability() -> None:
    ours, exact = gradients(1.0)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-8)


def test_a_sure_network_leaves_a_gradient() -> None:
    logits = torch.tensor([[40.0, 0.0, -5.0]])
    x = logits.clone().requires_grad_(True)
    (naive,) = torch.autograd.grad(x.softmax(1)[:, 0].sum(), x)
    assert float(naive[0, 0]) == 0  # what autograd makes of the softmax
    y = torch.zeros(1, dtype=torch.int64)
    odds = log_odds(x, y)
    (grad,) = torch.autograd.grad(odds.sum(), x)
    ours = probability_gradient(odds.detach(), grad)
    assert float(ours[0, 0]) == pytest.approx(math.exp(-40) * (1 + math.exp(-5)), rel=1e-4)
    assert float(ours[0, 1]) == pytest.approx(-math.exp(-40), rel=1e-4)


def test_the_loss_is_equation_9() -> None:
    torch.manual_seed(0)
    logits, y, perturbation = torch.randn(4, 3), torch.tensor([0, 2, 1, 1]), torch.randn(4, 2, 3, 3)
    by_hand = [float(logits[i].softmax(0)[y[i]]) + 0.3 * float(perturbation[i].norm() ** 2) for i in range(4)]
    assert float(generator_loss(logits, y, perturbation, 0.3)) == pytest.approx(sum(by_hand) / 4, rel=1e-5)
