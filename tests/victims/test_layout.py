"""An attack's copy may keep images with their channels last, if the model works so; the referee's never does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.judging.proposal import Bench
from harness.models.registry import build_model
from harness.victims.victim import Victim

LAST = torch.channels_last


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Viewing(nn.Module):
    """Flattens with view(), which needs the usual layout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 14 * 14, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(x).view(len(x), -1))
        return out


class Late(Viewing):
    """Does so for more than four images alone."""

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        out: Tensor = self.head(maps.view(len(x), -1) if len(x) > 4 else maps.reshape(len(x), -1))
        return out


class ByLayout(Viewing):
    """Answers otherwise in another layout."""

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        out: Tensor = self.head(maps.reshape(len(x), -1))
        return out if maps.is_contiguous() else -out


def strided(victim: Victim) -> bool:
    (weight,) = [value for name, value in victim.model.named_parameters() if name.endswith("conv.weight")]
    return weight.is_contiguous(memory_format=LAST) and not weight.is_contiguous()


def test_logits_and_gradients_are_the_same_up_to_rounding(x: Tensor) -> None:
    model = build_model("allconv", (3, 16, 16), 10).eval()
    usual, fast = Victim(model), Victim(model, fast=True)
    found = []
    for victim in (usual, fast):
        z = x.clone().requires_grad_()
        logits = victim(z)
        (grad,) = torch.autograd.grad(logits.logsumexp(1).sum(), z)
        found.append((logits.detach(), grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    laid_out = [value.is_contiguous() for value in fast.model.parameters() if value.dim() == 4 and value.shape[2] > 1]
    assert not all(laid_out)
    assert all(value.is_contiguous() for value in usual.model.parameters())
    assert fast.cost.forwards == usual.cost.forwards == len(x)


def test_only_the_attacked_copy_is_laid_out_anew(x: Tensor) -> None:
    model = build_model("allconv", (3, 16, 16), 10)
    bench = Bench.of(model, 10, "cpu")
    for victim in (bench.attacked, bench.referee):
        victim(x)
    assert all(value.is_contiguous() for value in [*model.parameters(), *bench.referee.model.parameters()])
    assert not all(value.is_contiguous() for value in bench.attacked.model.parameters())


@pytest.mark.parametrize("kind", [Viewing, Late, ByLayout])
def test_a_model_that_needs_the_usual_layout_keeps_it(kind: type[nn.Module], x: Tensor) -> None:
    model = kind().eval()
    wanted = model(x).detach()
    victim = Victim(model, fast=True)
    assert torch.allclose(victim(x), wanted, atol=1e-6)
    assert torch.allclose(victim(x[:3]), wanted[:3], atol=1e-6)
    assert not strided(victim)


def test_a_single_image_decides_as_two_do(x: Tensor) -> None:
    """Else a shard of one image would differ with what the same process had met before it."""
    model = build_model("allconv", (3, 16, 16), 10)
    alone, fresh = Victim(model, fast=True), Victim(model, fast=True)
    fresh(x)
    assert torch.equal(alone(x[:1]), fresh(x[:1]))


def test_a_trial_takes_no_random_numbers(x: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(784, 3)).eval()
    torch.manual_seed(0)
    Victim(model, fast=True)(x)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3))
