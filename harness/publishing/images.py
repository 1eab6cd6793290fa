"""Adversarial images of somebody's, read as data: safetensors, ``.npz``, ``.npy``, tensors of ``torch.save``."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, first_line
from ..records.results import opened

FORMS: Final = "FILE.safetensors, FILE.npz, FILE.npy, or FILE.pt of tensors"
_HEADROOM: Final = 2**20


class Submitted(NamedTuple):
    """An image that was handed in: where its clean one stands in the test set, and itself, as it is."""

    place: int
    image: Tensor


def read(path: Path, test_size: int, most: int) -> list[Submitted]:
    """Images of a file, by their positions in the test set.

    They are one array (N, C, H, W), with an array ``index`` (N,) of positions beside it, or else all of the test set in
    its order; or one array (C, H, W) for each image, named by its position. Bytes are taken as files of 8 bits. Nothing
    in a file is run.

    Args:
        path: The file.
        test_size: Images in the test part.
        most: Bytes that may be taken.

    Raises:
        UserError: It cannot be read, or holds something else, or more.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}: give {FORMS}")
    try:
        arrays = dict(_tensors(path, most))
    except UserError:
        raise
    except Exception as error:  # a stranger's file makes readers raise anything
        raise UserError(f"{path} cannot be read as {FORMS} ({first_line(error)})") from None
    if sum(value.numel() * 8 for value in arrays.values()) > 4 * most:  # a view may be larger than what it is of
        raise UserError(f"{path} holds more than the whole test set")
    if arrays and all(name.isdecimal() and len(name) < 10 for name in arrays):
        return [Submitted(int(name), value) for name, value in sorted(arrays.items(), key=lambda item: int(item[0]))]
    stacks = [name for name, value in arrays.items() if value.dim() == 4]
    lists = [name for name, value in arrays.items() if value.dim() == 1 and not value.is_floating_point()]
    if len(stacks) != 1 or len(lists) > 1:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in arrays.items())
        raise UserError(f"{path} holds {shapes or 'nothing'}; it should be images (N, C, H, W) and perhaps index (N,)")
    images = arrays[stacks[0]]
    index = [int(place) for place in arrays[lists[0]]] if lists else list(range(test_size))
    if len(index) != len(images):
        more = "" if lists else ", which are not all of the test set: add an array index"
        raise UserError(f"{path} holds {len(images)} images for {len(index)} positions{more}")
    return [Submitted(place, image) for place, image in zip(index, images, strict=True)]


def _tensors(path: Path, most: int) -> Iterable[tuple[str, Tensor]]:
    if zipfile.is_zipfile(path):  # .npz and .pt
        with zipfile.ZipFile(path) as archive:
            total = sum(member.file_size for member in archive.infolist())
        if total > 4 * most + _HEADROOM:
            raise UserError(f"{path} would unpack to {total} bytes, more than the whole test set")
    match path.suffix:
        case ".safetensors":
            with opened(path, "pt") as file:
                return [(name, file.get_tensor(name)) for name in file.keys()]  # noqa: SIM118
        case ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return [(name, torch.from_numpy(arrays[name])) for name in arrays]
        case ".npy":
            return [("images", torch.from_numpy(np.load(path, allow_pickle=False)))]
        case ".pt" | ".pth":
            return _named(path, torch.load(path, map_location="cpu", weights_only=True))
        case _:
            raise UserError(f"{path}: give {FORMS}")


def _named(path: Path, found: Any) -> Iterable[tuple[str, Tensor]]:
    if isinstance(found, Tensor):
        found = {"images": found}
    elif isinstance(found, list | tuple):
        found = {f"part {number}": value for number, value in enumerate(found)}
    if not isinstance(found, Mapping):
        raise UserError(f"{path} holds {type(found).__name__}, and no tensors")
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if any(value.layout is not torch.strided or value.is_quantized for value in tensors.values()):
        raise UserError(f"{path} holds tensors that are not plain")
    return tensors.items()
