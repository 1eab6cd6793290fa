"""Data sets of scikit-learn and torchvision as uint8 tensors.

A leaf of the package that knows no budgets. Whatever is missing or damaged becomes a :class:`UserError` of one line
that names the file and what mends it. torchvision and scikit-learn are imported by the functions that need them:
``import harness.datasets.registry`` has to stay cheap.
"""

from __future__ import annotations

import gzip
import importlib.util
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import UserError
from .sampling import fixed_split

POINT: Final = "point --data-root (GAUNTLET_DATA) at the folder that holds it"


class Part(NamedTuple):
    """Training or test part of a set: uint8 (N, C, H, W), int64 (N,), where it came from and what would mend it."""

    x: Tensor
    y: Tensor
    origin: str
    mend: str = ""


def one_line(error: BaseException) -> str:
    """What an exception says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def damaged(origin: Path | str, what: str, mend: str) -> UserError:
    """The error for a file that is there and cannot be used."""
    return UserError(f"{origin} is damaged: {what}; {mend}")


def need_root(name: str, root: Path | None) -> Path:
    """The data folder, or the error that none was given."""
    if root is None:
        raise UserError(f"{name} needs a data folder: point --data-root (GAUNTLET_DATA) at one")
    return root.expanduser()


def read_digits(root: Path | None, download: bool) -> tuple[Part, Part]:
    """scikit-learn's bundled 8x8 digits, values 0..16; needs neither folder nor network."""
    rows = _bundled_digits()
    x = torch.from_numpy(rows[:, :64].astype(np.uint8)).view(-1, 1, 8, 8)
    y = torch.from_numpy(rows[:, 64].astype(np.int64))
    train, test = fixed_split(y)
    return Part(x[train], y[train], "digits train"), Part(x[test], y[test], "digits test")


def _bundled_digits() -> npt.NDArray[np.float64]:
    """Rows of 64 pixels and a label, from the file in scikit-learn: importing it takes every worker 3 s."""
    found = importlib.util.find_spec("sklearn")
    for folder in (found.submodule_search_locations or []) if found is not None else []:
        if (path := Path(folder) / "datasets" / "data" / "digits.csv.gz").is_file():
            with gzip.open(path, "rt") as file:
                return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # it has moved: ask for it

    bundle = load_digits()
    return np.column_stack([bundle.data, bundle.target])


def read_idx(name: str, kind_name: str, root: Path | None, download: bool) -> tuple[Part, Part]:
    """MNIST and sets in its format, from torchvision's layout.

    Raises:
        UserError: No folder given; a file missing, or not as long as its header says; the download failed.
    """
    root, kind = need_root(name, root), _torchvision(kind_name)
    folder = root / kind_name / "raw"
    files = [(folder / Path(url).stem, None) for url, _ in kind.resources]
    # torchvision's download leaves files that are there alone, damaged or not
    mend = "delete it and run the same command with --download"
    for path, _ in files:
        if path.is_file():
            _check_idx(path, mend)
    train, test = _construct(name, kind, root, files, download, ({"train": True}, {"train": False}), mend)
    return (
        Part(train.data.unsqueeze(1), train.targets, str(folder / "train-*-ubyte"), mend),
        Part(test.data.unsqueeze(1), test.targets, str(folder / "t10k-*-ubyte"), mend),
    )


def read_cifar(name: str, kind_name: str, root: Path | None, download: bool) -> tuple[Part, Part]:
    """CIFAR-10 and CIFAR-100 from their pickles, which torchvision checks by MD5; arguments as :func:`read_idx`."""
    root, kind = need_root(name, root), _torchvision(kind_name)
    folder = root / kind.base_folder
    listed = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    files = [(folder / file, md5) for file, md5 in listed]
    mend = "run the same command with --download"
    both = _construct(name, kind, root, files, download, ({"train": True}, {"train": False}), mend)
    train, test = (
        Part(
            torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets), str(folder), mend
        )
        for part in both
    )
    return train, test


def read_svhn(name: str, kind_name: str, root: Path | None, download: bool) -> tuple[Part, Part]:
    """SVHN's cropped digits (not the extra part) from MATLAB files; arguments as :func:`read_idx`."""
    root, kind = need_root(name, root), _torchvision(kind_name)
    splits = ("train", "test")
    files = [(root / kind.split_list[split][1], kind.split_list[split][2]) for split in splits]
    mend = "run the same command with --download"
    both = _construct(name, kind, root, files, download, ({"split": "train"}, {"split": "test"}), mend)
    train, test = (
        Part(torch.from_numpy(np.ascontiguousarray(part.data)), torch.from_numpy(part.labels), str(path), mend)
        for part, (path, _) in zip(both, files, strict=True)
    )
    return train, test


def load_torchvision() -> None:
    """Import torchvision, which takes seconds."""
    import torchvision.datasets  # noqa: F401


def _torchvision(kind_name: str) -> Any:
    import torchvision.datasets

    return getattr(torchvision.datasets, kind_name)


def _construct(
    name: str,
    kind: Any,
    root: Path,
    files: Sequence[tuple[Path, str | None]],
    download: bool,
    options: tuple[dict[str, Any], dict[str, Any]],
    mend: str,
) -> list[Any]:
    """The training and test object of a torchvision class; whatever it raises becomes one line."""
    from torchvision.datasets.utils import check_integrity

    folder = files[0][0].parent
    missing = [path for path, _ in files if not path.is_file()]
    if missing and not download:
        what = f"{name} is not in {folder}" if len(missing) == len(files) else f"{missing[0]} is missing"
        raise UserError(f"{what}: run the same command with --download, or {POINT}")
    try:
        return [kind(str(root), download=download, **option) for option in options]
    except Exception as error:  # torchvision, pickle, scipy and the network each have exceptions of their own
        bad = next((path for path, md5 in files if not check_integrity(str(path), md5)), None)
        if bad is not None and download:
            raise UserError(
                f"{name} cannot be downloaded to {folder}: {one_line(error)}; try again, or {POINT}"
            ) from error
        if bad is not None:
            raise damaged(bad, "its MD5 is not that of the published file", mend) from error
        raise damaged(folder, one_line(error), mend) from error


def _check_idx(path: Path, mend: str) -> None:
    """Compare an idx file's length with what its header promises; torchvision would read what there is."""
    dims = int(path.name.split("-idx")[1][0])
    with path.open("rb") as file:
        header = file.read(4 + 4 * dims)
    if len(header) < 4 + 4 * dims or header[:4] != bytes((0, 0, 8, dims)):
        raise damaged(path, f"it does not begin like an idx file of bytes in {dims} dimensions", mend)
    promised = len(header) + math.prod(struct.unpack(f">{dims}I", header[4:]))
    if path.stat().st_size != promised:
        raise damaged(path, f"{path.stat().st_size} bytes long where its header says {promised}", mend)
