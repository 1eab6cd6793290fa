from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.errors import UserError
from harness.judging.shard import GALLERY
from harness.metrics.pairs import COLUMN_TYPES, DISTANCES, FLAGS, SAMPLE_COLUMNS
from harness.records import results
from harness.records.files import write_record
from harness.records.results import (
    Damaged,
    check_result,
    finish,
    is_finished,
    pair_from_outcomes,
    read_gallery,
    read_pair,
    read_samples,
    read_shard,
    samples_to_bytes,
    shard_path,
    shard_samples,
    status,
    write_shard,
)
from harness.schema.base import Provenance
from harness.schema.pairs import ShardRecord
from tests.helpers.boards import declared, outcome


def frame(n: int, start: int = 0, shard: int = 0) -> pd.DataFrame:
    """Every third image is misclassified as it is, every second of the others is broken."""
    index = np.arange(start, start + n)
    clean = index % 3 > 0
    found = clean & (index % 2 == 0)
    values: dict[str, Any] = {
        "index": index,
        "label": index % 10,
        "target": np.full(n, -1),
        "clean_pred": np.where(clean, index % 10, 0),
        "clean_correct": clean,
        "attacked": clean,
        "adv_pred": np.where(clean, 1, -1),
        "adversarial": found,
        "wrong_share": found.astype(float),
        "survives_rounding": found,
        "shard": np.full(n, shard, np.int32),
    }
    values |= {flag: np.zeros(n, bool) for flag in FLAGS}
    values |= {name: np.where(found, 0.1 + index / 100, np.nan) for name in DISTANCES}
    return pd.DataFrame(values)[list(SAMPLE_COLUMNS)]


def gallery(n: int, start: int = 0) -> dict[str, Any]:
    images = {name: np.full((n, 1, 2, 2), 0.5, np.float32) for name in ("x", "x_adv")}
    return images | {name: np.arange(start, start + n) for name in ("index", "label", "clean_pred", "adv_pred")}


META = declared(30, cell="k")
MADE = Provenance(weights={"m": "1"}, versions={"torch": "2"}, git_commit="abc")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cell with three shards of ten images."""
    for shard in range(3):
        write_shard(tmp_path, shard, outcome(frame(10, 10 * shard, shard), gallery(10, 10 * shard)), MADE)
    return tmp_path


def test_a_shard_comes_back_whole(folder: Path) -> None:
    found, noted = read_shard(shard_path(folder, 1))
    pd.testing.assert_frame_equal(found.samples, frame(10, 10, 1))
    place = f"{folder.name}/00001"
    assert noted == ShardRecord(**dict(outcome(frame(1)).facts), **dict(MADE), place=place)
    assert noted.made_with(MADE)
    assert set(found.gallery) == set(gallery(10))
    np.testing.assert_array_equal(found.gallery["x"], gallery(10)["x"])


def test_a_shard_without_pictures_or_images(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, outcome(frame(0), seconds=math.nan), MADE)
    found, noted = read_shard(shard_path(tmp_path, 0))
    assert len(found.samples) == 0
    assert math.isnan(noted.seconds)
    assert found.gallery == {}


def test_a_shard_is_read_once_for_all_attacks_after_it_and_again_once_it_is_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = results.read_shard
    seen: list[str] = []

    def noted(path: Path) -> Any:
        seen.append(path.stem)
        return read(path)

    monkeypatch.setattr(results, "read_shard", noted)
    for _ in range(3):
        pd.testing.assert_frame_equal(shard_samples(folder, 1), frame(10, 10, 1))
    assert seen == ["00001"]
    write_shard(folder, 1, outcome(frame(7, 10, 1), gallery(7, 10)), MADE)
    assert len(shard_samples(folder, 1)) == 7
    assert seen == ["00001"] * 2
    shard_path(folder, 1).write_bytes(b"nothing")
    with pytest.raises(Damaged, match="00001"):
        shard_samples(folder, 1)


def test_samples_of_a_shard_of_a_finished_cell(folder: Path) -> None:
    finish(folder, 3, META)
    assert shard_samples(folder, 1)["index"].tolist() == list(range(10, 20))
    (folder / "samples.parquet").unlink()
    with pytest.raises(Damaged):
        shard_samples(folder, 1)


def test_finishing_merges_the_shards(folder: Path) -> None:
    assert not is_finished(folder)
    made = finish(folder, 3, META)
    assert sorted(path.name for path in folder.iterdir()) == ["gallery.safetensors", "result.json", "samples.parquet"]
    assert is_finished(folder)
    pair = read_pair(folder)
    assert pair.result == made
    parts = pd.concat([frame(10, 10 * s, s) for s in range(3)], ignore_index=True)
    pd.testing.assert_frame_equal(pair.samples, parts.astype(COLUMN_TYPES))
    assert pair.gallery["index"].tolist() == list(range(GALLERY))
    assert pair.result.seconds == 4.5
    assert pair.result.forwards == 300 / 20  # an attacked image
    assert pair.result.backwards == 150 / 20
    assert pair.result.status == "ok"
    assert {pair.result.summary[f"invalid_{flag}"] for flag in FLAGS} == {0}
    assert pair.result.summary["success_rate"] == 0.5


def test_pairs_share_what_they_have_in_common(folder: Path) -> None:
    finish(folder, 3, META)
    one, other = read_pair(folder), read_pair(folder)
    assert all(one.columns[name] is other.columns[name] for name in SAMPLE_COLUMNS)
    assert all(str(array.dtype) == np.dtype(COLUMN_TYPES[name]) for name, array in one.columns.items())
    with pytest.raises(ValueError, match="read-only"):
        one.columns["adversarial"][0] = True


def test_the_result_is_written_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(results, "write_record", kill)
    with pytest.raises(Killed):
        finish(folder, 3, META)
    assert not is_finished(folder)
    monkeypatch.undo()
    finish(folder, 3, META)
    assert len(read_pair(folder).samples) == 30


def test_a_cell_on_which_nothing_was_attacked() -> None:
    samples = frame(3).assign(attacked=False, clean_correct=False, adversarial=False)
    pair = pair_from_outcomes(declared(3), [outcome(samples, forwards=0, backwards=0)])
    assert pair.result.forwards == 0
    assert pair.result.status == "ok"


def test_errors_are_kept_once_each() -> None:
    parts = [outcome(frame(3), errors=errors) for errors in (("b",), ("a",), ("b",), ())]
    assert pair_from_outcomes(declared(12), parts).result.errors == ("a", "b")


@pytest.mark.parametrize("flag", FLAGS)
def test_one_bad_image_shows_in_the_status(flag: str) -> None:
    samples = frame(5)
    assert status(samples) == "ok"
    samples.loc[4, flag] = True
    assert status(samples) == ("crashed" if flag == "crashed" else "invalid")


def test_a_crash_outweighs_other_flags() -> None:
    samples = frame(5)
    samples.loc[0, "over_budget"] = samples.loc[1, "crashed"] = True
    assert status(samples) == "crashed"


# ---------------------------------------------------------------- damage


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"PAR1") + 60] ^= 0xFF  # in the first column's values
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other(path: Path) -> None:
    path.write_bytes(b"something else altogether, and long enough to hold a header or two" * 10)


def remove(path: Path) -> None:
    path.unlink()


DAMAGES = [flip, truncate, empty, other, remove]


def assert_names(path: Path, read: Callable[[], object]) -> None:
    with pytest.raises(Damaged) as raised:
        read()
    assert isinstance(raised.value, UserError)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_samples_are_named(folder: Path, damage: Callable[[Path], None]) -> None:
    finish(folder, 3, META)
    path = folder / "samples.parquet"
    damage(path)
    assert_names(path, lambda: read_samples(path))
    assert_names(path, lambda: read_pair(folder))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named(folder: Path, damage: Callable[[Path], None]) -> None:
    path = shard_path(folder, 1)
    damage(path)
    assert_names(path, lambda: finish(folder, 3, META))
    assert not is_finished(folder)


@pytest.mark.parametrize("damage", [truncate, empty, other, lambda path: path.write_text("3")])
def test_a_damaged_result_is_named(folder: Path, damage: Callable[[Path], None]) -> None:
    finish(folder, 3, META)
    path = folder / "result.json"
    damage(path)
    assert_names(path, lambda: read_pair(folder))


@pytest.mark.parametrize("damage", [truncate, empty, other])
def test_a_damaged_gallery_is_named(folder: Path, damage: Callable[[Path], None]) -> None:
    finish(folder, 3, META)
    path = folder / "gallery.safetensors"
    damage(path)
    assert_names(path, lambda: read_gallery(path))
    assert_names(path, lambda: read_pair(folder))
    path.unlink()
    assert_names(path, lambda: read_pair(folder))
    write_record(folder / "result.json", check_result(folder).model_copy(update={"files": {}}))  # of before it had them
    assert read_pair(folder).gallery == {}


def test_no_flipped_byte_reads_as_other_numbers(tmp_path: Path) -> None:
    """Parquet without checksums would read a third of them as other numbers, in silence."""
    samples, path = frame(50), tmp_path / "samples.parquet"
    content = samples_to_bytes(samples)
    damaged = 0
    for position in range(0, len(content), len(content) // 300):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        try:
            found = read_samples(path)
        except Damaged:
            damaged += 1
            continue
        pd.testing.assert_frame_equal(found, samples)
    assert damaged > 100


def test_rows_or_columns_that_are_missing(folder: Path) -> None:
    result = finish(folder, 3, META)
    path = folder / "samples.parquet"
    path.write_bytes(samples_to_bytes(frame(29)))
    with pytest.raises(Damaged, match="its digest is not that in"):
        read_pair(folder)
    write_record(folder / "result.json", result.model_copy(update={"files": {}}))
    with pytest.raises(Damaged, match="29 rows, 30 declared"):
        read_pair(folder)
    path.write_bytes(samples_to_bytes(frame(30).drop(columns="adversarial")))
    with pytest.raises(Damaged, match="no column adversarial"):
        read_pair(folder)


def test_samples_written_by_others_are_read(tmp_path: Path) -> None:
    """Without checksums, uncompressed: as any tool would write them again."""
    buffer = io.BytesIO()
    frame(5).to_parquet(buffer, compression=None)
    (tmp_path / "x.parquet").write_bytes(buffer.getvalue())
    pd.testing.assert_frame_equal(read_samples(tmp_path / "x.parquet"), frame(5))
