"""Data sets that a user's file or an installed package makes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote

import numpy as np
import torch
from torch import Tensor

from .. import determinism
from ..datasets.registry import DATASETS, USER_SETS, Dataset, DatasetInfo, DataSource, default_info
from ..errors import UserError, said, unknown
from ..options import guess, pairs
from . import plugins, process_state

FORM: Final = "a gauntlet.Dataset, or ((x_train, y_train), (x_test, y_test))"


@dataclass(frozen=True)
class MadeData:
    """A data set that a function returns, ``FILE.py:NAME[?key=value&...]`` or as a package offers it.

    Its name is the function's with a digest of the images and labels: it says which data, not where they lie.
    It can be pickled: another process calls the function again.

    Attributes:
        plugin: Where the function is.
        function: Its name there.
    """

    plugin: plugins.Origin
    function: str
    arguments: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """What to type for it."""
        words = "&".join(f"{name}={value}" for name, value in self.arguments)
        return self.plugin.text(self.function) + (f"?{words}" if words else "")

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines that its owner should read: none."""
        return ()

    def missing(self) -> str:
        """Why it cannot be read: what that is shows when the function is called."""
        return ""

    def info(self) -> DatasetInfo:
        """Its declaration."""
        return self.load().info

    def load(self) -> Dataset:
        """The data set, made once a process.

        Raises:
            UserError: The function raised, or returned something else.
        """
        return _made(self)


def source(text: str, *, root: Any = None, download: bool = False) -> DataSource | MadeData:
    """Where the data set lies that a text names: a file's or a package's function, or another of Gauntlet's own forms.

    Raises:
        UserError: Unknown name; no such file or function.
    """
    name, _, words = text.partition("?")
    if plugins.is_file(name):
        plugin = plugins.from_file(name, "data set", callable)
    elif name not in DATASETS and name in plugins.offered("datasets"):
        plugin = plugins.from_package("datasets", name, "data set", callable)
    elif name not in DATASETS and ":" not in name:
        raise unknown("data set", name, (*DATASETS, *USER_SETS, *plugins.offered("datasets")))
    else:
        return DataSource(text, root=root, download=download)
    given = pairs(words, "&", name)
    arguments = tuple(sorted((key, guess(unquote(value))) for key, value in given.items()))
    return MadeData(plugin.origin, plugin.name, arguments)


@lru_cache(maxsize=2)
def _made(data: MadeData) -> Dataset:
    make = plugins.find(data.plugin, data.function)
    try:
        with determinism.isolated(0), process_state.kept():  # one that draws its images makes the same ones anywhere
            made = make(**dict(data.arguments))
    except UserError:
        raise
    except Exception as error:  # the user's own
        raise UserError(f"{data.name} cannot be made ({said(error)})") from error
    called = data.function or data.plugin.text("")
    if isinstance(made, Dataset):
        found, called = made, made.info.name
    else:
        found = _of_arrays(data.name, made)
    return dataclasses.replace(found, info=dataclasses.replace(found.info, name=found.digest_name(called)))


def _of_arrays(name: str, made: Any) -> Dataset:
    try:
        (x_train, y_train), (x_test, y_test) = made
    except (TypeError, ValueError):
        raise UserError(f"{name} returned {type(made).__name__}, expected {FORM}") from None
    train, test = _images(name, x_train), _images(name, x_test)
    labels = [torch.as_tensor(np.asarray(y)) for y in (y_train, y_test)]
    if any(y.is_floating_point() or y.dim() != 1 for y in labels):
        raise UserError(f"{name}: labels must be whole numbers of shape (N,)")
    classes = 1 + int(max((int(y.max()) for y in labels if len(y)), default=0))
    channels, height, width = train.shape[1:]
    info = default_info(name, (channels, height, width), tuple(map(str, range(classes))), len(test))
    info = dataclasses.replace(info, train_size=len(train))
    return Dataset(info, train, labels[0].long(), test, labels[1].long())


def _images(name: str, given: Any) -> Tensor:
    images = torch.as_tensor(np.asarray(given))
    if images.dim() != 4:
        raise UserError(f"{name}: images must have shape (N, C, H, W), got {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point() or not len(images) or images.min() < 0 or images.max() > 1:
        raise UserError(f"{name}: images must be uint8, or floats in [0, 1], got {images.dtype}")
    return images.mul(255).round().to(torch.uint8)
