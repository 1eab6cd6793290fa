"""A model of your own, in the form that ``--victim`` takes: a function that returns it, weights loaded.

    gauntlet run quick --dataset mnist --victim "examples/my_model.py:build?weights=my_weights.pt&width=32"

What follows the question mark is handed to the function. Images come as float32 in [0, 1]: normalise inside the model,
as here, or name the numbers with ``--mean`` and ``--std``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Two convolutions and two linear layers for images of 28 x 28."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, width, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(2 * width * 49, 100), nn.ReLU(), nn.Linear(100, 10)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28) in [0, 1]."""
        logits: Tensor = self.body((x - 0.1307) / 0.3081)
        return logits


def build(weights: str, width: int = 32) -> nn.Module:
    """The trained model; ``weights`` is a file that ``torch.save(model.state_dict(), ...)`` wrote."""
    model = Net(width)
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval()
