"""Data sets: whole sets in memory as uint8, converted to float32 in [0, 1] on access.

:data:`DATASETS` is the table of what there is: adding a set is one entry. A user's own are named by form and path,
``images:DIR`` and ``parquet:FILE`` (see :mod:`harness.datasets.image_folders` for the layouts), with
``?resize=256&crop=224&classes=FILE`` where wanted. Their images stay files until they are asked for.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import UserError, unknown
from ..threat import Norm
from . import image_folders, sampling, set_options, torchvision_sets
from .set_options import SetOptions

Budgets = Mapping[Norm, tuple[float, ...]]
Half = Literal["train", "test"]
"""The training part of a data set, or its test part."""
ALL: Final = slice(None)


class Split(NamedTuple):
    """Images float32 (N, C, H, W) in [0, 1] and labels int64 (N,)."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set without reading it.

    Attributes:
        classes: Names of the classes, in label order.
        budgets: Canonical eps per norm, ascending, in pixel units of [0, 1].
        eps: Per norm, the one of :attr:`budgets` that defenses train at unless told otherwise.
        epochs: Default passes of training.
        test_size: Images in the test part.
        train_size: Images in the training part, 0 where nobody has counted them.
        levels: Images hold integers 0..levels (255 for 8-bit images, 16 for the embedded digits).
        trains: Whether it has a training part; a user's own set may be there to judge finished models alone.
    """

    name: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    budgets: Budgets
    eps: Mapping[Norm, float]
    test_size: int
    train_size: int = 0
    epochs: int = 20
    levels: int = 255
    source: str = ""
    trains: bool = True


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

    Attributes:
        x_train: uint8 (N, C, H, W) with values 0..info.levels.
        y_train: int64 (N,).
        x_test: As ``x_train``.
        y_test: As ``y_train``.

    Raises:
        UserError: A tensor of another dtype or shape, a value or label out of range, a part without images.
    """

    info: DatasetInfo
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    def __post_init__(self) -> None:
        if self.info.trains or len(self.y_train):
            _check(self.info, torchvision_sets.Part(self.x_train, self.y_train, f"{self.info.name} train"))
        _check(self.info, torchvision_sets.Part(self.x_test, self.y_test, f"{self.info.name} test"))

    def to_float(self, images: Tensor) -> Tensor:
        """uint8 images to float32 in [0, 1]."""
        return images.to(torch.float32, copy=True).div_(self.info.levels)

    @property
    def train(self) -> Split:
        """The training part as floats: four times the memory, converted at each access."""
        return Split(self.to_float(self.x_train), self.y_train)

    @property
    def test(self) -> Split:
        """The test part as floats, converted at each access."""
        return Split(self.to_float(self.x_test), self.y_test)

    def test_sample(self, n: int, rows: slice = ALL) -> tuple[Tensor, Split]:
        """The first ``n`` test images of a fixed, stratified order.

        Samples are nested: the one of 100 begins the one of 1000. Every sample holds the classes in the proportions
        of the whole test part, as near as whole images allow.

        Args:
            n: How many, in 1..size of the test part.
            rows: Which of them, if not all: no other is converted.

        Returns:
            Their positions in the test part, int64 (n,), and the images and labels.

        Raises:
            UserError: ``n`` out of range.
        """
        index = self._sample(self._test_order, n, "test")[rows]
        return index, Split(self.to_float(self._images("test", index)), self.y_test[index])

    def train_sample(self, n: int, rows: slice = ALL) -> tuple[Tensor, Split]:
        """As :meth:`test_sample`, of the training part."""
        index = self._sample(self._train_order, n, "training")[rows]
        return index, Split(self.to_float(self._images("train", index)), self.y_train[index])

    def preparation_sample(self, n: int) -> Split:
        """At most ``n`` images for an attack to learn from: training images or, where there are none, test images.

        What learned from the very images that it attacks can only be the stronger for it.
        """
        sample, y = (self.train_sample, self.y_train) if len(self.y_train) else (self.test_sample, self.y_test)
        return sample(min(n, len(y)))[1]

    def examples(self, classes: Tensor, each: int) -> Tensor:
        """Images of some classes, float32 (M, C, H, W): training images or, where there are none, test images.

        Args:
            classes: Which classes, int64 (K,).
            each: At most how many of each, the first of the fixed order.
        """
        part: Half = "train" if len(self.y_train) else "test"
        order, y = (self._train_order, self.y_train) if part == "train" else (self._test_order, self.y_test)
        index = [order[y[order] == one][:each] for one in classes.tolist()]
        return self.to_float(self._images(part, torch.cat(index)))

    def _images(self, part: Half, index: Tensor) -> Tensor:
        """uint8 images of a part at these places."""
        return (self.x_train if part == "train" else self.x_test)[index]

    def first(self, n: int) -> Dataset:
        """The data set with the images of :meth:`train_sample` as its training part."""
        index = self._sample(self._train_order, n, "training")
        return replace(self, x_train=self.x_train[index], y_train=self.y_train[index])

    def sha256(self) -> str:
        """Digest of images and labels, as hexadecimal digits."""
        digest = hashlib.sha256()
        for tensor in (self.x_train, self.y_train, self.x_test, self.y_test):
            digest.update(f"{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def digest_name(self, called: str) -> str:
        """A name that says which images these are, as sets that users make have it."""
        return f"{called}@{self.sha256()[:8]}"

    @cached_property
    def _test_order(self) -> Tensor:
        return sampling.stratified_order(self.y_test, salt=1)

    @cached_property
    def _train_order(self) -> Tensor:
        return sampling.stratified_order(self.y_train, salt=0)

    def _sample(self, order: Tensor, n: int, part: str) -> Tensor:
        if not 1 <= n <= len(order):
            raise UserError(f"a sample of {n} {part} images of {self.info.name}: choose from 1..{len(order)}")
        return order[:n].clone()


class FileDataset(Dataset):
    """A user's own set: an image is decoded when a sample holds it, all of a part when somebody asks for the whole.

    Its classes and sizes were looked at when it was opened; what a file holds beyond its header is seen when it is
    decoded.
    """

    def __init__(self, info: DatasetInfo, opened: image_folders.UserSet) -> None:
        values = {"info": info, "opened": opened, "y_train": opened.train.y, "y_test": opened.test.y}
        for name, value in values.items():
            object.__setattr__(self, name, value)
        for part in (opened.train, opened.test):
            _check_labels(info, part.y, part.origin)

    opened: image_folders.UserSet

    @cached_property
    def x_train(self) -> Tensor:
        """All training images, as of any data set."""
        return image_folders.decoded(self.opened.train, self.info.shape, None, self.opened.options)

    @cached_property
    def x_test(self) -> Tensor:
        """All test images, as of any data set."""
        return image_folders.decoded(self.opened.test, self.info.shape, None, self.opened.options)

    def _images(self, part: Half, index: Tensor) -> Tensor:
        if f"x_{part}" in vars(self):
            return super()._images(part, index)
        files = self.opened.train if part == "train" else self.opened.test
        return image_folders.decoded(files, self.info.shape, index.tolist(), self.opened.options)

    def first(self, n: int) -> Dataset:
        """As of any data set."""
        index = self._sample(self._train_order, n, "training")
        return Dataset(self.info, self._images("train", index), self.y_train[index], self.x_test, self.y_test)


def _check(info: DatasetInfo, part: torchvision_sets.Part) -> None:
    """Raise the one-line error for the first thing wrong with a part."""
    x, y, origin, mend = part

    def wrong(what: str) -> UserError:
        return UserError(f"{origin}: {what}{mend and '; '}{mend}")

    if x.dtype != torch.uint8 or y.dtype != torch.int64:
        raise wrong(f"images {x.dtype} and labels {y.dtype}, expected torch.uint8 and torch.int64")
    if x.dim() != 4 or tuple(x.shape[1:]) != info.shape or y.dim() != 1:
        expected = f"(N, {', '.join(map(str, info.shape))}) and (N,)"
        raise wrong(f"images of shape {tuple(x.shape)} and labels of shape {tuple(y.shape)}, expected {expected}")
    if len(x) != len(y):
        raise wrong(f"{len(x)} images, but {len(y)} labels")
    if not len(x):
        raise wrong("it has no images")
    if int(x.max()) > info.levels:
        raise wrong(f"a pixel has the value {int(x.max())}, expected 0..{info.levels}")
    _check_labels(info, y, origin, mend)


def _check_labels(info: DatasetInfo, y: Tensor, origin: str, mend: str = "") -> None:
    bad = ((y < 0) | (y >= len(info.classes))).nonzero().flatten()
    if len(bad):
        label, count = int(y[bad[0]]), f"{len(bad)} of {len(y)} labels are"
        what = f"label {label} of image {int(bad[0])} is outside 0..{len(info.classes) - 1} ({count})"
        raise UserError(f"{origin}: {what}{mend and '; '}{mend}")


Reader = Callable[[Path | None, bool], tuple[torchvision_sets.Part, torchvision_sets.Part]]

_DIGITS: Final = tuple("0123456789")
_CIFAR10: Final = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100: Final = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
_FASHION: Final = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")

# The digits' budgets come from the data. Nearest images of different classes, over all 1,797 (minimum, 1 %, 10 %,
# median): linf 0.44, 0.50, 0.62, 0.69; l2 1.18, 1.32, 1.54, 1.86; l1 4.50, 5.37, 6.56, 8.12. Below half the minimum
# (linf 0.219, l2 0.590, l1 2.25) a perturbed image is still nearer to its original than to any image of another
# class: as far as the data can tell, no success is a true change of class. The largest budgets are 0.69, 0.85 and 0.89
# of that.
_DIGITS_BUDGETS: Final[Budgets] = {"linf": (0.05, 0.1, 0.15), "l2": (0.25, 0.5), "l1": (1.0, 2.0)}

# linf and l2 are the literature's customary values (linf since Madry et al. 2018). l1 is 10 on MNIST (Tramer & Boneh
# 2019) and 12 on CIFAR (Maini et al. 2020), and half of each. No l0 budget counted in components is customary.
_MNIST_BUDGETS: Final[Budgets] = {"linf": (0.1, 0.2, 0.3), "l2": (1.5, 2.0), "l1": (5.0, 10.0)}
_CIFAR_BUDGETS: Final[Budgets] = {"linf": (2 / 255, 4 / 255, 8 / 255), "l2": (0.25, 0.5, 1.0), "l1": (6.0, 12.0)}

_MNIST: Final = DatasetInfo(
    name="mnist",
    shape=(1, 28, 28),
    classes=_DIGITS,
    budgets=_MNIST_BUDGETS,
    # 0.3, as in Madry et al. (2018), is more than a small MLP can learn: its loss stays at chance. At 0.1 one gradient
    # step trains as well as seven (mlp-200-200: 90 % and 88 % left at 0.1), at 0.2 it no longer does (6 % and 55 %).
    eps={"linf": 0.2, "l2": 1.5, "l1": 10.0},
    test_size=10_000,
    train_size=60_000,
    epochs=10,
    source="LeCun, Cortes & Burges: The MNIST database of handwritten digits",
)
_CIFAR: Final = DatasetInfo(
    name="cifar10",
    shape=(3, 32, 32),
    classes=_CIFAR10,
    budgets=_CIFAR_BUDGETS,
    eps={"linf": 8 / 255, "l2": 0.5, "l1": 12.0},
    test_size=10_000,
    train_size=50_000,
    source="Krizhevsky 2009: Learning multiple layers of features from tiny images",
)
_EMBEDDED: Final = DatasetInfo(
    name="digits",
    shape=(1, 8, 8),
    classes=_DIGITS,
    budgets=_DIGITS_BUDGETS,
    eps={"linf": 0.1, "l2": 0.5, "l1": 2.0},
    test_size=359,
    train_size=1438,
    epochs=60,
    levels=16,
    source="Alpaydin & Kaynak 1998: Optical recognition of handwritten digits, as bundled with scikit-learn",
)
_FASHION_MNIST: Final = replace(
    _MNIST,
    name="fashion-mnist",
    classes=_FASHION,
    eps={**_MNIST.eps, "linf": 0.1},  # garments of different classes lie closer than digits do
    source="Xiao, Rasul & Vollgraf 2017: Fashion-MNIST, arXiv:1708.07747",
)
_SVHN: Final = replace(
    _CIFAR,
    name="svhn",
    classes=_DIGITS,
    test_size=26_032,
    train_size=73_257,
    source="Netzer et al. 2011: Reading digits in natural images with unsupervised feature learning",
)
_JPEG: Final = replace(_CIFAR, name="cifar10-jpeg", source=f"{_CIFAR.source}; every image re-encoded as JPEG")

_TABLE: Final[tuple[tuple[DatasetInfo, Reader], ...]] = (
    (_EMBEDDED, torchvision_sets.read_digits),
    (_MNIST, partial(torchvision_sets.read_idx, "mnist", "MNIST")),
    (_FASHION_MNIST, partial(torchvision_sets.read_idx, "fashion-mnist", "FashionMNIST")),
    (_CIFAR, partial(torchvision_sets.read_cifar, "cifar10", "CIFAR10")),
    (
        replace(_CIFAR, name="cifar100", classes=tuple(_CIFAR100.split())),
        partial(torchvision_sets.read_cifar, "cifar100", "CIFAR100"),
    ),
    (_SVHN, partial(torchvision_sets.read_svhn, "svhn", "SVHN")),
    (_JPEG, partial(image_folders.read_parquet_folder, _JPEG.name, _JPEG.shape, _CIFAR10)),
)

DATASETS: Final[dict[str, DatasetInfo]] = {info.name: info for info, _ in _TABLE}
"""Every set that has a name of its own; a norm missing from a set's budgets has no canonical one."""

_READERS: Final[dict[str, Reader]] = {info.name: read for info, read in _TABLE}

_CIFAR10_FILES: Final = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")
_IDX_FILES: Final = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
PLACES: Final[Mapping[str, tuple[str, ...]]] = {
    "mnist": tuple(f"MNIST/raw/{name}" for name in _IDX_FILES),
    "fashion-mnist": tuple(f"FashionMNIST/raw/{name}" for name in _IDX_FILES),
    "cifar10": tuple(f"cifar-10-batches-py/{name}" for name in _CIFAR10_FILES),
    "cifar100": tuple(f"cifar-100-python/{name}" for name in ("train", "test", "meta")),
    "svhn": ("train_32x32.mat", "test_32x32.mat"),
    "cifar10-jpeg": ("cifar10-jpeg/train.parquet", "cifar10-jpeg/test.parquet"),
}
"""Files of each set below the data folder: where they are missing, that is found without importing torchvision."""

USER_SETS: Final = ("images:DIR", "parquet:FILE")
"""How a user's own sets are named."""

SMALL: Final = 2**26
"""Bytes of decoded images up to which a user's set is decoded at once, so that a damaged image is named at once."""

_OPENERS: Final[dict[str, Callable[[Path, SetOptions], image_folders.UserSet]]] = {
    "images": image_folders.open_images,
    "parquet": image_folders.open_parquet,
}


def dataset_names() -> tuple[str, ...]:
    """The names of :data:`DATASETS`, the embedded default first."""
    return tuple(DATASETS)


def dataset_info(name: str) -> DatasetInfo:
    """Declaration of a data set: pure for one of :data:`DATASETS`; a user's set is read, but not decoded.

    The name in a user's declaration is ``FORM:BASENAME@DIGEST``: it says which data, not where they lie.

    Raises:
        UserError: Unknown name, with the choices; a user's set that is missing or damaged.
    """
    source = DataSource(name)
    return DATASETS[name] if source.path is None else _user_info(source.opened)


def load_dataset(
    name: str,
    *,
    root: Path | None = None,
    download: bool = False,
    resize: int | str = "",
    crop: int | str = "",
    classes: str | Path = "",
) -> Dataset:
    """Read a data set into memory; of a user's own set of images no more than what is asked for.

    Args:
        name: One of :func:`dataset_names`, ``images:DIR`` or ``parquet:FILE``.
        root: Data folder, in torchvision's layout; by default the environment's ``GAUNTLET_DATA``. The embedded
            and the user's own sets do without.
        download: Fetch a torchvision set that is not there. Two processes must not do so at once.
        resize: Of a user's own set: length of the shorter side in pixels, or ``"WIDTHxHEIGHT"``; part of its name.
        crop: What is then cut out of the middle, likewise.
        classes: Which of a model's outputs its classes are, ``"imagenet"`` or a file: see
            :mod:`harness.datasets.class_maps`. Labels are those outputs, and all of them compete.

    Raises:
        UserError: Unknown name; a file missing or damaged: one line that names it and what mends it.
    """
    source = DataSource(with_options(name, resize=resize, crop=crop, classes=classes), root, download)
    return _read(source)


def with_options(name: str, *, resize: object = "", crop: object = "", classes: object = "") -> str:
    """The name of a user's own set with options, ``images:DIR?resize=256&crop=224``; each is given once.

    Raises:
        UserError: An option that cannot be read or is there already; options for a set that is no user's.
    """
    given = {"resize": resize, "crop": crop, "classes": classes}
    wanted = {option: str(value) for option, value in given.items() if value}
    if not wanted:
        return name
    form, _, text = name.partition(":")
    if form not in _OPENERS:
        raise UserError(f"--{next(iter(wanted))} is for {' or '.join(USER_SETS)}; {name} is taken as it is")
    path, options = set_options.parse(text)
    if twice := [option for option in wanted if getattr(options, option)]:
        raise UserError(f"{name} says {twice[0]} already: drop one of the two")
    return f"{form}:{path}{set_options.check(replace(options, **wanted)).words}"


def _read(source: DataSource) -> Dataset:
    if source.path is not None:
        # one reading for the name and the images, so that they cannot disagree
        read = FileDataset(_user_info(source.opened), source.opened)
        if (len(read.y_train) + len(read.y_test)) * math.prod(read.info.shape) <= SMALL:
            assert read.x_train is not None
            assert read.x_test is not None
        return read
    info = DATASETS[source.name]
    parts = _READERS[source.name](_root(source), source.download)
    for part in parts:
        _check(info, part)
    train, test = parts
    if len(test.y) != info.test_size:
        counts = f"{len(test.y)} test images, where {info.name} has {info.test_size}"
        raise UserError(f"{test.origin}: {counts}; {test.mend}")
    return Dataset(info, train.x, train.y, test.x, test.y)


def _root(source: DataSource) -> Path | None:
    environment = os.environ.get("GAUNTLET_DATA")
    return source.root or (Path(environment) if environment else None)


def loads(name: str) -> tuple[Callable[[], None], ...]:
    """Functions that import what a set of a name is read with; of a user's own none."""
    return (torchvision_sets.load_torchvision,) if name in PLACES and name != _JPEG.name else ()


@dataclass(frozen=True)
class DataSource:
    """Where a data set comes from: picklable, for worker processes. Paths are made absolute.

    Raises:
        UserError: Unknown name.
    """

    name: str
    root: Path | None = None
    download: bool = False

    def __post_init__(self) -> None:
        if self.root is not None:
            object.__setattr__(self, "root", Path(self.root).expanduser().absolute())
        if self.name in DATASETS:
            return
        form, _, path = self.name.partition(":")
        if form not in _OPENERS or not path:
            raise unknown("data set", self.name, (*DATASETS, *USER_SETS))
        where, options = set_options.parse(path)
        object.__setattr__(self, "name", f"{form}:{where}{options.words}")

    @property
    def path(self) -> Path | None:
        """Where a user's own set lies; ``None`` for one of :data:`DATASETS`."""
        return None if self.name in DATASETS else set_options.parse(self.name.partition(":")[2])[0]

    @cached_property
    def opened(self) -> image_folders.UserSet:
        """A user's own set, its files read once and not decoded."""
        form, _, text = self.name.partition(":")
        return _OPENERS[form](*set_options.parse(text))

    def __getstate__(self) -> dict[str, Any]:
        # workers need not read all files once more; a parquet file's contents are not sent to them
        state = dict(vars(self))
        if not self.name.startswith("images:"):
            state.pop("opened", None)
        return state

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines that the owner of a user's set should read."""
        return () if self.path is None else self.opened.notes

    def missing(self) -> str:
        """Why it cannot be read, as far as files that are not there tell; "" if they are all there, or are fetched."""
        places = PLACES.get(self.name, ())
        if not places or self.download:
            return ""
        root = _root(self)
        if root is None:
            return f"{self.name} needs a data folder: point --data-root (GAUNTLET_DATA) at one"
        absent = [root.expanduser() / place for place in places if not (root.expanduser() / place).is_file()]
        if not absent:
            return ""
        what = f"{absent[0]} is missing" if len(absent) < len(places) else f"{self.name} is not in {absent[0].parent}"
        above = root.expanduser().absolute().parent
        if len(absent) == len(places) and all((above / place).is_file() for place in places):
            return f"{what}: it is in the folder above, point --data-root (GAUNTLET_DATA) at {above}"
        fetch = "" if self.name == _JPEG.name else "run the same command with --download, or "
        return f"{what}: {fetch}{torchvision_sets.POINT}"

    def load(self) -> Dataset:
        """The data set, read once a process (the last two are kept); raises as :func:`load_dataset`."""
        return _load(self)

    def info(self) -> DatasetInfo:
        """Its declaration, read once a process; raises as :func:`dataset_info`."""
        return _info(self)


@lru_cache(maxsize=2)
def _load(source: DataSource) -> Dataset:
    return _read(source)


@lru_cache(maxsize=64)
def _info(source: DataSource) -> DatasetInfo:
    return DATASETS[source.name] if source.path is None else _user_info(source.opened)


def _user_info(opened: image_folders.UserSet) -> DatasetInfo:
    info = default_info(opened.name, opened.shape, opened.classes, len(opened.test.y))
    return replace(info, train_size=len(opened.train.y), trains=len(opened.train.y) > 0)


def default_info(name: str, shape: tuple[int, int, int], classes: tuple[str, ...], test_size: int) -> DatasetInfo:
    """Declaration of a set without one: budgets of CIFAR for colour, of MNIST for gray, by the root of the size.

    The root keeps an l2 budget's root mean square. l1 goes by it too, as in the literature (12 on CIFAR, 60 on
    224x224 images): an l1 attack is sparse, and a budget by the number of pixels would leave no image intact.
    """
    like = _CIFAR if shape[0] == 3 else _MNIST
    factor = math.sqrt(math.prod(shape) / math.prod(like.shape))

    def scaled(norm: Norm, eps: float) -> float:
        return eps if norm == "linf" else float(f"{eps * factor:.2g}")

    return DatasetInfo(
        name=name,
        shape=shape,
        classes=classes,
        budgets={norm: tuple(scaled(norm, eps) for eps in values) for norm, values in like.budgets.items()},
        eps={norm: scaled(norm, eps) for norm, eps in like.eps.items()},
        test_size=test_size,
    )
