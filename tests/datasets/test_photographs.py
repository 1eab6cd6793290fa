"""Folders of images as people have them: parts missing, several sizes, other classes than the model's, odd files."""

from __future__ import annotations

import io
import json
import os
import pickle
import tracemalloc
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness.datasets import class_maps, image_folders
from harness.datasets.registry import DATASETS, PLACES, DataSource, dataset_info, load_dataset, with_options
from harness.errors import UserError


def save(path: Path, size: tuple[int, int] = (6, 5), seed: int = 0, mode: str = "RGB") -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, "PNG")
    return pixels


def classes(folder: Path, names: tuple[str, ...] = ("cat", "dog"), n: int = 2, size: tuple[int, int] = (6, 5)) -> Path:
    for label, name in enumerate(names):
        for row in range(n):
            save(folder / name / f"{row}.png", size, 10 * label + row)
    return folder


def complaint(name: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- parts ---


@pytest.mark.parametrize("part", ["test", "val", "validation", "."])
def test_images_to_test_with_alone(tmp_path: Path, part: str) -> None:
    classes(tmp_path / part)
    made = load_dataset(f"images:{tmp_path}")
    assert (made.info.classes, made.info.trains, made.info.train_size, made.info.test_size) == (
        ("cat", "dog"), False, 0, 4
    )  # fmt: skip
    assert made.test_sample(4)[1].y.bincount().tolist() == [2, 2]
    assert len(made.x_train) == len(made.y_train) == 0
    x, y = made.preparation_sample(100)
    assert torch.equal(x, made.test_sample(4)[1].x)
    assert len(y) == 4
    assert "no training part" in " ".join(DataSource(f"images:{tmp_path}").notes)


def test_the_test_part_is_the_first_that_is_there(tmp_path: Path) -> None:
    classes(tmp_path / "train")
    classes(tmp_path / "val", n=3)
    assert load_dataset(f"images:{tmp_path}").info.test_size == 6
    with_val = dataset_info(f"images:{tmp_path}").name
    classes(tmp_path / "test", n=1)
    made = load_dataset(f"images:{tmp_path}")
    assert (made.info.test_size, made.info.trains) == (2, True)
    assert made.info.name != with_val


def test_names_from_before_there_were_options(tmp_path: Path) -> None:
    """The digest of a plain folder, pinned: results of earlier versions stand."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            content = b"P5 2 2 255\n" + f"{split}{name}"[:4].encode()
            (tmp_path / "pets" / split / name / "a.pgm").write_bytes(content)
    assert dataset_info(f"images:{tmp_path / 'pets'}").name == "images:pets@de05f3bf"


# --- sizes ---


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (33, 33), (50, 31)])
@pytest.mark.parametrize(("resize", "crop"), [("20", "16"), ("", "17x20"), ("24x18", ""), ("20", "16x20")])
def test_sizes_as_torchvision_makes_them(tmp_path: Path, size: tuple[int, int], resize: str, crop: str) -> None:
    from torchvision.transforms import CenterCrop, Compose, Resize

    classes(tmp_path / "test", n=1, size=size)
    made = load_dataset(f"images:{tmp_path}", resize=resize, crop=crop)

    def sides(text: str) -> Any:
        numbers = [int(side) for side in text.split("x")]
        return numbers[0] if len(numbers) == 1 else numbers[::-1]

    steps = [Resize(sides(resize))] if resize else []
    steps += [CenterCrop(sides(crop))] if crop else []
    for row, name in enumerate(("cat", "dog")):
        expected = np.asarray(Compose(steps)(Image.open(tmp_path / "test" / name / "0.png")))
        assert np.array_equal(made.x_test[row].numpy().transpose(1, 2, 0), expected)


def test_photographs_of_several_sizes(tmp_path: Path) -> None:
    for row, size in enumerate([(40, 30), (33, 64), (50, 50), (31, 90)]):
        save(tmp_path / "test" / ("cat", "dog")[row % 2] / f"{row}.png", size, row)
    assert "--resize 256 --crop 224" in complaint(f"images:{tmp_path}")
    assert "2.png (28x28 when resized) is 50x50 pixels, not 37x28" in complaint(f"images:{tmp_path}", resize=28)
    assert "--resize makes it larger" in complaint(f"images:{tmp_path}", crop=32)
    made = load_dataset(f"images:{tmp_path}", resize=28, crop=24)
    assert made.info.shape == (3, 24, 24)
    assert made.info.name.startswith(f"images:{tmp_path.name}-resize28-crop24@")
    others = {load_dataset(f"images:{tmp_path}", resize=r, crop=c).info.name for r, c in ((28, 20), (30, 24))}
    assert len({made.info.name, *others}) == 3
    assert load_dataset(f"images:{tmp_path}?resize=28&crop=24").info == made.info


@pytest.mark.parametrize("wrong", ["0", "-3", "abc", "4x", "99999", "1.5", "²"])
def test_sizes_that_are_none(tmp_path: Path, wrong: str) -> None:
    classes(tmp_path / "test")
    assert "resize must be a number of pixels" in complaint(f"images:{tmp_path}", resize=wrong)


def test_options_of_a_name(tmp_path: Path) -> None:
    folder = classes(tmp_path / "what?" / "test").parent
    assert load_dataset(f"images:{folder}").info.test_size == 4  # a question mark of the path's own
    assert DataSource(with_options(f"images:{folder}", resize=4, crop=4)).info().shape == (3, 4, 4)
    assert "says resize already" in complaint(f"images:{folder}?resize=4", resize=5)
    assert "is given twice" in complaint(f"images:{folder}?resize=4&resize=5")
    assert "taken as it is" in complaint("digits", crop=4)


# --- odd files ---


def test_files_of_macos_hidden_ones_and_others(tmp_path: Path) -> None:
    folder = classes(tmp_path / "pets")
    before = dataset_info(f"images:{folder}")
    (folder / "__MACOSX" / "cat").mkdir(parents=True)
    for name in ("cat/._0.png", "cat/.DS_Store", ".hidden.png", "__MACOSX/cat/0.png", "cat/.cache/1.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"Mac OS X")
    for name in ("cat/a.heic", "cat/b.HEIC", "dog/notes.txt", "dog/README"):
        (folder / name).write_bytes(b"something")
    source = DataSource(f"images:{folder}")
    assert source.info() == before
    assert f"left out of {folder}: 2 .heic, 2 hidden, 1 .txt, 1 without a suffix" in source.notes


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    elsewhere = classes(tmp_path / "elsewhere")
    pets = tmp_path / "pets" / "test"
    (pets / "cat").mkdir(parents=True)
    (pets / "cat" / "more").symlink_to(elsewhere / "cat")
    (pets / "cat" / "round").symlink_to(pets / "cat")
    (pets / "dog").symlink_to(elsewhere / "dog")
    made = load_dataset(f"images:{tmp_path / 'pets'}")
    assert made.y_test.tolist() == [0, 0, 1, 1]


def test_a_name_in_two_unicode_forms_is_one(tmp_path: Path) -> None:
    apart, whole = (unicodedata.normalize(form, "café") for form in ("NFD", "NFC"))
    classes(tmp_path / "train", (whole, "tea"))
    classes(tmp_path / "test", (apart, "tea"))
    made = load_dataset(f"images:{tmp_path}")
    assert made.info.classes == (whole, "tea")
    save(tmp_path / "test" / whole / "other.png", seed=7)
    assert load_dataset(f"images:{tmp_path}").y_test.tolist() == [0, 0, 0, 1, 1]


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    classes(tmp_path / "test", (odd, "tea"))
    assert load_dataset(f"images:{tmp_path}").info.test_size == 4


def test_numbers_stand_in_their_order(tmp_path: Path) -> None:
    numbers = tuple(map(str, range(12)))
    classes(tmp_path / "numbers" / "test", numbers, n=1)
    source = DataSource(f"images:{tmp_path / 'numbers'}")
    assert source.info().classes == numbers
    assert any("are numbers, and stand in their order: 0, 1, 2, ..., 11" in note for note in source.notes)
    classes(tmp_path / "mixed" / "test", (*numbers, "none"), n=1)
    assert DataSource(f"images:{tmp_path / 'mixed'}").info().classes[:3] == ("0", "1", "10")
    classes(tmp_path / "few" / "test", ("0", "1", "2"), n=1)
    assert not any("numbers" in note for note in DataSource(f"images:{tmp_path / 'few'}").notes)  # nothing has changed


# --- classes ---

MAPS: dict[str, tuple[Any, dict[str, int], int]] = {
    "numbers": ({"cat": 3, "dog": 1}, {"cat": 3, "dog": 1}, 4),
    "numbers of more": ({"outputs": 12, "classes": {"cat": 3, "dog": 1}}, {"cat": 3, "dog": 1}, 12),
    "both one": ({"cat": 2, "dog": 2}, {"cat": 2, "dog": 2}, 3),
    "a list": (["ant", "dog", "bee", "cat"], {"cat": 3, "dog": 1}, 4),
    "by output": ({"0": "dog", "1": "ant", "2": "cat"}, {"cat": 2, "dog": 0}, 3),
    "id2label": ({"model_type": "vit", "id2label": {"0": "dog", "1": "cat"}}, {"cat": 1, "dog": 0}, 2),
    "keras": ({"0": ["n1", "dog"], "1": ["n2", "cat"]}, {"cat": 1, "dog": 0}, 2),
    "names": ({"cat": "Persian cat", "dog": "n02099601"}, {"cat": 283, "dog": 207}, 1000),
    "names of a list": ({"outputs": ["x", "y", "z"], "classes": {"cat": "z", "dog": "y"}}, {"cat": 2, "dog": 1}, 3),
    "numbers of imagenet": (
        {"outputs": "imagenet", "classes": {"cat": 283, "dog": 207}},
        {"cat": 283, "dog": 207},
        1000,
    ),
}


@pytest.mark.parametrize("name", MAPS)
def test_class_maps(tmp_path: Path, name: str) -> None:
    content, expected, count = MAPS[name]
    (tmp_path / "map.json").write_text(json.dumps(content))
    found = class_maps.read(str(tmp_path / "map.json"), ["cat", "dog"])
    assert (dict(found.of), len(found.names)) == (expected, count)
    assert len(set(found.names)) == count


@pytest.mark.parametrize(
    "text", ["cat,3\ndog,1\n", "folder,output\ncat,3\ndog,1\n", "output,folder\n0,ant\n1,dog\n2,bee\n3,cat\n"]
)
def test_class_maps_in_csv(tmp_path: Path, text: str) -> None:
    (tmp_path / "map.csv").write_text(text)
    assert dict(class_maps.read(str(tmp_path / "map.csv"), ["cat", "dog"]).of) == {"cat": 3, "dog": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"cat": 3}, "does not say which output dog is"),
        ({"cat": -1, "dog": 1}, "cat is -1, expected the number of an output"),
        ({"cat": True, "dog": 1}, "cat is True"),
        ({"outputs": 3, "classes": {"cat": 3, "dog": 1}}, "cat is output 3, and there are 3"),
        ({"outputs": "many", "classes": {"cat": 3, "dog": 1}}, "outputs must be a number"),
        ({"cat": "no such thing", "dog": "tench"}, "no output is called so"),
        ({"cat": "CARDIGAN", "dog": "tench"}, "outputs 264, 474 are both called so"),
        ({"0": "dog", "2": "cat"}, "outputs must be 0..K-1 without a gap"),
        (["ant", "dog"], "the folder cat: no output is called so"),
        (3, "expected a list of names, or folders and outputs"),
    ],
)  # fmt: skip
def test_class_maps_that_do_not_say(tmp_path: Path, content: Any, message: str) -> None:
    classes(tmp_path / "pets" / "test")
    (tmp_path / "map.json").write_text(json.dumps(content))
    assert message in complaint(f"images:{tmp_path / 'pets'}", classes=tmp_path / "map.json")


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "a,b,c\n", "", "\0"])
@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_files_that_are_no_class_map(tmp_path: Path, text: str, suffix: str) -> None:
    classes(tmp_path / "pets" / "test")
    (tmp_path / f"map.{suffix}").write_text(text)
    assert str(tmp_path / f"map.{suffix}") in complaint(
        f"images:{tmp_path / 'pets'}", classes=tmp_path / f"map.{suffix}"
    )
    assert "write imagenet, or a JSON or CSV file" in complaint(f"images:{tmp_path / 'pets'}", classes="no.json")


def test_imagenet_folders_by_id_and_by_name(tmp_path: Path) -> None:
    from torchvision.models import ResNet18_Weights

    names = ("n01440764", "golden_retriever", "Cardigan", "toilet tissue")
    classes(tmp_path / "test", names, n=1)
    made = load_dataset(f"images:{tmp_path}", classes="imagenet")
    assert len(made.info.classes) == 1000
    assert [name.partition(" (")[0] for name in made.info.classes] == ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert sorted(made.y_test.tolist()) == [0, 207, 264, 999]
    assert "are outputs 0, 207, 264, 999 of 1000, all of which compete" in " ".join(
        DataSource(with_options(f"images:{tmp_path}", classes="imagenet")).notes
    )


def test_another_map_is_another_data_set(tmp_path: Path) -> None:
    classes(tmp_path / "pets" / "test")
    path = tmp_path / "map.json"
    found = set()
    for content in ({"cat": 0, "dog": 1}, {"cat": 1, "dog": 0}, {"cat": 0, "dog": 2}):
        path.write_text(json.dumps(content))
        found.add(load_dataset(f"images:{tmp_path / 'pets'}", classes=path).info.name)
    assert len({*found, dataset_info(f"images:{tmp_path / 'pets'}").name}) == 4


def test_parquet_takes_the_same_options(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    blobs = []
    for row, size in enumerate([(9, 8), (8, 12)] * 10):
        buffer = io.BytesIO()
        Image.fromarray(np.full((size[1], size[0], 3), row, np.uint8)).save(buffer, "PNG")
        blobs.append(buffer.getvalue())
    pq.write_table(pa.table({"image": blobs, "label": ["cat", "dog"] * 10}), tmp_path / "a.parquet")
    (tmp_path / "map.json").write_text(json.dumps({"cat": 5, "dog": 2}))
    made = load_dataset(f"parquet:{tmp_path / 'a.parquet'}", resize=8, crop=7, classes=tmp_path / "map.json")
    assert made.info.shape == (3, 7, 7)
    assert set(made.y_test.tolist()) == {5, 2}
    assert len(made.info.classes) == 6


# --- sets larger than memory ---


def test_images_are_decoded_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes(tmp_path / "train", n=20)
    classes(tmp_path / "test", n=20)
    monkeypatch.setattr("harness.datasets.registry.SMALL", 0)
    asked: list[int] = []
    whole = image_folders.decoded

    def counted(part: Any, shape: Any, rows: Any = None, options: Any = image_folders.PLAIN) -> torch.Tensor:
        asked.append(len(part.blobs) if rows is None else len(rows))
        return whole(part, shape, rows, options)

    monkeypatch.setattr(image_folders, "decoded", counted)
    made = load_dataset(f"images:{tmp_path}")
    assert asked == []
    _, (x, y) = made.test_sample(10, slice(4, 10))
    assert asked == [6]
    monkeypatch.undo()
    eager = load_dataset(f"images:{tmp_path}")
    assert torch.equal(x, eager.test_sample(10, slice(4, 10))[1].x)
    assert torch.equal(y, eager.test_sample(10, slice(4, 10))[1].y)
    assert eager.sha256() == made.sha256()
    assert torch.equal(eager.first(6).x_train, made.first(6).x_train)


def test_memory_holds_neither_files_nor_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.datasets.registry.SMALL", 0)
    monkeypatch.setattr(image_folders, "IN_MEMORY", 1)
    classes(tmp_path / "test", n=40, size=(64, 64))
    size = 80 * 3 * 64 * 64
    load_dataset(f"images:{tmp_path}", resize=63, crop=60)  # imports
    tracemalloc.start()
    made = load_dataset(f"images:{tmp_path}")
    assert made.test_sample(2)[1].x.shape == (2, 3, 64, 64)
    assert made.x_test.shape == (80, 3, 64, 64)  # in a file
    assert tracemalloc.get_traced_memory()[1] < size / 2
    tracemalloc.stop()
    assert made.x_test.sum() > 0


def test_a_file_that_changes_meanwhile_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.datasets.registry.SMALL", 0)
    classes(tmp_path / "test")
    made = load_dataset(f"images:{tmp_path}")
    save(tmp_path / "test" / "cat" / "0.png", seed=99)
    with pytest.raises(UserError, match=r"cat/0\.png has changed since the data set was first read"):
        made.test_sample(4)


def test_workers_do_not_read_all_files_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.datasets.registry.SMALL", 0)
    classes(tmp_path / "test")
    source = DataSource(f"images:{tmp_path}")
    info = source.info()
    other: DataSource = pickle.loads(pickle.dumps(source))

    def read(path: Path) -> bytes:
        raise AssertionError(path)

    monkeypatch.setattr(image_folders, "_read", read)
    assert (other.info(), other.opened.name) == (info, info.name)


# --- sets that are not there ---


def test_what_is_missing_is_known_without_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GAUNTLET_DATA", raising=False)
    for name in DATASETS:
        source = DataSource(name, tmp_path)
        if name == "digits":
            assert source.missing() == ""
            continue
        said = source.missing()
        with pytest.raises(UserError) as caught:
            source.load()
        assert str(caught.value) == said
        assert DataSource(name).missing().startswith(f"{name} needs a data folder")
        assert DataSource(name, tmp_path, download=True).missing() == ""
        first, *rest = PLACES[name]
        for place in rest:
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place).touch()
        assert source.missing().startswith(f"{tmp_path / first} is missing: ")
        (tmp_path / first).touch()
        assert source.missing() == ""


def test_places_are_torchvisions() -> None:
    import torchvision.datasets as sets

    def names(kind: Any) -> set[str]:
        return {name for name, _ in (*kind.train_list, *kind.test_list)} | {kind.meta["filename"]}

    expected: Mapping[str, set[str]] = {
        "mnist": {f"MNIST/raw/{Path(url).stem}" for url, _ in sets.MNIST.resources},
        "fashion-mnist": {f"FashionMNIST/raw/{Path(url).stem}" for url, _ in sets.FashionMNIST.resources},
        "cifar10": {f"{sets.CIFAR10.base_folder}/{name}" for name in names(sets.CIFAR10)},
        "cifar100": {f"{sets.CIFAR100.base_folder}/{name}" for name in names(sets.CIFAR100)},
        "svhn": {sets.SVHN.split_list[split][1] for split in ("train", "test")},
    }
    for name, places in expected.items():
        assert set(PLACES[name]) == places
