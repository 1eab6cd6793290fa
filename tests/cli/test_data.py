"""A user's own images on the command line: finished models judged on what people have."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.attacks.noise import Noise
from harness.datasets.registry import PLACES, load_dataset
from tests.helpers.commands import call, complaint

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.k = k
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        # red, green or blue: outputs 207, 281 and 999 of a thousand, or the first three
        colour = 20 * self.scale * x.mean((2, 3))
        logits = x.new_zeros(len(x), self.k)
        places = [207, 281, 999] if self.k == 1000 else [0, 1, 2]
        return logits.index_copy(1, torch.tensor(places, device=x.device), colour)

def make(k: int = 3):
    return Net(k)
"""

BLACK_BOX = ("--attack", "noise*")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model and photographs of three classes and several sizes, to test with alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MODEL)
    generator = np.random.default_rng(0)
    for label, name in enumerate(("golden retriever", "n02123045", "toilet_tissue")):
        (tmp_path / "photos" / "val" / name).mkdir(parents=True)
        for row in range(4):
            size = (16 + 3 * row, 20 - row)
            pixels = generator.integers(0, 90, (*size, 3))
            pixels[..., label] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / "val" / name / f"{row}.png")
    return tmp_path


def test_a_model_of_a_thousand_classes_on_photographs_of_three(here: Path) -> None:
    line = ["run", "quick", "--dataset", "images:photos", "--resize", "14", "--crop", "12", "--classes", "imagenet"]
    line += ["--victim", "mine.py:make?k=1000", *BLACK_BOX, "--home", "home", "--jobs", "1"]
    result = call(*line)
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "are outputs 207, 281, 999 of 1000, all of which compete" in said
    assert "photos has no training part" in said
    records = [json.loads(path.read_text()) for path in here.glob("home/cells/*/result.json")]
    assert records
    for record in records:
        assert record["dataset"].startswith("images:photos-resize14-crop12-classes@")
        assert len(record["class_names"]) == 1000
        assert record["summary"]["clean_accuracy"] == 1.0
    words = shlex.split(records[0]["command"])
    assert words[:2] == ["gauntlet", "run"]
    assert "3 pairs (3 done, 0 to do)" in call("plan", *words[2:], "--home", "home").output  # at every eps


def test_the_whole_quick_suite_needs_no_training_part(here: Path) -> None:
    made = call(
        "plan", "quick", "--dataset", "images:photos", "--crop", "12", "--victim", "mine.py:make", "--home", "h"
    )
    assert made.exit_code == 0, made.output
    assert "0 trainings" in made.output
    listed = made.output.partition("state")[2]
    assert "apgd" in listed
    assert "transfer" not in listed


def test_from_python(here: Path) -> None:
    import gauntlet

    data = load_dataset("images:photos", resize=14, crop=12, classes="imagenet")
    namespace: dict[str, object] = {}
    exec(MODEL, namespace)
    _, (x, y) = data.test_sample(6)
    suite = gauntlet.Suite(name="one", summary="", attacks={"linf": (Noise(distribution="uniform"),)})
    frame = gauntlet.evaluate(namespace["Net"](1000), x, y, suite=suite, dataset=data, health=False)  # type: ignore[operator]
    assert (frame["clean_accuracy"] == 1.0).all()
    assert frame["dataset"].str.startswith(f"{data.info.name}@").all()  # named by the six images too


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--dataset", "images:photos"], "images must have one size, which --resize 256 --crop 224 give them"),
        (["--dataset", "images:photos", "--crop", "12", "--victim", "mine.py:make?k=12"], "or --classes imagenet"),
        (["--dataset", "images:photos", "--crop", "12"], "no training part, so that standard cannot be trained"),
        (["--dataset", "images:photos", "--crop", "12", "--model", "softmax", "--victim", "mine.py:make"], "no train"),
        (["--dataset", "images:photos", "--crop", "12x"], "crop must be a number of pixels such as 224"),
        (["--dataset", "digits", "--crop", "12"], "--crop is for images:DIR or parquet:FILE; digits is taken as it is"),
        (["--dataset", "images:photos", "--classes", "no.json"], "--classes"),
        (["--dataset", "images:photos", "--dataset", "digits", "--victim", "mine.py:make"], "--resize"),
    ],
)  # fmt: skip
def test_one_line_says_what_is_wrong(here: Path, arguments: list[str], expected: str) -> None:
    assert expected in complaint(call("plan", "quick", *arguments, "--home", "home"))


def test_sets_with_and_without_a_training_part_are_run_one_by_one(here: Path) -> None:
    for split in ("train", "test"):
        (here / "whole").mkdir(exist_ok=True)
        (here / "whole" / split).symlink_to(here / "photos" / "val")
    line = ["plan", "quick", "--dataset", "images:photos", "--dataset", "images:whole", "--crop", "12"]
    assert "run them one by one" in complaint(call(*line, "--victim", "mine.py:make", "--home", "home"))


def test_missing_data_are_one_line_before_anything_starts(here: Path) -> None:
    line = complaint(call("run", "quick", "--dataset", "mnist", "--data-root", here, "--home", "home", "--jobs", "1"))
    assert line.startswith(f"gauntlet: mnist is not in {here / 'MNIST' / 'raw'}: run the same command with --download")
    assert not list((here / "home").glob("plans/*"))
    assert not list((here / "home").glob("models/*"))


def test_a_data_root_that_is_the_set_itself_is_told_from_one_without_it(here: Path) -> None:
    raw = here / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for place in PLACES["mnist"]:
        (here / place).touch()
    line = complaint(call("run", "quick", "--dataset", "mnist", "--data-root", here / "MNIST", "--home", "home"))
    assert line.startswith("gauntlet: mnist is not in ")
    assert line.endswith(f"it is in the folder above, point --data-root (GAUNTLET_DATA) at {here}")


def test_list_says_what_layouts_expect_and_which_budgets_they_get() -> None:
    said = " ".join(call("list", "datasets").output.split())
    for expected in (
        "DIR/train/CLASS/*.png",
        "images:DIR, parquet:FILE 3x224x224",
        "--classes MAP",
        "cifar-10-batches-py",
    ):
        assert expected in said
