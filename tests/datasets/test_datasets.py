from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import os
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.datasets.registry import (
    DATASETS,
    Dataset,
    DatasetInfo,
    DataSource,
    dataset_info,
    dataset_names,
    load_dataset,
)
from harness.datasets.sampling import stratified_order
from harness.errors import UserError
from harness.threat import Norm
from tests.helpers.datasets import idx, labels, make_mnist, pixels, write

ROOT = Path(__file__).parents[2]
FORMS = ("mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "cifar10-jpeg")


def complaint(call: Callable[[], object]) -> str:
    """The one line that a call fails with."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


# --- made-up sets, in every layout ---


def image_bytes(image: np.ndarray, kind: str = "PNG") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def make_cifar(root: Path, patch: pytest.MonkeyPatch, kind: str = "CIFAR10") -> None:
    import torchvision.datasets

    cls = getattr(torchvision.datasets, kind)
    folder, key = root / cls.base_folder, "labels" if kind == "CIFAR10" else "fine_labels"
    for attribute, first in (("train_list", 0), ("test_list", 5)):
        listed = []
        for seed, (name, _) in enumerate(getattr(cls, attribute), start=first):
            entry = {"data": pixels(20, 3072, seed=seed), key: labels(20, 10 if kind == "CIFAR10" else 100).tolist()}
            listed.append([name, write(folder / name, pickle.dumps(entry))])
        patch.setattr(cls, attribute, listed)
    meta = write(folder / cls.meta["filename"], pickle.dumps({cls.meta["key"]: ["made", "up"]}))
    patch.setattr(cls, "meta", {**cls.meta, "md5": meta})


def make_svhn(root: Path, patch: pytest.MonkeyPatch) -> None:
    import scipy.io
    from torchvision.datasets import SVHN

    listed = dict(SVHN.split_list)
    for seed, split in enumerate(("train", "test")):
        buffer = io.BytesIO()
        target = labels(20).astype(np.uint8).reshape(-1, 1)
        target[target == 0] = 10  # the published files call the digit 0 so
        scipy.io.savemat(buffer, {"X": pixels(20, 32, 32, 3, seed=seed).transpose(1, 2, 3, 0), "y": target})
        listed[split] = [listed[split][0], listed[split][1], write(root / listed[split][1], buffer.getvalue())]
    patch.setattr(SVHN, "split_list", listed)


def make_parquet(path: Path, images: list[bytes | None], label: Any, **more: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = more.pop("metadata", None)
    table = pa.table({"image": [{"bytes": image, "path": None} for image in images], "label": label, **more})
    pq.write_table(table.replace_schema_metadata(metadata), path)


def make_cifar_jpeg(root: Path) -> None:
    for seed, split in enumerate(("train", "test")):
        blobs = [image_bytes(image, "JPEG") for image in pixels(20, 32, 32, 3, seed=seed)]
        make_parquet(root / "cifar10-jpeg" / f"{split}.parquet", list(blobs), labels(20).tolist())


def make_folder(folder: Path, shape: tuple[int, ...] = (6, 5, 3), n: int = 4) -> np.ndarray:
    """``n`` images for each of two classes in both parts; all of them, in the order they should be read."""
    every = pixels(4 * n, *shape)
    for row, image in enumerate(every):
        split, name = ("train", "test")[row // (2 * n)], ("cat", "dog")[row // n % 2]
        write(folder / split / name / f"{row:03}.png", image_bytes(image))
    return every


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sets as declared with 20 test images each."""
    for name in FORMS:
        monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], test_size=20))


@pytest.fixture
def root(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a small made-up set for every name that reads one."""
    monkeypatch.delenv("GAUNTLET_DATA", raising=False)
    make_mnist(tmp_path)
    make_mnist(tmp_path, "FashionMNIST")
    make_cifar(tmp_path, monkeypatch)
    make_cifar(tmp_path, monkeypatch, "CIFAR100")
    make_svhn(tmp_path, monkeypatch)
    make_cifar_jpeg(tmp_path)
    return tmp_path


# --- the table ---


def test_table() -> None:
    assert dataset_names() == ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "cifar10-jpeg")
    for name, info in DATASETS.items():
        assert info.name == name
        assert dataset_info(name) is info
        assert len(set(info.classes)) == len(info.classes) == (100 if name == "cifar100" else 10)
        assert set(info.budgets) == set(info.eps) == {"linf", "l2", "l1"}
        for norm, values in info.budgets.items():
            assert values[0] > 0
            assert list(values) == sorted(set(values))
            assert info.eps[norm] in values
        assert info.source
        assert pickle.loads(pickle.dumps(info)) == info
    assert list(DATASETS["cifar100"].classes) == sorted(DATASETS["cifar100"].classes)
    assert DATASETS["mnist"].budgets["linf"] == (0.1, 0.2, 0.3)
    assert DATASETS["cifar10"].budgets["linf"] == (2 / 255, 4 / 255, 8 / 255)
    assert 0.5 in DATASETS["svhn"].budgets["l2"]


def test_class_names_agree_with_torchvision() -> None:
    from torchvision.datasets import MNIST, FashionMNIST

    ours = [name.replace("-", "").lower() for name in DATASETS["fashion-mnist"].classes]
    theirs = [name.replace("/top", "").replace("-", "").replace(" ", "").lower() for name in FashionMNIST.classes]
    assert ours == theirs
    assert [name[0] for name in MNIST.classes] == list(DATASETS["mnist"].classes)


def test_import_is_light() -> None:
    heavy = ["torchvision", "sklearn", "pandas", "pyarrow", "PIL", "scipy"]
    code = (
        "import sys, harness.datasets.registry as d; d.dataset_info('cifar10'); "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["mnits", "", "images:", "parquet:", "folder:x", "images"])
def test_unknown_name(name: str) -> None:
    calls: tuple[Callable[[str], object], ...] = (dataset_info, load_dataset, DataSource)
    for call in calls:
        message = complaint(partial(call, name))
        assert "unknown data set" in message
        assert "cifar10-jpeg, images:DIR, parquet:FILE" in message
    if name == "mnits":
        assert "did you mean mnist" in message


# --- the embedded set ---


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def test_digits_are_scikit_learns(digits: Dataset) -> None:
    from sklearn.datasets import load_digits

    bundle = load_digits()
    assert digits.x_train.shape == (1438, 1, 8, 8)
    assert digits.x_test.shape == (digits.info.test_size, 1, 8, 8)
    both = torch.cat([digits.train.x, digits.test.x]).flatten(1).numpy()
    mine = np.column_stack([both * 16, torch.cat([digits.y_train, digits.y_test])])
    theirs = np.column_stack([bundle.data, bundle.target])
    assert sorted(map(tuple, mine.tolist())) == sorted(map(tuple, theirs.tolist()))  # each image in one part only
    share = torch.bincount(digits.y_test) / torch.bincount(torch.from_numpy(bundle.target))
    assert (share - 0.2).abs().max() < 0.01


def test_digits_split_never_changes(digits: Dataset) -> None:
    # models are trained on it: another split under the same name would mix up results
    content = digits.x_test.numpy().tobytes() + digits.y_test.numpy().tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == "45ec36f1d27842e4"


def test_digits_budgets_follow_from_the_data(digits: Dataset) -> None:
    x = torch.cat([digits.train.x, digits.test.x]).flatten(1).double()
    y = torch.cat([digits.y_train, digits.y_test])
    printed: dict[Norm, tuple[float, ...]] = {
        "linf": (0.44, 0.50, 0.62, 0.69),
        "l2": (1.18, 1.32, 1.54, 1.86),
        "l1": (4.50, 5.37, 6.56, 8.12),
    }
    norms: tuple[tuple[Norm, float], ...] = (("linf", math.inf), ("l2", 2.0), ("l1", 1.0))
    for norm, exponent in norms:
        distance = torch.cdist(x, x, p=exponent).masked_fill(y[:, None] == y, math.inf).amin(1)
        quantiles = torch.quantile(distance, torch.tensor([0, 0.01, 0.1, 0.5], dtype=torch.float64))
        assert torch.allclose(quantiles, torch.tensor(printed[norm], dtype=torch.float64), atol=0.0051)
        assert max(DATASETS["digits"].budgets[norm]) < 0.9 * distance.min() / 2


# --- samples ---


def toy(n_train: int = 40, n_test: int = 30, classes: int = 10, **changes: Any) -> Dataset:
    info = DatasetInfo(
        "toy", (1, 2, 2), tuple(map(str, range(classes))), {}, {}, n_test, levels=changes.pop("levels", 255)
    )
    parts: dict[str, Any] = {
        "x_train": torch.from_numpy(pixels(n_train, 1, 2, 2).clip(max=info.levels)),
        "y_train": torch.from_numpy(labels(n_train, classes)),
        "x_test": torch.from_numpy(pixels(n_test, 1, 2, 2).clip(max=info.levels)),
        "y_test": torch.from_numpy(labels(n_test, classes)),
    }
    return Dataset(info, **{**parts, **changes})


@pytest.mark.parametrize("sizes", [(100,) * 10, (500, 300, 100, 7, 1), (980, 1135, 1032, 1010, 982, 892, 958, 1028)])
def test_order_is_a_stratified_permutation(sizes: tuple[int, ...]) -> None:
    y = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))  # sorted by class: the worst case
    order = stratified_order(y, salt=1)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(len(y)))
    counts = torch.nn.functional.one_hot(y[order]).cumsum(0)
    share = torch.tensor(sizes) / len(y)
    quota = torch.arange(1, len(y) + 1)[:, None] * share
    # Sainte-Lague: 1/2 for a class's own rounding, and its share of everybody else's
    assert ((counts - quota).abs() <= 0.5 + share * len(sizes) / 2 + 1e-4).all()
    # shuffled: neither ascending within a class, nor classes in a fixed turn
    first = order[y[order] == 0]
    assert (first[1:] > first[:-1]).double().mean() < 0.6
    assert len({tuple(y[order][start : start + 5].tolist()) for start in range(0, 50, 5)}) > 5


def test_order_never_changes() -> None:
    expected = [
        28,
        20,
        21,
        25,
        23,
        15,
        8,
        24,
        10,
        14,
        4,
        3,
        12,
        22,
        26,
        7,
        0,
        11,
        13,
        18,
        5,
        16,
        27,
        17,
        1,
        9,
        2,
        6,
        19,
        29,
    ]
    assert stratified_order(torch.arange(30) % 3, salt=1).tolist() == expected
    assert not torch.equal(stratified_order(torch.arange(30) % 3, 1), stratified_order(torch.arange(30) % 3, 0))


def test_examples_are_the_first_of_their_classes(digits: Dataset) -> None:
    _, labels = digits.train_sample(len(digits.y_train))
    wanted = torch.cat([labels.x[labels.y == one][:3] for one in (7, 2)])
    assert torch.equal(digits.examples(torch.tensor([7, 2]), 3), wanted)
    info = replace(digits.info, trains=False)
    bare = replace(digits, info=info, x_train=digits.x_train[:0], y_train=digits.y_train[:0])
    x, y = digits.test_sample(len(digits.y_test))[1]
    assert torch.equal(bare.examples(torch.tensor([4]), 1000), x[y == 4])


def test_samples_are_nested_and_matched(digits: Dataset) -> None:
    whole, _ = digits.test_sample(359)
    assert torch.equal(whole.sort().values, torch.arange(359))
    for n in (1, 10, 100):
        index, (x, y) = digits.test_sample(n)
        assert torch.equal(index, whole[:n])
        assert torch.equal(x, digits.test.x[index])
        assert torch.equal(y, digits.y_test[index])
    assert torch.bincount(digits.test_sample(100)[1].y).tolist() == [10] * 10
    index, (x, y) = digits.train_sample(50)
    assert torch.equal(x, digits.train.x[index])
    assert torch.bincount(y).tolist() == [5] * 10
    assert index.tolist() != digits.test_sample(50)[0].tolist()


def test_a_sample_belongs_to_the_caller(digits: Dataset) -> None:
    before, split = digits.test_sample(5)
    kept = before.clone(), split.x.clone()
    before.zero_()
    split.x.zero_()
    after, again = digits.test_sample(5)
    assert torch.equal(after, kept[0])
    assert torch.equal(again.x, kept[1])


@pytest.mark.parametrize("n", [0, -1, 360])
def test_sample_size_out_of_range(digits: Dataset, n: int) -> None:
    assert complaint(lambda: digits.test_sample(n)) == f"a sample of {n} test images of digits: choose from 1..359"
    assert "1..1438" in complaint(lambda: digits.train_sample(n * 10))


def test_floats() -> None:
    made = toy(levels=16)
    for split, x, y in ((made.train, made.x_train, made.y_train), (made.test, made.x_test, made.y_test)):
        assert split.x.dtype == torch.float32
        assert torch.equal(split.x, x.float() / 16)
        assert float(split.x.max()) <= 1
        assert torch.equal(split.y, y)
    assert made.x_train.dtype == torch.uint8


# --- validation ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": torch.rand(40, 1, 2, 2)}, "toy train: images torch.float32 .* expected torch.uint8"),
        ({"y_test": torch.zeros(30, dtype=torch.int32)}, "toy test: .* labels torch.int32, .* torch.int64"),
        ({"x_train": torch.zeros(40, 2, 2, dtype=torch.uint8)}, r"toy train: images of shape \(40, 2, 2\)"),
        ({"x_test": torch.zeros(30, 1, 2, 3, dtype=torch.uint8)}, r"toy test: images of .*expected \(N, 1, 2, 2\)"),
        ({"y_train": torch.zeros(40, 1, dtype=torch.int64)}, r"labels of shape \(40, 1\)"),
        ({"y_train": torch.zeros(39, dtype=torch.int64)}, "toy train: 40 images, but 39 labels"),
        ({"n_test": 0}, "toy test: it has no images"),
        ({"x_train": torch.full((40, 1, 2, 2), 17, dtype=torch.uint8), "levels": 16}, "value 17, expected 0..16"),
        ({"y_test": torch.arange(30)}, r"toy test: label 10 of image 10 is outside 0..9 \(20 of 30 labels are\)"),
        ({"y_train": torch.arange(40) % 10 - 1}, r"label -1 of image 0 is outside 0..9 \(4 of 40 labels are\)"),
    ],
)
def test_dataset_validates(changes: dict[str, Any], message: str) -> None:
    import re

    assert re.search(message, complaint(lambda: toy(**changes)))


# --- the layouts on disk ---


@pytest.mark.parametrize("name", FORMS)
def test_layouts_load(root: Path, name: str) -> None:
    made = load_dataset(name, root=root)
    assert made.info is DATASETS[name]
    expected = {
        "mnist": pixels(30, 28, 28, seed=30)[:, None],
        "fashion-mnist": pixels(30, 28, 28, seed=30)[:, None],
        "cifar10": np.concatenate([pixels(20, 3, 32, 32, seed=seed) for seed in range(5)]),
        "cifar100": pixels(20, 3, 32, 32),
        "svhn": pixels(20, 32, 32, 3).transpose(0, 3, 1, 2),
    }
    if name in expected:
        assert np.array_equal(made.x_train.numpy(), expected[name])
    assert made.y_train.tolist() == (labels(20, 100) if name == "cifar100" else labels(len(made.x_train))).tolist()
    assert made.x_test.shape == (20, *made.info.shape)
    assert made.x_train.is_contiguous()
    assert not torch.equal(made.x_train[:5], made.x_test[:5])


def test_jpeg_decodes_as_pil_does(root: Path) -> None:
    from PIL import Image

    image = pixels(20, 32, 32, 3)[7]
    with Image.open(io.BytesIO(image_bytes(image, "JPEG"))) as decoded:
        expected = np.asarray(decoded).transpose(2, 0, 1)
    assert np.array_equal(load_dataset("cifar10-jpeg", root=root).x_train[7].numpy(), expected)


def test_labels_may_be_class_names(root: Path) -> None:
    names = [DATASETS["cifar10-jpeg"].classes[label] for label in labels(20)]
    blobs = [image_bytes(image) for image in pixels(20, 32, 32, 3)]
    make_parquet(root / "cifar10-jpeg" / "test.parquet", list(blobs), names)
    assert load_dataset("cifar10-jpeg", root=root).y_test.tolist() == labels(20).tolist()


def test_data_folder_from_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "needs a data folder: point --data-root (GAUNTLET_DATA)" in complaint(lambda: load_dataset("mnist"))
    monkeypatch.setenv("GAUNTLET_DATA", str(root))
    assert len(load_dataset("mnist").x_test) == 20


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
        ("svhn", ""),
        ("cifar10-jpeg", "cifar10-jpeg"),
    ],
)
def test_missing_set(tmp_path: Path, name: str, place: str) -> None:
    message = complaint(lambda: load_dataset(name, root=tmp_path))
    assert message.startswith(f"{name} is not in {tmp_path / place}: ")
    assert ("--download" in message) == (name != "cifar10-jpeg")
    assert "point --data-root (GAUNTLET_DATA) at the folder that holds it" in message


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "MNIST/raw/t10k-labels-idx1-ubyte"),
        ("cifar10", "cifar-10-batches-py/data_batch_3"),
        ("cifar100", "cifar-100-python/meta"),
        ("svhn", "test_32x32.mat"),
        ("cifar10-jpeg", "cifar10-jpeg/test.parquet"),
    ],
)
def test_missing_file(root: Path, name: str, file: str) -> None:
    (root / file).unlink()
    assert complaint(lambda: load_dataset(name, root=root)).startswith(f"{root / file} is missing: ")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("fashion-mnist", "FashionMNIST/raw/t10k-labels-idx1-ubyte"),
        ("cifar10", "cifar-10-batches-py/data_batch_3"),
        ("cifar10", "cifar-10-batches-py/batches.meta"),
        ("cifar100", "cifar-100-python/test"),
        ("svhn", "train_32x32.mat"),
        ("cifar10-jpeg", "cifar10-jpeg/train.parquet"),
    ],
)
@pytest.mark.parametrize("keep", [0, 3, -1])
def test_truncated_file(root: Path, name: str, file: str, keep: int) -> None:
    path = root / file
    path.write_bytes(path.read_bytes()[:keep])
    message = complaint(lambda: load_dataset(name, root=root))
    assert message.startswith(f"{path} is damaged: ")
    assert ("--download" in message) == (name != "cifar10-jpeg")


def test_idx_of_other_kinds(root: Path) -> None:
    raw = root / "MNIST" / "raw"
    (raw / "train-images-idx3-ubyte").write_bytes(b"<!DOCTYPE html><html>not found</html>")
    assert "does not begin like an idx file of bytes in 3 dimensions" in complaint(
        lambda: load_dataset("mnist", root=root)
    )
    write(raw / "train-images-idx3-ubyte", idx(pixels(30, 28, 27)))
    message = complaint(lambda: load_dataset("mnist", root=root))
    assert f"{raw}/train-*-ubyte: images of shape (30, 1, 28, 27)" in message
    assert "delete it and run the same command with --download" in message
    write(raw / "train-images-idx3-ubyte", idx(pixels(29, 28, 28)))
    assert "29 images, but 30 labels" in complaint(lambda: load_dataset("mnist", root=root))


def test_part_of_a_set_is_not_the_set(root: Path) -> None:
    make_mnist(root, test=19)
    message = complaint(lambda: load_dataset("mnist", root=root))
    assert "t10k-*-ubyte: 19 test images, where mnist has 20; delete" in message


def test_labels_out_of_range(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte", idx((labels(20) + 1).astype(np.uint8)))
    message = complaint(lambda: load_dataset("mnist", root=root))
    assert "t10k-*-ubyte: label 10 of image 9 is outside 0..9 (2 of 20 labels are)" in message
    path = root / "cifar10-jpeg" / "train.parquet"
    make_parquet(path, [image_bytes(image) for image in pixels(3, 32, 32, 3)], [0, -4, 10])
    message = complaint(lambda: load_dataset("cifar10-jpeg", root=root))
    assert message.startswith(f"{path}: label -4 of image 1 is outside 0..9 (2 of 3 labels are)")


def test_bad_images_are_named_by_row(root: Path) -> None:
    path = root / "cifar10-jpeg" / "train.parquet"
    good = [image_bytes(image, "JPEG") for image in pixels(5, 32, 32, 3)]
    bad: list[tuple[bytes | None, str]] = [
        (b"GIF89a nothing", "is damaged: it cannot be decoded"),
        (b"", "is damaged: it cannot be decoded"),
        (good[0][: len(good[0]) // 2], "is damaged: it cannot be decoded"),
        (None, "is damaged: it has no image"),
        (image_bytes(pixels(1, 30, 32, 3)[0]), "is 32x30 pixels, not 32x32"),
    ]
    for blob, message in bad:
        make_parquet(path, [*good, blob], [0] * 6)
        assert complaint(lambda: load_dataset("cifar10-jpeg", root=root)).startswith(f"{path} row 5 {message}")


# --- downloads, from a mirror on this machine ---


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def mirror(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder served as the place that torchvision fetches MNIST from."""
    from torchvision.datasets import MNIST

    make_mnist(tmp_path / "origin")
    folder = tmp_path / "mirror"
    resources = []
    for name, _ in MNIST.resources:
        content = (tmp_path / "origin" / "MNIST" / "raw" / Path(name).stem).read_bytes()
        resources.append((name, write(folder / name, gzip.compress(content))))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        monkeypatch.setattr(MNIST, "resources", resources)
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder
        server.shutdown()
        thread.join()


def test_download(mirror: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert len(load_dataset("mnist", root=home, download=True).x_train) == 30
    assert len(load_dataset("mnist", root=home).x_train) == 30
    # a damaged file is not fetched again over the user's head, and the advice given works
    path = home / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    message = complaint(lambda: load_dataset("mnist", root=home, download=True))
    assert message.endswith("delete it and run the same command with --download")
    path.unlink()
    assert len(load_dataset("mnist", root=home, download=True).x_train) == 30


def test_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import MNIST

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/", "http://127.0.0.1:9/too/"])  # nobody listens there
    message = complaint(lambda: load_dataset("mnist", root=tmp_path, download=True))
    assert message.startswith(f"mnist cannot be downloaded to {tmp_path / 'MNIST' / 'raw'}: ")
    assert "refused" in message
    assert message.endswith("try again, or point --data-root (GAUNTLET_DATA) at the folder that holds it")


# --- a user's own sets ---


def test_image_folder(tmp_path: Path) -> None:
    every = make_folder(tmp_path / "pets")
    made = load_dataset(f"images:{tmp_path / 'pets'}")
    assert made.info.shape == (3, 6, 5)
    assert made.info.classes == ("cat", "dog")
    assert torch.equal(torch.cat([made.x_train, made.x_test]), torch.from_numpy(every).permute(0, 3, 1, 2))
    assert made.y_train.tolist() == made.y_test.tolist() == [0] * 4 + [1] * 4
    assert made.info.test_size == 8


def test_agrees_with_torchvisions_image_folder(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    make_folder(tmp_path)
    write(tmp_path / "train" / "ant" / "deep" / "A.JPG", image_bytes(pixels(1, 6, 5, 3)[0], "JPEG"))
    write(tmp_path / "train" / "ant" / "notes.txt", b"not an image")
    write(tmp_path / "train" / "ant" / "b.bmp", image_bytes(pixels(1, 6, 5, 3)[0], "BMP"))
    theirs = ImageFolder(str(tmp_path / "train"))
    made = load_dataset(f"images:{tmp_path}")
    assert list(made.info.classes) == theirs.classes
    expected = sorted((label, np.asarray(image).tobytes()) for image, label in theirs)
    images = made.x_train.permute(0, 2, 3, 1).contiguous().numpy()
    assert sorted((int(label), image.tobytes()) for image, label in zip(images, made.y_train, strict=True)) == expected


def test_user_set_names_hold_a_digest_and_no_path(tmp_path: Path) -> None:
    make_folder(tmp_path / "my pets!")
    make_folder(tmp_path / "elsewhere" / "my pets!")
    name = dataset_info(f"images:{tmp_path / 'my pets!'}").name
    form, _, digest = name.partition("@")
    assert form == "images:my-pets-"
    assert len(digest) == 8
    assert int(digest, 16) >= 0
    assert dataset_info(f"images:{tmp_path / 'elsewhere' / 'my pets!'}").name == name
    assert load_dataset(f"images:{tmp_path / 'my pets!'}").info == dataset_info(f"images:{tmp_path / 'my pets!'}")
    changed = tmp_path / "elsewhere" / "my pets!"
    write(changed / "train" / "cat" / "notes.txt", b"not part of it")
    assert dataset_info(f"images:{changed}").name == name
    write(changed / "train" / "cat" / "000.png", image_bytes(pixels(1, 6, 5, 3, seed=9)[0]))
    assert dataset_info(f"images:{changed}").name != name


@pytest.mark.parametrize(
    ("shape", "like", "factor"), [((64, 64, 3), "cifar10", 2.0), ((14, 14), "mnist", 0.5), ((28, 28), "mnist", 1.0)]
)
def test_user_budgets_scale(tmp_path: Path, shape: tuple[int, ...], like: str, factor: float) -> None:
    make_folder(tmp_path, shape, n=1)
    info, base = dataset_info(f"images:{tmp_path}"), DATASETS[like]
    assert info.shape[0] == base.shape[0]
    assert info.budgets["linf"] == base.budgets["linf"]
    assert info.budgets["l2"] == tuple(float(f"{eps * factor:.2g}") for eps in base.budgets["l2"])
    assert all(info.eps[norm] in values for norm, values in info.budgets.items())


def test_images_of_many_modes_become_colour(tmp_path: Path) -> None:
    from PIL import Image

    make_folder(tmp_path, n=1)
    colour = Image.fromarray(pixels(1, 6, 5, 3)[0])
    colour.quantize(4).save(tmp_path / "train" / "cat" / "palette.png", transparency=bytes([0, 128, 255, 255]))
    colour.convert("RGBA").save(tmp_path / "train" / "cat" / "rgba.png")
    colour.convert("L").save(tmp_path / "train" / "cat" / "gray.png")
    made = load_dataset(f"images:{tmp_path}")
    assert made.x_train.shape == (5, 3, 6, 5)
    rgba = next(
        row for row in range(5) if np.array_equal(made.x_train[row].numpy().transpose(1, 2, 0), pixels(1, 6, 5, 3)[0])
    )
    assert int(made.y_train[rgba]) == 0
    gray = [row for row in range(5) if bool((made.x_train[row] == made.x_train[row, :1]).all())]
    assert len(gray) == 1


def test_image_folder_complaints(tmp_path: Path) -> None:
    def message() -> str:
        return complaint(lambda: load_dataset(f"images:{tmp_path}"))

    assert message().startswith(f"{tmp_path / 'train'} is missing: ")
    (tmp_path / "train").mkdir()
    assert message().startswith(f"{tmp_path / 'test'} is missing: ")
    (tmp_path / "test").mkdir()
    assert "holds 0 images of 0 classes" in message()
    (tmp_path / "train" / "bird").mkdir()
    assert message().startswith(f"{tmp_path / 'train' / 'bird'} holds no image")
    (tmp_path / "train" / "bird").rmdir()
    make_folder(tmp_path)
    path = tmp_path / "test" / "dog" / "zzz.png"
    path.write_bytes(b"nothing of the kind")
    assert message().startswith(f"{path} is damaged: it cannot be decoded")
    path.write_bytes(image_bytes(pixels(1, 5, 6, 3)[0]))
    same = "images must have one size, which --resize 256 --crop 224 give them"
    assert message() == f"{path} is 6x5 pixels, not 5x6 as the first: {same}"
    path.write_bytes(image_bytes(pixels(1, 6, 5, 2)[0].view(np.uint16)[..., 0]))
    assert message().startswith(f"{path} has more than 8 bits a pixel")
    whole = image_bytes(pixels(1, 6, 5, 3)[0])
    path.write_bytes(whole[:-40])  # its header is whole: found when it is decoded
    assert message().startswith(f"{path} is damaged: it cannot be decoded")
    path.unlink()
    write(tmp_path / "test" / "emu" / "a.png", whole)
    assert message().startswith(f"{tmp_path / 'test' / 'emu'} has no counterpart in {tmp_path / 'train'}")


def blobs(n: int, *shape: int) -> list[bytes | None]:
    return [image_bytes(image) for image in pixels(n, *(shape or (4, 4)))]


def test_parquet_without_a_split(tmp_path: Path) -> None:
    make_parquet(tmp_path / "a.parquet", blobs(50), labels(50, 5).tolist())
    made = load_dataset(f"parquet:{tmp_path / 'a.parquet'}")
    assert made.info.name.startswith("parquet:a@")
    assert made.info.shape == (1, 4, 4)
    assert made.info.classes == tuple("01234")
    assert torch.bincount(made.y_test).tolist() == [2] * 5
    images = {image.tobytes(): label for image, label in zip(pixels(50, 4, 4), labels(50, 5), strict=True)}
    both = torch.cat([made.x_train, made.x_test]).numpy()
    assert {image.tobytes() for image in both} == set(images)
    assert [images[image.tobytes()] for image in both] == torch.cat([made.y_train, made.y_test]).tolist()
    again = load_dataset(f"parquet:{tmp_path / 'a.parquet'}")
    assert torch.equal(again.x_test, made.x_test)


def test_parquet_with_a_split(tmp_path: Path) -> None:
    split = ["train" if row % 3 else "test" for row in range(12)]
    path = tmp_path / "a.parquet"
    make_parquet(path, blobs(12), [("owl", "ape")[row % 2] for row in range(12)], split=split)
    made = load_dataset(f"parquet:{path}")
    assert made.info.classes == ("ape", "owl")
    assert np.array_equal(made.x_test[:, 0].numpy(), pixels(12, 4, 4)[::3])
    assert made.y_test.tolist() == [1, 0, 1, 0]
    make_parquet(path, blobs(3), [0, 1, 0], split=["train", "test", "dev"])
    assert complaint(lambda: load_dataset(f"parquet:{path}")) == f"{path} row 2: split 'dev'; choose from train, test"
    # a row is named by its place in the file, not in the part
    make_parquet(path, [*blobs(3), b"x"], [0, 1, 0, 1], split=["train", "train", "test", "test"])
    assert complaint(lambda: load_dataset(f"parquet:{path}")).startswith(f"{path} row 3 is damaged")


def test_parquet_folder_and_plain_bytes(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split, n in (("train", 8), ("test", 4)):
        labelled = pa.array([("b", "a")[row % 2] for row in range(n)]).dictionary_encode()
        pq.write_table(pa.table({"image": blobs(n, 4, 4, 3), "label": labelled}), tmp_path / f"{split}.parquet")
    made = load_dataset(f"parquet:{tmp_path}")
    assert made.info.name.startswith(f"parquet:{tmp_path.name}@")
    assert made.x_train.shape == (8, 3, 4, 4)
    assert made.y_test.tolist() == [1, 0, 1, 0]
    make_parquet(tmp_path / "test.parquet", blobs(2, 4, 4, 3), ["a", "c"])
    assert complaint(lambda: load_dataset(f"parquet:{tmp_path}")).endswith(
        "row 1: unknown class 'c'; the classes are a, b"
    )
    (tmp_path / "test.parquet").unlink()
    assert complaint(lambda: load_dataset(f"parquet:{tmp_path}")).startswith(
        f"{tmp_path / 'test.parquet'} is missing: "
    )


def test_parquet_class_names_from_metadata(tmp_path: Path) -> None:
    features = {"info": {"features": {"label": {"names": ["ape", "bee", "cow"], "_type": "ClassLabel"}}}}
    path = tmp_path / "a.parquet"
    make_parquet(path, blobs(10), labels(10, 2).tolist(), metadata={"huggingface": json.dumps(features)})
    assert load_dataset(f"parquet:{path}").info.classes == ("ape", "bee", "cow")
    make_parquet(path, blobs(10), labels(10, 5).tolist(), metadata={"huggingface": json.dumps(features)})
    assert "label 3 of image" in complaint(lambda: load_dataset(f"parquet:{path}"))
    make_parquet(path, blobs(10), labels(10, 2).tolist(), metadata={"huggingface": "{broken"})
    assert load_dataset(f"parquet:{path}").info.classes == ("0", "1")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"img": [b"x"], "label": [0]}, "has no column 'image', only img, label"),
        ({"image": [b"x"], "y": [0]}, "has no column 'label', only image, y"),
        ({"image": ["x"], "label": [0]}, "column 'image' holds string"),
        ({"image": [b"x"], "label": [0.5]}, "column 'label' holds double"),
        ({"image": [b"x", b"x"], "label": [0, None]}, "row 1 is damaged: it has no label"),
        ({"image": [b"x", b"x"], "label": [1, 2]}, "labels must be 0..K-1 without a gap, these are 1, 2:"),
        ({"image": [b"x", b"x"], "label": [-1, 0]}, "labels must be 0..K-1 without a gap, these are -1, 0:"),
        ({"image": [b"x", b"x"], "label": [0, 10**12]}, "labels must be 0..K-1 without a gap"),
    ],
)
def test_parquet_complaints(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    found = complaint(lambda: dataset_info(f"parquet:{path}"))
    assert found.startswith(str(path))
    assert message in found


def test_one_class_is_no_data_set(tmp_path: Path) -> None:
    make_parquet(tmp_path / "a.parquet", blobs(5), [0] * 5)
    assert "of 1 classes: parquet sets need" in complaint(lambda: dataset_info(f"parquet:{tmp_path / 'a.parquet'}"))


def test_any_damage_to_a_parquet_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    make_parquet(path, blobs(20), [("a", "b")[row % 2] for row in range(20)])
    good = path.read_bytes()
    generator = random.Random(0)
    complaints: list[str] = []
    for attempt in range(150):
        damaged = bytearray(good)
        for _ in range(attempt % 5):
            damaged[generator.randrange(len(good))] = generator.randrange(256)
        path.write_bytes(damaged if attempt % 5 else damaged[: generator.randrange(len(good))])
        try:
            load_dataset(f"parquet:{path}")
        except UserError as error:
            complaints.append(str(error))
    assert len(complaints) > 60
    assert all(str(path) in message and "\n" not in message for message in complaints)


# --- sources for worker processes ---


def test_source_survives_pickling_and_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    make_folder(tmp_path / "pets")
    monkeypatch.chdir(tmp_path)
    sources = DataSource("images:pets"), DataSource("mnist", Path())
    monkeypatch.chdir("/")
    for source in sources:
        other = pickle.loads(pickle.dumps(source))
        assert other == source
        assert hash(other) == hash(source)
        assert other.info() == other.load().info
        assert other.load() is source.load()  # one reading a process
    assert str(tmp_path) not in sources[0].info().name


def test_source_of_a_failed_reading_is_tried_again(tmp_path: Path, small: None) -> None:
    source = DataSource("mnist", tmp_path)
    assert source.info() is DATASETS["mnist"]
    complaint(source.load)
    make_mnist(tmp_path)
    assert len(source.load().x_test) == 20


# --- the real ones ---


@pytest.mark.skipif("GAUNTLET_DATA" not in os.environ, reason="GAUNTLET_DATA is not set")
@pytest.mark.parametrize("name", ["mnist", "cifar10-jpeg"])
def test_real_data(name: str) -> None:
    try:
        made = load_dataset(name)
    except UserError as error:
        pytest.skip(str(error))
    assert len(made.x_train) == (60_000 if name == "mnist" else 50_000)
    assert len(made.x_test) == 10_000
    counts = torch.bincount(made.test_sample(1000)[1].y)
    assert (counts - torch.bincount(made.y_test) / 10).abs().max() <= 1
    mean = made.x_train.double().mean() / 255
    assert float(mean) == pytest.approx(0.1307 if name == "mnist" else 0.4734, abs=1e-3)


def test_rows_of_a_sample_are_what_the_whole_sample_holds_there(digits: Dataset) -> None:
    for sample in (digits.test_sample, digits.train_sample):
        whole, (images, labels) = sample(100)
        index, (x, y) = sample(100, slice(40, 70))
        assert torch.equal(index, whole[40:70])
        assert torch.equal(x, images[40:70])
        assert torch.equal(y, labels[40:70])
