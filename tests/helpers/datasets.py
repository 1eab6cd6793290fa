"""Data sets of made-up images, as files in torchvision's layout."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np


def pixels(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def labels(n: int, classes: int = 10) -> np.ndarray:
    return np.arange(n) % classes


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write(path: Path, content: bytes) -> str:
    """Write a file; its MD5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.md5(content).hexdigest()


def make_mnist(root: Path, kind: str = "MNIST", train: int = 30, test: int = 20) -> None:
    raw = root / kind / "raw"
    for prefix, n in (("train", train), ("t10k", test)):
        write(raw / f"{prefix}-images-idx3-ubyte", idx(pixels(n, 28, 28, seed=n)))
        write(raw / f"{prefix}-labels-idx1-ubyte", idx(labels(n).astype(np.uint8)))
