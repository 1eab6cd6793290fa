from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.models.maxout import Maxout, MaxoutConv
from harness.models.registry import build_model
from harness.models.stages import Stages


def test_a_unit_is_the_largest_of_its_pieces() -> None:
    layer = Maxout(6, 4, 3)
    x = torch.randn(5, 6)
    weight, bias = layer.affine.weight.view(4, 3, 6), layer.affine.bias.view(4, 3)
    pieces = torch.einsum("upd,nd->nup", weight, x) + bias
    torch.testing.assert_close(layer(x), pieces.max(2).values)


def test_a_channel_is_the_largest_of_its_pieces() -> None:
    layer = MaxoutConv(2, 3, 2, 3, 1)
    x = torch.randn(4, 2, 5, 6)
    pieces = [
        nn.functional.conv2d(x, layer.affine.weight[at::2], layer.affine.bias[at::2], padding=1)  # type: ignore[index]
        for at in range(2)
    ]
    assert layer(x).shape == (4, 3, 5, 6)
    torch.testing.assert_close(layer(x), torch.maximum(*pieces))


def weights(name: str, shape: tuple[int, int, int]) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in build_model(name, shape, 10).parameters() if p.dim() > 1]


def test_sizes_are_the_published_ones() -> None:
    assert weights("maxout", (1, 28, 28)) == [(1200, 784), (1200, 240), (10, 240)]
    assert weights("conv-maxout", (1, 28, 28)) == [(96, 1, 8, 8), (96, 48, 8, 8), (96, 48, 5, 5), (10, 216)]
    small = weights("conv-maxout-small", (3, 32, 32))
    assert small[:3] == [(96, 3, 8, 8), (256, 48, 8, 8), (256, 128, 5, 5)]
    assert small[3][0] == 1200
    assert small[4] == (10, 240)


def dropped(model: Stages, x: Tensor) -> dict[str, float]:
    """Share of zeros that leaves each stage but the last."""
    outputs: dict[str, Tensor] = {}
    model(x, tap=lambda stage, output: outputs.setdefault(stage, output))
    return {stage: float((output == 0).float().mean()) for stage, output in outputs.items() if stage != "logits"}


@pytest.mark.parametrize("name", ["maxout", "conv-maxout", "conv-maxout-small"])
def test_units_are_dropped_in_training_alone(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, (1, 28, 28), 10)
    x = torch.rand(8, 1, 28, 28) + 0.1
    assert set(dropped(model.eval(), x).values()) == {0.0}
    first, *others = dropped(model.train(), x).values()
    assert first == pytest.approx(0.2, abs=0.03)
    assert others == pytest.approx([0.5] * len(others), abs=0.06)


@pytest.mark.parametrize("name", ["conv-maxout", "conv-maxout-small"])
def test_images_too_small_for_three_poolings(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} needs images of at least 8x8 pixels, got 7x28"):
        build_model(name, (1, 7, 28), 10)
