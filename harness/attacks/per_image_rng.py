"""Random numbers seeded by the image: independent of the batch and of the position in it.

An attack that drops finished images, a cascade that shows it only what still stands, or another shard size would
otherwise hand every image other random numbers. Here each image has a stream of its own, seeded by its content and by
one number of the global generator. The generator is SplitMix64 (Steele, Lea & Flood 2014), used as a counter hash, in
wrapping 64-bit integers on the image's own device, so that CPU and GPU draw the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Self

import torch
from torch import Tensor

_GAMMA: Final = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
_MIX1: Final = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2: Final = -7723592293110705685  # 0x94D049BB133111EB


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift(value, 30)) * _MIX1
    value = (value ^ _shift(value, 27)) * _MIX2
    return value ^ _shift(value, 31)


def as_uniform(bits: Tensor) -> Tensor:
    """Bits as float32 in [0, 1), of the same shape."""
    return _shift(bits, 40).to(torch.float32) * 2.0**-24


def as_signs(bits: Tensor) -> Tensor:
    """Bits as -1 or 1, float32 of the same shape."""
    return (_shift(bits, 63) * 2 - 1).to(torch.float32)


def as_integers(bits: Tensor, high: int) -> Tensor:
    """Bits as whole numbers in [0, high), int64 of the same shape."""
    return (_shift(bits, 11).to(torch.float64) * 2.0**-53 * high).to(torch.int64)


class Draws:
    """A stream of random numbers for each image of a batch; equal images share one.

    Takes one number from torch's global generator when it is made, so that it follows the caller's seed. Who asks for
    few numbers again and again had better ask for :meth:`bits` of several rounds at once: they are the same.
    """

    def __init__(self, x: Tensor) -> None:
        seed = torch.randint(2**62, ()).to(x.device)
        bits = x.detach().to(torch.float32).contiguous().view(torch.int32).flatten(1).to(torch.int64)
        place = torch.arange(1, bits.shape[1] + 1, device=x.device, dtype=torch.int64)
        self._begin(_mix(_mix((bits ^ (place * _GAMMA)) * _MIX1).sum(1) ^ _mix(seed + _GAMMA)))

    def _begin(self, streams: Tensor, used: int = 0) -> None:
        self._streams, self._used = streams, used

    def __len__(self) -> int:
        return len(self._streams)

    def of(self, rows: Tensor) -> Self:
        """Copies of the streams of images, at positions (M,) or in a mask (N,), from where they are."""
        part = object.__new__(type(self))
        part._begin(self._streams[rows], self._used)
        return part

    def fork(self, name: int) -> Self:
        """Other streams of the same images, the same for the same number: draws from one do not move the other."""
        part = object.__new__(type(self))
        part._begin(_mix(self._streams ^ _mix(torch.full_like(self._streams, name + 1) * _GAMMA)))
        return part

    @classmethod
    def joined(cls, parts: Sequence[Draws]) -> Self:
        """The streams of several in one batch, none of which has been drawn from."""
        whole = object.__new__(cls)
        whole._begin(torch.cat([part._streams for part in parts]))
        return whole

    def bits(self, *shape: int) -> Tensor:
        """The next 64 bits each, int64 (N, *shape)."""
        count = math.prod(shape)
        steps = torch.arange(self._used + 1, self._used + count + 1, device=self._streams.device)
        self._used += count
        return _mix(self._streams.unsqueeze(1) + steps * _GAMMA).view(-1, *shape)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), float32 (N, *shape)."""
        return as_uniform(self.bits(*shape))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, float32 (N, *shape), by Box and Muller's transform."""
        radius = (-2 * (1 - self.uniform(*shape)).log()).sqrt()
        return radius * (2 * math.pi * self.uniform(*shape)).cos()

    def signs(self, *shape: int) -> Tensor:
        """-1 or 1 with equal chances, float32 (N, *shape)."""
        return as_signs(self.bits(*shape))
