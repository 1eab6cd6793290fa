"""Records that hold together: no file in another's place and no changed digit becomes a number."""

from __future__ import annotations

import itertools
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.attacks.noise import Noise
from harness.errors import UserError
from harness.judging.proposal import Proposal
from harness.metrics.pairs import pair_rows
from harness.records import seals
from harness.records.boards import boards_from_home, read_probe
from harness.records.checkpoints import read_card
from harness.records.crafted import read_crafted, write_proposal
from harness.records.files import json_text, read_json, write_json, write_record
from harness.records.home import Home
from harness.records.plans import read_plan
from harness.records.prepared import prepared_record, write_prepared
from harness.records.results import Damaged, read_pair, read_shard, write_result, write_shard
from harness.schema.base import Cost, Provenance
from harness.schema.pairs import Result
from harness.schema.probes import ProbeRecord
from tests.helpers.boards import card, facts, frame, outcome, plan, sound
from tests.helpers.commands import call

SEEDS = range(7)
MADE = Provenance(weights={"m0": "digest"}, versions={"torch": "1"})


def gallery(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    images = {name: generator.random((2, 1, 4, 4), np.float32) for name in ("x", "x_adv")}
    return images | {name: np.arange(2) for name in ("index", "label", "clean_pred", "adv_pred")}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home with two of everything, and more pairs."""
    home = Home(tmp_path / "home").create()
    pairs = []
    for place, pair in enumerate(sound(n=20).pairs):
        found = Result(**dict(pair.result) | {"cell": f"c{place:03d}", "summary": dict(pair.summary)})
        pairs.append(write_result(home.cell(found.cell), found, pair.samples, gallery(place)))
    for key in "pq":
        write_record(home.plans / f"{key}.json", plan(*pairs, plan=key))
        write_record(home.health(key), ProbeRecord(key=key, facts=facts(left=0.25 if key == "p" else 0.5)))
        write_record(home.model(key) / "card.json", card(test_accuracy=0.75))
        write_prepared(home.prepared(key), Noise(), Noise(draws=7 if key == "p" else 9), COST, MADE)
        images = torch.full((3, 1, 2, 2), 0.25 if key == "p" else 0.5)
        write_proposal(home.crafted(key, 0), Proposal(images, 1.0, 3, 0), MADE)
        write_shard(home.cell(f"unfinished-{key}"), 0, outcome(frame(np.linspace(0.1, 0.4, 5)), gallery(5)), MADE)
    return home


COST = Cost(seconds=1.0, forwards=3, backwards=0)
READERS: dict[str, Callable[[Path], object]] = {
    "plans/*.json": read_plan,
    "health/*.json": read_probe,
    "models/*/card.json": read_card,
    "prepared/*.json": prepared_record,
    "crafted/*/*.safetensors": read_crafted,
    "cells/*/shards/*.safetensors": read_shard,
    "cells/c*/result.json": lambda path: read_pair(path.parent),
    "cells/c*/samples.parquet": lambda path: read_pair(path.parent),
    "cells/c*/gallery.safetensors": lambda path: read_pair(path.parent),
}
"""How each kind of file is read."""


def rows(home: Home) -> tuple[list[str], list[Path]]:
    """What a report shows of a home, and what it leaves out by name."""
    told: list[Path] = []
    boards = boards_from_home(home, spoiled=lambda path, _: told.append(path))
    return [str(row) for board in boards for row in pair_rows(board).to_dict("records")], told  # NaN is no NaN


@pytest.mark.parametrize("kind", READERS)
def test_what_is_whole_is_read(home: Home, kind: str) -> None:
    files = sorted(home.path.glob(kind))
    assert len(files) >= 2
    for file in files:
        READERS[kind](file)


@pytest.mark.parametrize("seed", SEEDS)
def test_swapped_tables_are_named(home: Home, seed: int) -> None:
    before, _ = rows(home)
    folders = sorted(home.path.glob("cells/c*"))
    one, other = random.Random(seed).sample(folders, 2)
    for name in ("samples.parquet", "gallery.safetensors", "result.json")[: 1 + seed % 3]:
        first, second = (folder / name for folder in (one, other))
        content = first.read_bytes()
        shutil.copy(second, first)
        second.write_bytes(content)
    shown, told = rows(home)
    assert {one, other} <= set(told)
    assert set(shown) < set(before)


@pytest.mark.parametrize("kind", READERS)
def test_a_file_in_anothers_place_is_named(home: Home, kind: str) -> None:
    one, other = sorted(home.path.glob(kind))[:2]
    assert one.read_bytes() != other.read_bytes() or kind.startswith("models")
    if kind.startswith("models"):  # a key is a hash of the declaration
        write_json(one, read_json(one) | {"declaration": {"is": "another"}})
    else:
        shutil.copy(one, other)
    with pytest.raises(UserError, match="is damaged"):
        READERS[kind](one if kind.startswith("models") else other)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_changed_byte_is_named(home: Home, kind: str, seed: int) -> None:
    generator = random.Random(f"{kind} {seed}")
    path = generator.choice(sorted(home.path.glob(kind)))
    content = bytearray(path.read_bytes())
    places = [match.start() for match in re.finditer(rb"\d", bytes(content))] if path.suffix == ".json" else []
    place = generator.choice(places or range(len(content)))
    digit = (content[place] - ord("0") + generator.randint(1, 9)) % 10 + ord("0")
    content[place] = digit if places else content[place] ^ 1
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        READERS[kind](path)
    assert str(path.parent) in str(caught.value)


def test_every_byte_of_a_record_counts(home: Home) -> None:
    path = next(home.path.glob("prepared/*.json"))
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(UserError):
            prepared_record(path)


def test_a_table_that_its_summary_contradicts_is_named(home: Home) -> None:
    """Also where there are no digests, as in results of earlier versions."""
    folders = sorted(home.path.glob("cells/c*"))
    for folder in folders:
        record = read_json(folder / "result.json")
        record |= {"files": {}, "format": 2}
        del record["seal"]
        write_json(folder / "result.json", record)
        assert not read_pair(folder).result.files
    contents = [(folder / "samples.parquet").read_bytes() for folder in folders]
    tried = named = 0
    for (one, folder), other in itertools.product(enumerate(folders), range(len(folders))):
        if dict(read_pair(folders[one]).summary) == dict(read_pair(folders[other]).summary):
            continue
        tried += 1
        (folder / "samples.parquet").write_bytes(contents[other])
        try:
            read_pair(folder)
        except Damaged as error:
            named += "in result.json" in str(error)
        (folder / "samples.parquet").write_bytes(contents[one])
    assert named == tried > 50


def test_a_lost_seal_is_named_and_an_old_record_is_not(home: Home) -> None:
    path = home.plans / "p.json"
    record = read_json(path)
    assert seals.check(path.read_bytes(), path)
    del record["seal"]
    write_json(path, record)
    with pytest.raises(UserError, match=r"p\.json is damaged \(it has lost its seal\)"):
        read_plan(path)
    write_json(path, record | {"format": 2})
    assert read_plan(path).plan == "p"
    assert not seals.check(path.read_bytes(), path)


def test_a_seal_within_is_no_seal() -> None:
    text = json_text({"seal": "", "inner": {"seal": seals.BLANK}, "text": f'"seal": "{seals.BLANK}"'})
    assert text.count(seals.BLANK) == 2
    assert seals.check(text.encode(), Path("x"))


def test_the_report_names_it(home: Home, tmp_path: Path) -> None:
    path = home.cell("c003") / "result.json"
    content = path.read_text()
    path.write_text(content.replace('"success_rate": 0.', '"success_rate": 1.', 1))
    assert path.read_text() != content
    result = call("report", "--home", home.path, "--from", "home", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert f"{path} is damaged (its bytes are not those that were sealed)" in " ".join(result.output.split())
