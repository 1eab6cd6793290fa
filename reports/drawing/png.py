"""Images as PNG files and data URIs, the same bytes for the same pixels."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt


def png(image: npt.NDArray[Any]) -> bytes:
    """Encode an image (C, H, W) in [0, 1], one or three channels, as an 8-bit PNG.

    The bytes depend on nothing but the pixels. Values outside [0, 1] are clipped, NaN shows as black; an image
    of another number of channels shows its first.
    """
    pixels = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=1.0, neginf=0.0)
    pixels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    pixels = pixels if pixels.shape[0] == 3 else pixels[:1]
    channels, height, width = pixels.shape
    rows = np.ascontiguousarray(pixels.transpose(1, 2, 0)).reshape(height, width * channels)
    raw = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def data_uri(image: npt.NDArray[Any]) -> str:
    """An image (C, H, W) as a PNG data URI."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()
