from __future__ import annotations

import math

import pandas as pd
import pytest

from reports.drawing import text
from reports.drawing.markdown import code, escape, table


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, pd.NA, "0.5"])
def test_what_is_no_number_does_not_look_like_one(value: object) -> None:
    for write in (text.percent, text.number, text.integer):
        assert write(value) == text.MISSING
    assert text.interval(value, 0.5) == text.interval(0.5, value) == text.MISSING
    assert text.spread(value, 0.1) == text.MISSING


def test_percentages_have_one_decimal() -> None:
    assert [text.percent(v) for v in (0, 0.4321, 0.99999, 1)] == ["0.0", "43.2", "100.0", "100.0"]
    assert text.interval(0.401, 0.463) == "[40.1, 46.3]"
    assert text.spread(0.432, 0.011) == "43.2 \u00b1 1.1"
    assert text.spread(0.432, math.nan) == "43.2"


@pytest.mark.parametrize(
    ("eps", "levels", "shown"),
    [
        (8 / 255, 255, "8/255"),
        (128 / 255, 255, "128/255"),
        (0.2, 255, "0.2"),  # 51/255, but nobody calls it so
        (0.5, 255, "0.5"),
        (1.0, 255, "1"),
        (0.0625, 16, "0.0625"),
        (8 / 255, 16, "0.0313725"),
        (0.03, 255, "0.03"),
        (0.0, 255, "0"),
        (None, 255, text.MISSING),
    ],
)
def test_eps(eps: float | None, levels: int, shown: str) -> None:
    assert text.eps_text(eps, levels) == shown


def test_a_budget_that_holds_every_image_says_so() -> None:
    assert text.threat_text("linf", 1.0, 255) == text.budget_text("linf", 1.0, 255) == "any change"
    assert text.threat_text("linf", 0.99, 255) == "L\u221e \u03b5 = 0.99"
    assert text.threat_text("l2", 1.0, 255) == "L\u2082 \u03b5 = 1"
    assert text.threat_text("linf", None, 255) == "L\u221e minimal"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0823, "+8.2"),
        (-0.0823, "\u22128.2"),
        (0.0, "0.0"),
        (-0.0001, "0.0"),
        (1.0, "+100.0"),
        (math.nan, text.MISSING),
    ],
)
def test_points_have_a_sign_and_no_minus_zero(value: float, shown: str) -> None:
    assert text.points(value) == shown


def test_differences_p_values_and_ranks() -> None:
    assert text.points_interval(-0.01, 0.123) == "[\u22121.0, +12.3]"
    assert text.points_interval(math.nan, 0.1) == text.MISSING
    assert [text.p_text(p) for p in (1.0, 0.0312, 0.00012, 9e-5, 0.0, math.nan)] == [
        "1", "0.031", "0.00012", "< 0.0001", "< 0.0001", text.MISSING,
    ]  # fmt: skip
    assert [text.rank_text(2, shared) for shared in (False, True)] == ["2", "2="]
    assert text.rank_text(pd.NA, shared=True) == text.MISSING
    assert [text.both(list(words)) for words in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.03141, "0.0314"),
        (2.0, "2"),
        (55.44, "55.4"),
        (1240.4, "1,240"),
        (-0.5, "-0.5"),
        (1e-9, "0.000000001"),
    ],
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert text.number(value) == shown


def test_markdown_keeps_text_inside_its_cell() -> None:
    assert escape("a|b\n<script> `x` _y_ l_2 [z](w) *") == (r"a\|b &lt;script&gt; \`x\` \_y\_ l_2 \[z\](w) \*")
    written = code("a | `b` <c> *d* e_f [g]")
    assert written.startswith("<code>")
    assert not set("|`*_[]") & set(written)
    assert code("") == f"<code>{text.MISSING}</code>"


def test_a_table_with_a_column_too_many_is_none() -> None:
    assert list(table(("a", "b"), [("1", "2")], "lr")) == ["| a | b |", "| --- | ---: |", "| 1 | 2 |", ""]
    with pytest.raises(AssertionError, match="3 alignments of 2 columns"):
        list(table(("a", "b"), [], "lrl"))
    with pytest.raises(AssertionError, match="1 entries in 2 columns"):
        list(table(("a", "b"), [("1",)]))


@pytest.mark.parametrize(
    ("days", "shown"),
    [
        ([], ""),
        ([""], ""),
        (["2026-11-28", "", "2026-11-28"], "2026-11-28"),
        (["2026-12-01", "2026-11-28"], "2026-11-28 to 2026-12-01"),
    ],
)
def test_days(days: list[str], shown: str) -> None:
    assert text.days_text(days) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.000687, "< 0.01"), (0, "0"), (0.529, "0.53"), (9.44, "9.4"), (16.5, "16"), (1234.6, "1,235")],
)
def test_seconds_are_rounded_for_people(value: float, shown: str) -> None:
    assert text.seconds(value) == shown
