from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from harness.datasets.registry import DATASETS
from harness.errors import UserError
from harness.planning.specs import ModelSpec
from harness.records import checkpoints, files
from harness.records.checkpoints import card, has_model, load_model, save_model
from harness.records.files import finite, read_json, set_aside, write_bytes
from harness.records.home import Home
from harness.training.trainer import Trainer
from tests.helpers.boards import card as made_card

INFO = DATASETS["digits"]


@dataclass(frozen=True, kw_only=True)
class Plain(Trainer):
    name: ClassVar[str] = "plain"


class Doubled(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)


@dataclass(frozen=True, kw_only=True)
class OnTrainedModel(Trainer):
    name: ClassVar[str] = "upon"

    def wrap(self, model: nn.Module, base: nn.Module | None) -> nn.Module:
        assert base is not None
        return Doubled(model, base)


SPEC = ModelSpec(dataset="digits", architecture="mlp-6", defense=Plain(epochs=1))


class Killed(BaseException):
    """Stands for SIGKILL: nothing may handle it."""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").create()


@pytest.fixture
def saved(home: Home) -> nn.Module:
    torch.manual_seed(0)
    model = SPEC.defense.build("mlp-6", INFO)
    save_model(home, SPEC, model, made_card(test_accuracy=0.5, seconds=math.nan))
    return model


def change_digest(home: Home, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    changed = card(home, SPEC.key).model_copy(update={"sha256": digest})
    files.write_record(home.model(SPEC.key) / "card.json", changed)


def weights_file(home: Home) -> Path:
    return home.model(SPEC.key) / "weights.safetensors"


# ---------------------------------------------------------------- atomic writes


def test_a_file_is_written_with_its_folders_and_for_everybody(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.bin"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("before", [None, b"old"])
@pytest.mark.parametrize("where", ["replace", "open"])
def test_an_error_while_writing_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None, where: str
) -> None:
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    if where == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    else:
        monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == (["file"] if before else [])
    if before:
        assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["cells/k/shards/00000.safetensors", "origin", "report/index.html"])
def test_a_kill_between_writing_and_renaming_leaves_nothing_to_see(
    home: Home, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = home.path / name
    write_bytes(home.cell("k") / "result.json", b"{}")

    def kill(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(Path, "replace", kill)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # a dead process tidies nothing up
    with pytest.raises(Killed):
        write_bytes(path, b"half")
    monkeypatch.undo()
    assert not path.exists()
    (part,) = path.parent.glob(".*.part")
    home.sweep()
    assert not part.exists()
    assert (home.cell("k") / "result.json").exists()


def test_json_is_readable_and_holds_no_nan(tmp_path: Path) -> None:
    value = {"b": math.nan, "a": [1.5, math.inf, (-math.inf, "x")], "c": {"d": math.nan}}
    files.write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == {"a": [1.5, None, [None, "x"]], "b": None, "c": {"d": None}}
    assert text.index('"a"') < text.index('"b"')
    assert finite((1, "x", None, 2.0)) == [1, "x", None, 2.0]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{'a': 1}"])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path} is damaged") as raised:
        read_json(path)
    assert "\n" not in str(raised.value)


def test_damaged_things_are_set_aside_under_free_names(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    names = []
    for _ in range(3):
        path.touch()
        names.append(set_aside(path).name)
    assert names == [f"x.json.damaged-{number}" for number in (1, 2, 3)]


# ---------------------------------------------------------------- the home


def test_a_home_is_made_with_its_parents(tmp_path: Path) -> None:
    home = Home(tmp_path / "a" / "b")
    assert home.create() is home
    assert list(home.path.iterdir()) == []
    home.create()


@pytest.mark.parametrize("below", ["", "sub", "sub/sub"])
def test_a_home_that_cannot_be_written(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    home = Home(tmp_path / "file" / below)
    with pytest.raises(UserError, match=rf"cannot write to the home directory {home.path} \(.+\); .*--home DIR"):
        home.create()


def test_a_home_that_may_be_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(UserError, match=r"cannot write to the home directory .*Permission denied"):
        Home(tmp_path).create()


# ---------------------------------------------------------------- checkpoints


def test_a_checkpoint_comes_back_whole(home: Home, saved: nn.Module) -> None:
    loaded = load_model(home, SPEC, INFO)
    assert not loaded.training
    for name, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    found = card(home, SPEC.key)
    assert found.test_accuracy == 0.5
    assert math.isnan(found.seconds)
    assert found.declaration["defense"]["is"] == "plain"


def test_batch_statistics_are_part_of_a_checkpoint(home: Home) -> None:
    spec = replace(SPEC, architecture="resnet")
    model = spec.defense.build("resnet", INFO).train()
    model(torch.rand(8, *INFO.shape))
    save_model(home, spec, model, made_card())
    x = torch.rand(3, *INFO.shape)
    assert torch.equal(load_model(home, spec, INFO)(x), model.eval()(x))


def test_the_card_is_written_last(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(checkpoints, "write_record", kill)
    with pytest.raises(Killed):
        save_model(home, SPEC, SPEC.defense.build("mlp-6", INFO), made_card())
    assert weights_file(home).exists()
    assert not has_model(home, SPEC)


def test_a_model_built_upon_another_brings_it_along(home: Home, saved: nn.Module) -> None:
    spec = replace(SPEC, defense=OnTrainedModel(epochs=1), base=SPEC)
    torch.manual_seed(1)
    top = spec.defense.build("mlp-6", INFO, saved)
    save_model(home, spec, top, made_card())
    x = torch.rand(3, *INFO.shape)
    assert torch.equal(load_model(home, spec, INFO)(x), top(x))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 0xFF
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [flip, truncate, empty, remove])
def test_damaged_weights_are_named_and_the_way_out(
    home: Home, saved: nn.Module, damage: Callable[[Path], None]
) -> None:
    damage(weights_file(home))
    with pytest.raises(UserError, match="checkpoint") as raised:
        load_model(home, SPEC, INFO)
    text = str(raised.value)
    assert str(weights_file(home)) in text
    assert text.endswith(f"the next run keeps it as {SPEC.key}.damaged-1 and makes the model again")
    assert "\n" not in text


@pytest.mark.parametrize("damage", [truncate, empty, remove, lambda path: path.write_text("[]")])
def test_a_damaged_card_is_named_and_the_way_out(home: Home, saved: nn.Module, damage: Callable[[Path], None]) -> None:
    card = home.model(SPEC.key) / "card.json"
    damage(card)
    with pytest.raises(UserError) as raised:
        load_model(home, SPEC, INFO)
    text = str(raised.value)
    assert str(card) in text
    assert "makes the model again" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "tensors",
    [
        {"stages.hidden1.0.weight": torch.zeros(5, 64)},
        {"stages.hidden1.0.weight": None},
        {"more": torch.zeros(1)},
    ],
    ids=["wrong shape", "missing", "too many"],
)
def test_weights_of_another_model_do_not_fit(home: Home, saved: nn.Module, tensors: dict[str, Any]) -> None:
    """With a digest that is right: written by other code, say."""
    merged = {**saved.state_dict(), **tensors}
    content = save({name: value for name, value in merged.items() if value is not None})
    weights_file(home).write_bytes(content)
    change_digest(home, content)
    with pytest.raises(UserError, match="does not fit its declaration") as raised:
        load_model(home, SPEC, INFO)
    assert next(iter(tensors)) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_digest_over_no_safetensors(home: Home, saved: nn.Module) -> None:
    weights_file(home).write_bytes(b"nothing of the kind")
    change_digest(home, b"nothing of the kind")
    with pytest.raises(UserError, match="does not fit its declaration"):
        load_model(home, SPEC, INFO)
