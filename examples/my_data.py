"""A data set of your own: a function that returns training and test images with their labels.

    gauntlet run quick --dataset "examples/my_data.py:bars?size=12"

Images are uint8, or floats in [0, 1], which are rounded to 8 bits: (N, C, H, W). A whole ``gauntlet.Dataset`` may be
returned instead; its ``DatasetInfo`` then says the names of the classes and the budgets.
"""

from __future__ import annotations

import torch

Part = tuple[torch.Tensor, torch.Tensor]


def bars(size: int = 8) -> tuple[Part, Part]:
    """Noisy images with a horizontal or a vertical bar."""

    def part(n: int) -> Part:
        y = torch.arange(n) % 2
        x = 0.4 * torch.rand(n, 1, size, size)
        x[y == 0, :, size // 2] += 0.6
        x[y == 1, :, :, size // 2] += 0.6
        return x, y

    return part(400), part(100)
