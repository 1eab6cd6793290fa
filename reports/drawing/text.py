"""Numbers and names as text, the same in HTML and Markdown. A missing number is a dash."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from harness.schema import eps as spelling
from harness.schema.counts import plural as plural
from harness.trust.grade import Grade, Status

MISSING: Final = "\u2014"
NORM_NAMES: Final = {"linf": "L\u221e", "l2": "L\u2082", "l1": "L\u2081", "l0": "L\u2080"}
TOOLKIT_NAMES: Final = {"gauntlet": "Gauntlet", "art": "ART", "foolbox": "Foolbox"}
UNBOUNDED: Final = "any change"
FLAG_NAMES: Final = {
    "over_budget": "over budget",
    "out_of_box": "outside [0, 1]",
    "non_finite": "not finite",
    "wrong_shape": "wrong shape",
    "crashed": "crashed",
}
GRADE_MEANS: Final[Mapping[Grade, str]] = {
    "A": "nothing speaks against the number",
    "B": "small reserves",
    "C": "it stands, with a reserve that must be read",
    "D": "not to be believed, so no rank",
}
ANSWERS: Final[Mapping[Status, str]] = {
    "failed": "failed",
    "remedied": "remedied",
    "skipped": "not asked",
    "powerless": "could not fail",
    "passed": "passed",
}
"""Statuses of checks, in the order in which equals are shown."""


def is_number(value: Any) -> bool:
    """Whether there is a finite number to show (None, NaN, NA and infinities are not)."""
    try:
        return value is not None and math.isfinite(value)
    except TypeError:  # pandas.NA, strings
        return False


def percent(value: Any) -> str:
    """A fraction in [0, 1] as a percentage with one decimal, without the sign: 0.4321 -> ``43.2``."""
    return f"{100 * value:.1f}" if is_number(value) else MISSING


def spread(mean: Any, std: Any) -> str:
    """Mean and standard deviation over seeds in percent: ``43.2 \u00b1 1.1``; the mean alone for one seed."""
    return f"{percent(mean)} \u00b1 {percent(std)}" if is_number(mean) and is_number(std) else percent(mean)


def interval(low: Any, high: Any) -> str:
    """Two fractions as an interval in percent: ``[40.1, 46.3]``."""
    return f"[{percent(low)}, {percent(high)}]" if is_number(low) and is_number(high) else MISSING


def band_text(certified: Any, attacked: Any) -> str:
    """Two fractions as a band in percent, proved from below and attacked from above: ``41.0 ... 57.0``."""
    return f"{percent(certified)} ... {percent(attacked)}" if is_number(certified) and is_number(attacked) else MISSING


def band_on(row: Mapping[str, Any], n: int) -> str:
    """The band of a row, and on how many of its n images: ``41.0 ... 57.0 (first 32)``."""
    shown, there = band_text(row.get("certified"), row.get("certified_attacked")), row.get("certified_n")
    part = there is not None and is_number(there) and there < n
    return f"{shown} (first {integer(there)})" if shown != MISSING and part else shown


def number(value: Any, digits: int = 3) -> str:
    """A quantity with so many significant digits, thousands grouped: ``0.0314``, ``1,240``."""
    if not is_number(value):
        return MISSING
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{min(decimals, 12)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def integer(value: Any) -> str:
    """A count, thousands grouped."""
    return f"{int(value):,}" if is_number(value) else MISSING


def seconds(value: Any) -> str:
    """A time with two digits, below a hundredth and from ten on without fractions: ``< 0.01``, ``0.53``, ``17``."""
    if is_number(value) and 0 < value < 0.01:
        return "< 0.01"
    return number(value, 2) if not is_number(value) or value < 10 else integer(round(value))


def planted_text(row: Mapping[str, Any]) -> str:
    """Shares of planted adversarials that gradient and black-box attacks found, in percent: ``98.4 (90.6)``."""
    found, other = row.get("planted_found"), row.get("planted_black_box")
    return f"{percent(found)} ({percent(other)})" if is_number(found) and is_number(other) else percent(found)


def norm_name(norm: str) -> str:
    """``linf`` as people write it."""
    return NORM_NAMES.get(norm, norm)


def toolkit_name(toolkit: str) -> str:
    """``art`` as people write it."""
    return TOOLKIT_NAMES.get(toolkit, toolkit)


def eps_text(eps: float | None, levels: int = 255) -> str:
    """``8/255`` where eps is a whole number of 8-bit steps and no short decimal, the decimal otherwise.

    Args:
        eps: Radius in pixel units of [0, 1], or None for an attack without a budget.
        levels: Images hold k/levels.
    """
    return spelling.eps_text(eps, levels) if eps is not None and is_number(eps) else MISSING


def unbounded(norm: str, eps: float | None) -> bool:
    """Whether every image is within the budget: pixels of [0, 1] cannot move by more than 1."""
    return norm == "linf" and eps is not None and eps >= 1


def budget_text(norm: str, eps: float | None, levels: int) -> str:
    """The eps of a norm, or that it allows any change."""
    return UNBOUNDED if unbounded(norm, eps) else eps_text(eps, levels)


def threat_text(norm: str, eps: float | None, levels: int) -> str:
    """``L\u221e \u03b5 = 8/255``; ``L\u2082 minimal`` without a budget; ``any change`` without a bound."""
    if eps is None:
        return f"{norm_name(norm)} minimal"
    return UNBOUNDED if unbounded(norm, eps) else f"{norm_name(norm)} \u03b5 = {eps_text(eps, levels)}"


def points(value: Any) -> str:
    """A difference of two fractions in percentage points, signed: ``+8.2``."""
    if not is_number(value):
        return MISSING
    shown = f"{100 * value:+.1f}"
    return "0.0" if shown in ("+0.0", "-0.0") else shown.replace("-", "\u2212")


def points_interval(low: Any, high: Any) -> str:
    """Two differences as an interval in percentage points: ``[+3.1, +13.2]``."""
    return f"[{points(low)}, {points(high)}]" if is_number(low) and is_number(high) else MISSING


def p_text(value: Any) -> str:
    """A p value with two digits: ``0.031``, ``< 0.0001``."""
    if not is_number(value):
        return MISSING
    return "< 0.0001" if value < 1e-4 else number(value, 2)


def rank_text(rank: Any, shared: bool) -> str:
    """``2``; ``2=`` where several models share the rank."""
    return integer(rank) + ("=" if shared and is_number(rank) else "")


def both(values: Sequence[str]) -> str:
    """``a``; ``a and b``; ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(values[:-1]), *values[-1:]]))


def days_text(days: Iterable[str]) -> str:
    """Days as YYYY-MM-DD, "" where one is not known: the first and the last, one if they are the same, "" for none."""
    known = sorted({day for day in days if day})
    return " to ".join(dict.fromkeys((*known[:1], *known[-1:])))


def counts(values: Iterable[tuple[str, int]]) -> str:
    """``12 over budget, 3 not finite``; flags that never occurred are left out."""
    return ", ".join(f"{integer(count)} {FLAG_NAMES.get(name, name)}" for name, count in values if count)


def class_name(names: Sequence[str], index: int) -> str:
    """Name of a class, its number if it has none."""
    return str(names[index]) if 0 <= index < len(names) else str(index)
