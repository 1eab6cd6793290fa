from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from harness.records.files import write_bytes
from reports.drawing import names


def test_a_plain_name_stays_as_it_is() -> None:
    assert names.page("quick", "mnist", "mlp-200-200", "standard", "n1000") == "quick_mnist_mlp-200-200_standard_n1000"


@pytest.mark.parametrize(
    "text",
    ["../../etc/passwd", "PGD", "a_b", "a--b", "<script>", "", "-", "\u00e9t\u00e9", "x" * 500, "con.html", "a\0b"],
)
def test_any_name_becomes_a_file_name(text: str) -> None:
    assert re.fullmatch(r"[a-z0-9]*(-[a-z0-9]+)*", names.slug(text))
    assert len(names.slug(text)) <= names.LONGEST


def test_different_names_have_different_pages() -> None:
    parts = ["a", "a-b", "a_b", "A", "a--b", "b", "", "-", "a b", "a.b", "x" * 40, "x" * 41]
    made = [names.page(*words) for words in product(parts, repeat=2)]
    assert len({name.lower() for name in made}) == len(made)  # also where file names ignore case


def test_a_page_of_two_is_found_from_either_and_fits(tmp_path: Path) -> None:
    long = [names.page(*(letter * 99 for _ in range(4)), "n1000000000") for letter in "ab"]
    assert names.versus(*long) == names.versus(*reversed(long)) == "--".join(long)
    write_bytes(tmp_path / f"{names.versus(*long)}.html", b"")  # file systems allow 255 characters
    assert all("--" not in names.page(text, "x") for text in ("--", "a--b", "_", ""))
