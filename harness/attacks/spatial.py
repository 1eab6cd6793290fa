"""Rotations and shifts: at random, and the worst over a grid (Engstrom et al. 2019)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..threat import Threat
from ..victims.victim import Victim
from .base import Access
from .corruptions import Blind, Transformation
from .line_search import fooled
from .per_image_rng import Draws


def moved(x: Tensor, degrees: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Images turned about their centre and then shifted, all at once; bilinear, and black comes in from outside.

    By degrees counter-clockwise, and shifts in heights and widths of the image: of each (N,), or one for all (1,).
    """
    height, width = x.shape[2:]
    degrees, down, right = (value.to(x.device).view(-1, 1, 1) for value in (degrees, down, right))
    # where each pixel comes from, in pixels from the centre: undo the shift, then the rotation
    v = torch.arange(height, device=x.device).view(1, -1, 1) - (height - 1) / 2 - down * height
    u = torch.arange(width, device=x.device).view(1, 1, -1) - (width - 1) / 2 - right * width
    cos, sin = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    grid = torch.stack([(u * cos - v * sin) * (2 / width), (u * sin + v * cos) * (2 / height)], dim=3)
    return F.grid_sample(x, grid.to(x.dtype).expand(len(x), -1, -1, -1), align_corners=False)


@dataclass(frozen=True, kw_only=True)
class Rotation(Blind):
    """A rotation about the centre, drawn for each image; corners turn black.

    Attributes:
        degrees: Largest angle, in (0, 180]: it is uniform in [-degrees, degrees].
    """

    name: ClassVar[str] = "rotation"

    degrees: float

    def __post_init__(self) -> None:
        self.require(0 < self.degrees <= 180, "degrees must be in (0, 180]")

    def transform(self, x: Tensor) -> Tensor:
        """Turned images."""
        still = x.new_zeros(1)
        return moved(x, self.degrees * (2 * Draws(x).uniform() - 1), still, still)


@dataclass(frozen=True, kw_only=True)
class Translation(Blind):
    """A shift, drawn for each image, not by whole pixels; black comes in from outside.

    Attributes:
        shift: Largest shift in sides of the image, in (0, 1]: down and right each are uniform in [-shift, shift].
    """

    name: ClassVar[str] = "translation"

    shift: float

    def __post_init__(self) -> None:
        self.require(0 < self.shift <= 1, "shift must be in (0, 1]")

    def transform(self, x: Tensor) -> Tensor:
        """Shifted images."""
        down, right = (self.shift * (2 * Draws(x).uniform(2) - 1)).unbind(1)
        return moved(x, x.new_zeros(1), down, right)


@dataclass(frozen=True, kw_only=True)
class Spatial(Transformation):
    """The worst rotation and shift of a grid for each image: the first that fools, the mildest tried first.

    Source: Engstrom et al. 2019, "Exploring the Landscape of Spatial Robustness", arXiv:1712.02779, whose grid search
    has 31 angles up to 30 degrees and 5 x 5 shifts up to 3 pixels of 28 or 32. Images that nothing fools come back
    as last tried.

    Attributes:
        degrees: Largest angle, in [0, 180].
        shift: Largest shift in sides of the image, in [0, 1].
        angles: Angles of the grid, evenly spaced over [-degrees, degrees]; 1 turns nothing.
        shifts: Shifts of the grid in each of the two directions, over [-shift, shift]; 1 shifts nothing.
    """

    name: ClassVar[str] = "spatial-grid"
    access: ClassVar[Access] = "decisions"

    degrees: float
    shift: float
    angles: int = 31
    shifts: int = 5

    def __post_init__(self) -> None:
        self.require(0 <= self.degrees <= 180, "degrees must be in [0, 180]")
        self.require(0 <= self.shift <= 1, "shift must be in [0, 1]")
        self.require(self.angles >= 1 and self.shifts >= 1, "angles and shifts must be >= 1")

    def grid(self) -> list[tuple[float, float, float]]:
        """Every (degrees, down, right), the mildest first: those least far from the origin of the grid's unit cube."""
        angles, shifts = _evenly(self.angles), _evenly(self.shifts)
        cube = sorted(itertools.product(angles, shifts, shifts), key=lambda p: (p[0] ** 2 + p[1] ** 2 + p[2] ** 2, p))
        return [(self.degrees * angle, self.shift * down, self.shift * right) for angle, down, right in cube]

    @torch.no_grad()
    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Propose the first try that fools, or the last one."""
        x_adv = x.clone()
        rows = torch.arange(len(x), device=x.device)
        for place in self.grid():
            if not len(rows):
                break
            tried = moved(x[rows], *x.new_tensor(place).unsqueeze(1)).clamp(0, 1)
            x_adv[rows] = tried
            rows = rows[~fooled(victim.of(rows), tried, y[rows])]
        return x_adv


def _evenly(count: int) -> list[float]:
    """So many numbers from -1 to 1; 0 alone for one."""
    return [(2 * i - count + 1) / (count - 1) for i in range(count)] if count > 1 else [0.0]
