"""A stranger's bundle is data: whatever else it holds harms nothing and is named in one line."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from harness.errors import UserError, visible
from harness.publishing import archive
from harness.records import witnesses
from harness.records.home import Home
from harness.records.results import Damaged
from harness.schema.bundles import MANIFEST
from tests.helpers.commands import call, complaint


def folder(path: Path) -> Path:
    path.mkdir()
    (path / MANIFEST).write_text("{}")
    return path


def _link(path: Path) -> None:
    (folder(path) / "plans").symlink_to("/etc")


def _file_link(path: Path) -> None:
    (folder(path) / "a.json").symlink_to("/etc/passwd")


def _fifo(path: Path) -> None:
    os.mkfifo(folder(path) / "a.json")


def _huge_header(path: Path) -> None:
    (folder(path) / "weights.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


def _huge_text(path: Path) -> None:
    with (folder(path) / "a.json").open("wb") as file:
        file.truncate(2**27)


@pytest.mark.parametrize("make", [_link, _file_link, _fifo, _huge_header, _huge_text])
def test_hostile_folders(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "bundle")
    assert "no plain file" in (said := complaint(call("verify", tmp_path / "bundle"))) or "bytes" in said


def member(name: str, kind: bytes = tarfile.REGTYPE, **more: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for key, value in more.items():
        setattr(made, key, value)
    return made


MEMBERS = {
    "absolute": member("/tmp/evil"),
    "parent": member("plans/../../evil"),
    "symbolic link": member("plans", tarfile.SYMTYPE, linkname="/etc"),
    "hard link": member("a.json", tarfile.LNKTYPE, linkname="/etc/passwd"),
    "fifo": member("a.json", tarfile.FIFOTYPE),
    "device": member("a.json", tarfile.CHRTYPE, devmajor=1, devminor=3),
    "backslash": member("a\\b"),
    "drive": member("c:evil"),
}


@pytest.mark.parametrize("what", MEMBERS)
def test_hostile_members_of_tar_files(tmp_path: Path, what: str) -> None:
    with tarfile.open(tmp_path / "b.tar", "w") as made:
        made.addfile(member(MANIFEST), io.BytesIO())
        made.addfile(MEMBERS[what], io.BytesIO())
    before = set(tmp_path.rglob("*"))
    assert "b.tar" in complaint(call("verify", tmp_path / "b.tar"))
    assert set(tmp_path.rglob("*")) == before


def test_a_tar_file_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    with (tmp_path / "b.tar").open("wb") as file:
        file.write(member("a.json", size=2**40).tobuf())
    with pytest.raises(UserError, match=r"b\.tar"), archive.opened(tmp_path / "b.tar"):
        pass


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "twice"])
def test_hostile_members_of_zip_files(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as made:
        made.writestr("twice", "1")
        with pytest.warns(UserWarning, match="Duplicate name") if name == "twice" else nullcontext():
            made.writestr(name, "2")
    assert "b.zip" in complaint(call("verify", tmp_path / "b.zip"))
    assert not (tmp_path.parent / "evil").exists()


def test_zip_bombs_are_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr(MANIFEST, bytes(2**24))
    assert "is compressed" in complaint(call("verify", tmp_path / "b.zip"))


def test_a_link_in_a_zip_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as made:
        link = zipfile.ZipInfo("plans")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        made.writestr(link, "/etc")
    assert "no plain file" in complaint(call("verify", tmp_path / "b.zip"))


@pytest.mark.parametrize("name", ["b.tar", "b.zip", "b.txt", "b"])
def test_what_is_no_bundle(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x05\x06 no archive")
    assert name in complaint(call("verify", tmp_path / name))
    assert "there is no bundle" in complaint(call("verify", tmp_path / "nowhere"))


def test_nothing_else_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    with pytest.raises(UserError, match="no bundle"):
        archive.write(tmp_path / "mine", {MANIFEST: b"{}"})
    with pytest.raises(UserError, match="compressed already"):
        archive.write(tmp_path / "b.tar.gz", {MANIFEST: b"{}"})
    archive.write(tmp_path / "b", {MANIFEST: b"{}", "old": b""})
    archive.write(tmp_path / "b", {MANIFEST: b"{}", "new": b""})
    assert archive.names(tmp_path / "b") == [MANIFEST, "new"]
    shutil.rmtree(tmp_path / "b")


@pytest.mark.parametrize("key", ["..", "../cells/x", "/etc", "a/b", "", "a\0", "a\\b"])
def test_a_key_leads_nowhere_else(tmp_path: Path, key: str) -> None:
    home = Home(tmp_path)
    places = (home.model, home.cell, home.prepared, home.health, home.planted, home.witnesses)
    for place in (*places, lambda k: home.crafted(k, 0), lambda k: home.certificate(k, 0)):
        with pytest.raises(UserError, match="no key"):
            place(key)


def test_terminals_are_not_commanded() -> None:
    assert visible("a\x1b[2Jb\r\nc\u202eé") == "a\\x1b[2Jb\\r\\nc\\u202eé"


def test_tables_that_stand_for_gigabytes_are_not_read() -> None:
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"index": pa.array(np.zeros(2**24 + 1, np.int8))}), buffer, compression="zstd")
    assert buffer.tell() < 2**20
    with pytest.raises(Damaged, match="it claims 16777217 rows"):
        witnesses.unpack(buffer.getvalue(), Path("w.parquet"))
