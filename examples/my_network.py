"""An architecture of your own: what defenses train.

gauntlet run quick --model examples/my_network.py:wide --defense standard --defense pgd

Any module will do. Defenses that act on hidden layers need a network of Gauntlet's own.
"""

from __future__ import annotations

import math

from torch import nn


def wide(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """One wide hidden layer, for images of ``shape`` (C, H, W) in [0, 1]; logits (N, classes)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 400), nn.ReLU(), nn.Linear(400, classes))
