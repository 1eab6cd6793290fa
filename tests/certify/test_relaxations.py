"""Lines against a dense grid of the function between them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from harness.certify.nodes import Image, Interval, Largest
from harness.certify.relaxations import Lines, hyperbolic, logistic, rectifier

ENDS = torch.tensor([-900.0, -30, -4, -1.5, -0.3, -1e-3, -1e-12, 0, 1e-12, 1e-3, 0.2, 1, 5, 40, 900]).double()


@pytest.mark.parametrize(
    ("lines", "function", "area"),
    [
        (rectifier, torch.relu, 0.26),
        (partial(rectifier, leak=0.2), lambda z: torch.where(z > 0, z, 0.2 * z), 0.21),
        (logistic, torch.sigmoid, 0.03),
        (hyperbolic, torch.tanh, 0.13),
    ],
    ids=("relu", "leaky", "sigmoid", "tanh"),
)
def test_lines_enclose(
    lines: Callable[[Tensor, Tensor], Lines], function: Callable[[Tensor], Tensor], area: float
) -> None:
    torch.manual_seed(0)
    low = torch.cat([ENDS.repeat_interleave(len(ENDS)), 4 * torch.randn(3000).double()])
    high = torch.cat([ENDS.repeat(len(ENDS)), low[len(ENDS) ** 2 :] + 5 * torch.rand(3000).double() ** 3])
    low, high = torch.minimum(low, high), torch.maximum(low, high)
    made = lines(low, high)
    grid = low + (high - low) * torch.linspace(0, 1, 801).double().unsqueeze(1)
    value = function(grid)
    slack = 1e-12 * (1 + grid.abs())
    assert (made.below_slope * grid + made.below <= value + slack).all()
    assert (value <= made.above_slope * grid + made.above + slack).all()
    gap = ((made.above_slope - made.below_slope) * grid + made.above - made.below).mean(0)
    unit = lines(torch.tensor([-1.0]).double(), torch.tensor([1.0]).double())
    assert gap.isfinite().all()
    middle = float(unit.above + (unit.above_slope - unit.below_slope) * 0.0 - unit.below) / 2
    assert middle <= area  # half the height at 0 of what lies between them on [-1, 1]: no constants


def test_lines_of_a_maximum_enclose() -> None:
    """For all slopes -1 and 1 on outputs, what is pulled back lies below, and meets it where one input is largest."""
    torch.manual_seed(0)
    n, size = 200, 7
    members = torch.tensor([[0, 1, 2], [2, 3, -1], [4, -1, -1], [1, 5, 6]])
    node = Largest((Image((), (size,)),), (4,), members)
    middle, reach = torch.randn(n, size).double(), 0.8 * torch.rand(n, size).double() ** 2
    x = Interval(middle - reach, middle + reach)
    spec = torch.tensor([[1.0, 0, 0, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, -1, 0, 0], [1, -1, 1, -1], [0, 0, -1, 1]])
    pulled = node.pull(spec.double().expand(n, -1, -1), (x,), None)
    shared = node.pull(spec.double().unsqueeze(0), (x,), None)
    assert torch.equal(pulled.parts[0], shared.parts[0])
    for _ in range(300):
        share = torch.rand(n, size).double().mul(3).sub(1).clamp(0, 1)  # corners too
        z = x.low + (x.high - x.low) * share
        value = node.gathered(z).amax(2) @ spec.double().T
        under = (pulled.parts[0] * z.unsqueeze(1)).sum(2) + pulled.constant
        assert (under <= value + 1e-12).all()
        assert (node.interval(x).low <= node.gathered(z).amax(2) + 1e-12).all()
        assert (node.gathered(z).amax(2) <= node.interval(x).high + 1e-12).all()
    alone = (~node.contenders(x, rectified=False)).all(1)
    assert alone.any()
    assert (value - under)[alone].abs().max() < 1e-12
