"""What is handed to :func:`gauntlet.evaluate`, checked: one line for each thing that is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..datasets.registry import Dataset, DatasetInfo, default_info, load_dataset
from ..errors import UserError, first_line
from ..options import number
from ..schema.eps import ANYTHING
from ..threat import Norm

CHANNELS = (1, 3, 4)
"""How many a last dimension has that is one of channels, not of columns."""


def given(x: Any, y: Any, n: int) -> tuple[Tensor, Tensor, Dataset | None]:
    """Images and labels, and the data set that they are the first ``n`` test images of, if one was given.

    ``x`` may be images, a data set or its name, or a :class:`torch.utils.data.DataLoader`; only images have labels.

    Raises:
        UserError: They are not as :func:`images` and :func:`labels` want them; labels where there are some already.
    """
    if isinstance(x, str):
        x = load_dataset(x)
    if isinstance(x, Dataset | DataLoader):
        if y is not None:
            raise UserError("labels come with the data set: leave out y")
        if isinstance(x, Dataset):
            _, (images_, labels_) = x.test_sample(min(n, len(x.x_test)))
            return images_, labels_, x
        x, y = _batches(x)
    elif isinstance(x, nn.Module):
        raise UserError("the model comes first: evaluate(model, x, y)")
    elif isinstance(x, torch.utils.data.Dataset):
        raise UserError("give a torch data set in a DataLoader: evaluate(model, DataLoader(data, batch_size=100))")
    elif y is None:
        raise UserError("which labels have the images? evaluate(model, x, y), or a whole data set in place of both")
    images_, labels_ = images(x), labels(y)
    if len(images_) != len(labels_):
        raise UserError(f"{len(images_)} images, but {len(labels_)} labels")
    return images_, labels_, None


def _batches(loader: DataLoader[Any]) -> tuple[Tensor, Tensor]:
    """All images and labels of a loader."""
    each = list(loader)
    if not each or not all(isinstance(one, list | tuple) and len(one) == 2 for one in each):
        raise UserError("a DataLoader must give pairs of images (N, C, H, W) and labels (N,)")
    return torch.cat([tensor(x, "images") for x, _ in each]), torch.cat([tensor(y, "labels") for _, y in each])


def images(x: Any) -> Tensor:
    """Images as float32 (N, C, H, W) in [0, 1] on the CPU.

    Raises:
        UserError: They are not that; the line says what they are, and how to make them so.
    """
    found = tensor(x, "images")
    shape = tuple(found.shape)
    if found.dim() == 4 and shape[3] in CHANNELS and shape[1] not in CHANNELS and min(shape[1:3]) >= 8:
        raise UserError(f"images must be (N, C, H, W), got {shape}, channels last: use x.permute(0, 3, 1, 2)")
    if found.dim() == 3:
        wanted = "x[None]" if shape[0] in CHANNELS else "x[:, None]"
        raise UserError(f"images must be (N, C, H, W), got {shape}: {wanted} has the dimension that is missing")
    if found.dim() != 4 or not len(found):
        raise UserError(f"images must have shape (N, C, H, W) with N >= 1, got {shape}")
    if not found.is_floating_point():
        raise UserError(f"images must be floats in [0, 1], got {found.dtype}; divide 8-bit images by 255")
    if bad := int((~torch.isfinite(found)).flatten(1).any(1).sum()):
        raise UserError(f"images must be finite, {bad} of {len(found)} hold NaN or infinite values")
    low, high = float(found.min()), float(found.max())
    if low < 0 or high > 1:
        if low >= 0 and high > 2:
            raise UserError(f"images must lie in [0, 1], got values up to {high:g}; divide 8-bit images by 255")
        raise UserError(
            f"images must lie in [0, 1], got values from {low:g} to {high:g}; put normalisation in the model"
        )
    return found.to(torch.float32).cpu()


def labels(y: Any) -> Tensor:
    """Labels as int64 (N,) on the CPU.

    Raises:
        UserError: They are not that; the line says what they are, and how to make them so.
    """
    found = tensor(y, "labels")
    shape = tuple(found.shape)
    wanted = f"labels must be whole numbers of shape (N,), got {found.dtype} {shape}"
    if found.dim() == 2 and shape[1] > 1:
        one_hot = bool(((found == 0) | (found == 1)).all() and (found.sum(1) == 1).all())
        raise UserError(f"{wanted}: {'one-hot, ' if one_hot else 'scores of classes? '}use y.argmax(1)")
    if found.dim() == 2:
        raise UserError(f"{wanted}: use y.flatten()")
    if found.dim() == 1 and found.is_floating_point() and bool((found == found.round()).all()):
        raise UserError(f"{wanted}: they are whole numbers, say so with y.long()")
    if found.dim() != 1 or found.is_floating_point() or found.dtype == torch.bool:
        raise UserError(wanted)
    return found.to(torch.int64).cpu()


def tensor(values: Any, what: str) -> Tensor:
    """Values as a tensor without a graph."""
    if isinstance(values, Tensor):
        return values.detach()
    try:
        return torch.from_numpy(np.array(values))  # a copy: read-only and reversed arrays are welcome
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} must be a tensor or an array of numbers: {error}") from None


def device_of(device: torch.device | str) -> torch.device:
    """Where to run.

    Raises:
        UserError: There is no such device here; the line lists those that are.
    """
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        choices = ["cpu", *(f"cuda:{place}" for place in range(torch.cuda.device_count()))]
        why = first_line(error) if isinstance(error, Exception) else ""
        raise UserError(f"no device {str(device)!r} here ({why}); choose from {', '.join(choices)}") from None
    return found


def budgets(
    eps: float | str | Mapping[Norm, float | str | Sequence[float | str]], norms: Sequence[Norm]
) -> dict[Norm, tuple[float, ...]]:
    """Budgets by norm, ascending; what names no norm is of the one of ``norms``, of L-infinity if there are more.

    Raises:
        UserError: A value that is no positive number.
    """
    said: Mapping[Norm, Any] = eps if isinstance(eps, Mapping) else {norms[0] if len(norms) == 1 else "linf": eps}
    found: dict[Norm, tuple[float, ...]] = {}
    for norm, values in said.items():
        each = [values] if isinstance(values, str | int | float) else list(values)
        try:
            numbers = sorted({float(number(value) if isinstance(value, str) else value) for value in each})
        except (TypeError, ValueError):
            numbers = []
        if not numbers or not all(math.isfinite(value) and value > 0 for value in numbers):
            raise UserError(f"eps must be positive numbers such as 8/255, got {values!r}")
        if norm == "linf" and numbers[-1] > 1:
            raise UserError(ANYTHING.format(f"{numbers[-1]:g}"))
        found[norm] = tuple(numbers)
    return found


def info_of(dataset: DatasetInfo | None, x: Tensor, classes: int) -> DatasetInfo:
    """What is known of the images.

    Raises:
        UserError: They are not those of the data set.
    """
    shape = tuple(int(side) for side in x.shape[1:])
    if dataset is None:
        return default_info("user", (shape[0], shape[1], shape[2]), tuple(map(str, range(classes))), len(x))
    if shape != dataset.shape or classes != len(dataset.classes):
        raise UserError(
            f"{dataset.name} has images {dataset.shape} and {len(dataset.classes)} classes, got {shape} and {classes}"
        )
    return dataset
