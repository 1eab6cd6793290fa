"""Gaussian noise on images and on what hidden layers make of them (Gu & Rigazio 2014, "L1" and "L*")."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..models.stages import Stages, Tap

Where = Literal["input", "all"]
"""On the images alone ("L1" in table 6), or on them and on every hidden representation ("L*")."""


def noisy(x: Tensor, sigma: float) -> Tensor:
    """A batch with fresh noise of standard deviation sigma on every component; not clipped, as in the paper."""
    return x + sigma * torch.randn_like(x) if sigma else x


def hidden_noise(model: Stages, sigma: float, where: Where) -> Tap | None:
    """What :meth:`Stages.forward` is to do for noise on hidden representations; None where there is to be none."""
    if where == "input" or not sigma:
        return None
    return lambda stage, output: noisy(output, sigma) if stage in model.hidden else output
