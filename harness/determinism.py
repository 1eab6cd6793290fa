"""Seeds, isolated random generators, and float32 without TF32 or bfloat16, through both of torch's APIs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import numpy as np
import torch

_BACKENDS: Final[Any] = torch.backends  # typed without the newer way

_PLACES: Final[tuple[Any, ...]] = (
    _BACKENDS,  # what others inherit from comes before them
    _BACKENDS.cudnn,
    _BACKENDS.cuda.matmul,
    _BACKENDS.cudnn.conv,
    _BACKENDS.cudnn.rnn,
    _BACKENDS.mkldnn.matmul,
    _BACKENDS.mkldnn.conv,
    _BACKENDS.mkldnn.rnn,
)
"""Where torch is told the precision of float32 operations, as ``"ieee"``, ``"tf32"``, ``"bf16"`` or ``"none"``."""


def full_float32() -> None:
    """Let no matrix product, convolution or recurrent layer round its operands, whatever has been asked for so far."""
    _set(["ieee"] * len(_PLACES), inherit=False)


@contextmanager
def kept() -> Iterator[None]:
    """Leave the precision of float32 operations as it was when the block ends."""
    before = [place.fp32_precision for place in _PLACES]
    try:
        yield
    finally:
        _set(before, inherit=True)


def _set(wanted: Sequence[str], *, inherit: bool) -> None:
    """Set the older switches, then the newer: torch raises where somebody reads one that another contradicts."""
    _, _, matmul, conv, _, cpu_matmul, *_ = wanted
    rounded = "medium" if cpu_matmul == "bf16" else "high"
    torch.set_float32_matmul_precision(rounded if matmul == "tf32" else "highest")
    _BACKENDS.cudnn.allow_tf32 = conv == "tf32"
    for place, precision in zip(_PLACES, wanted, strict=True):
        place.fp32_precision = "none"
        if not inherit or place.fp32_precision != precision:
            place.fp32_precision = precision


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices): the toolkits draw from all three."""
    random.seed(seed)
    np.random.seed(seed)
    if _accelerated():
        torch.manual_seed(seed)
    else:  # torch would write down for each kind of device, with the whole stack, what it is to do if there is one
        torch.default_generator.manual_seed(seed)


@cache
def _accelerated() -> bool:
    """Whether torch computes elsewhere than on the CPU, too."""
    return torch.accelerator.is_available()


@contextmanager
def isolated(seed: int | None = None, device: torch.device | str = "cpu") -> Iterator[None]:
    """Leave every generator (Python, NumPy, torch's of CPU and device) as it was when the block ends; seed them."""
    device = torch.device(device)
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            if seed is not None:
                seed_everything(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def as_a_worker(device: torch.device | str = "cpu") -> Iterator[None]:
    """One thread and full float32, as worker processes compute, so that numbers equal theirs; then all as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with kept(), isolated(device=device):
            full_float32()
            yield
    finally:
        torch.set_num_threads(threads)
