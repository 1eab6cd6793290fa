"""Common corruptions: noise, blur, contrast, brightness, JPEG, quantisation. Not chosen to fool a model.

Each has a severity of its own and no eps, so a threat has to allow every image: L-infinity with eps 1. What acts on
single pixels (noise, contrast, brightness, levels) does the same to a pixel of 8x8 as of 224x224; what has an extent
(blur, shifts) is measured in sides of the image, so that it smears or moves an object by the same share. JPEG alone
works on blocks of 8x8 pixels, whatever the image's size. Rotations and shifts are in :mod:`.spatial`.
"""

from __future__ import annotations

import io
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..threat import Norm, Threat
from ..victims.victim import Victim
from .base import Access, Attack, Family, Targeting
from .per_image_rng import Draws

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Transformation(Attack):
    """Base of transformations. Severities have no default, so that every label names them."""

    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    family: ClassVar[Family] = "transformation"
    targeting: ClassVar[Targeting] = "rows"

    def check(self, threat: Threat) -> None:
        """Raise UserError for an eps below 1: cut down to a smaller ball it would be another transformation."""
        super().check(threat)
        if threat.eps is not None and threat.eps < 1:
            raise UserError(f"{self.label} has a severity of its own and keeps no eps: ask for linf 1, got {threat}")

    def require(self, fine: bool, rule: str) -> None:
        """Raise UserError unless a field is in its range; the rule reads like ``"std must be > 0"``."""
        if not fine:
            raise UserError(f"{self.label}: {rule}")


@dataclass(frozen=True, kw_only=True)
class Blind(Transformation):
    """Base of transformations that never look at the victim: one draw, or none.

    A subclass writes :meth:`transform`. Random numbers come from :class:`.per_image_rng.Draws`: an image meets the same
    ones in any batch.
    """

    access: ClassVar[Access] = "none"

    def run(self, victim: Victim, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Propose the transformed images."""
        return self.transform(x).clamp(0, 1) if len(x) else x

    @abstractmethod
    def transform(self, x: Tensor) -> Tensor:
        """Transformed images like ``x``, float32 (N, C, H, W) with N > 0; clipped to [0, 1] afterwards."""


@dataclass(frozen=True, kw_only=True)
class NoiseCorruption(Blind):
    """Independent Gaussian noise on every component, as of a sensor in little light; clipped to the box.

    Attributes:
        std: Standard deviation before clipping, in pixel units, > 0.
    """

    name: ClassVar[str] = "gaussian-noise"

    std: float

    def __post_init__(self) -> None:
        self.require(0 < self.std < math.inf, "std must be > 0")

    def transform(self, x: Tensor) -> Tensor:
        """Noisy images."""
        return x + self.std * Draws(x).normal(*x.shape[1:])


@dataclass(frozen=True, kw_only=True)
class SaltAndPepper(Blind):
    """Dead and hot pixels: some, drawn at random, turn black or white in every channel.

    Attributes:
        share: Chance of each pixel, in (0, 1]; half of those drawn turn black.
    """

    name: ClassVar[str] = "salt-and-pepper-noise"

    share: float

    def __post_init__(self) -> None:
        self.require(0 < self.share <= 1, "share must be in (0, 1]")

    def transform(self, x: Tensor) -> Tensor:
        """Images with dead and hot pixels."""
        draw = Draws(x).uniform(1, *x.shape[2:])
        return torch.where(draw < self.share, (draw < self.share / 2).to(x), x)


@dataclass(frozen=True, kw_only=True)
class BlurCorruption(Blind):
    """Convolution with a Gaussian, as of a lens out of focus; the border goes on outside the image.

    Attributes:
        sigma: Standard deviation in sides of the image (the shorter one), in (0, 1]: 0.05 is 0.4 pixels of 8 and 1.6 of
            32. The kernel ends at 4 sigma.
    """

    name: ClassVar[str] = "gaussian-blur"

    sigma: float

    def __post_init__(self) -> None:
        self.require(0 < self.sigma <= 1, "sigma must be in (0, 1]")

    def transform(self, x: Tensor) -> Tensor:
        """Blurred images."""
        sigma = self.sigma * min(x.shape[2:])
        radius = int(4 * sigma + 0.5)
        weights = [math.exp(-0.5 * (place / sigma) ** 2) for place in range(-radius, radius + 1)]
        total = sum(weights)
        for dim, pad in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
            # tap by tap: a convolution on a GPU would round to ten bits
            wide, side = F.pad(x, pad, mode="replicate"), x.shape[dim]
            x = torch.zeros_like(x)
            for tap, weight in enumerate(weights):
                x += weight / total * wide.narrow(dim, tap, side)
        return x


@dataclass(frozen=True, kw_only=True)
class LowContrast(Blind):
    """Less contrast, as in fog: every component moves towards the mean of its image.

    Attributes:
        factor: Of the contrast, what is left, in [0, 1): 0 leaves a constant image.
    """

    name: ClassVar[str] = "low-contrast"

    factor: float

    def __post_init__(self) -> None:
        self.require(0 <= self.factor < 1, "factor must be in [0, 1)")

    def transform(self, x: Tensor) -> Tensor:
        """Images of less contrast."""
        mean = x.mean((1, 2, 3), keepdim=True)
        return mean + self.factor * (x - mean)


@dataclass(frozen=True, kw_only=True)
class Brightness(Blind):
    """More or less light: the same for every component, clipped to the box.

    Attributes:
        change: What is added, in pixel units, in [-1, 1] and not 0.
    """

    name: ClassVar[str] = "brightness"

    change: float

    def __post_init__(self) -> None:
        self.require(0 < abs(self.change) <= 1, "change must be in [-1, 1] and not 0")

    def transform(self, x: Tensor) -> Tensor:
        """Brighter or darker images."""
        return x + self.change


@dataclass(frozen=True, kw_only=True)
class Quantise(Blind):
    """Few grey levels, as of a poor scanner: every component goes to the nearest of them.

    Attributes:
        levels: How many, evenly spaced over [0, 1], in 2..255; 2 leaves black and white.
    """

    name: ClassVar[str] = "quantise"

    levels: int

    def __post_init__(self) -> None:
        self.require(2 <= self.levels <= 255, "levels must be in 2..255")

    def transform(self, x: Tensor) -> Tensor:
        """Images of few levels."""
        return (x * (self.levels - 1)).round() / (self.levels - 1)


@dataclass(frozen=True, kw_only=True)
class Jpeg(Blind):
    """Saved as a JPEG file and read again; colour at half the resolution, as is usual.

    Attributes:
        quality: Of libjpeg, in 1..100.
    """

    name: ClassVar[str] = "jpeg"

    quality: int

    def __post_init__(self) -> None:
        self.require(1 <= self.quality <= 100, "quality must be in 1..100")

    def transform(self, x: Tensor) -> Tensor:
        """Images as a reader of the files sees them.

        Raises:
            UserError: Images that are neither gray nor colour.
        """
        if x.shape[1] not in (1, 3):
            raise UserError(f"{self.label} takes images of 1 or 3 channels, got {x.shape[1]}")
        pixels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        # one by one: the codec knows single images only
        files = [_reopened(image.squeeze(2) if x.shape[1] == 1 else image, self.quality) for image in pixels]
        images = torch.from_numpy(np.stack(files)).to(x).view(len(x), *x.shape[2:], -1)
        return images.permute(0, 3, 1, 2).contiguous() / 255


def _reopened(image: Bytes, quality: int) -> Bytes:
    """An image, uint8 (H, W) or (H, W, 3), saved as JPEG and read again."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))
