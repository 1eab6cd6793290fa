"""Options in text: lists of ``key=value``, and values as the type that an annotation asks for."""

from __future__ import annotations

import ast
import re
import types
from collections.abc import Collection
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import UserError, unknown

Value = int | float | bool | str


def pairs(
    text: str, separator: str, what: str, known: Collection[str] | None = None, noun: str = "option"
) -> dict[str, str]:
    """Read ``key=value`` with a one-character separator between them, which may end the text.

    ``what`` the options are of, and the ``noun`` for one of them, are for complaints; ``known``: names to choose from.

    Raises:
        UserError: No ``=``, an unknown name, or one given twice.
    """
    found: dict[str, str] = {}
    for part in filter(None, text.split(separator)):
        name, equals, value = part.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"{what}: write {noun}s as key=value{separator}key=value, got {part!r}")
        if known is not None and name not in known:
            raise unknown(f"{noun} of {what}", name, known)
        if name in found:
            raise UserError(f"{what}: {name} is given twice")
        found[name] = value
    return found


def convert(text: str, kind: Any, what: str) -> Any:
    """A value of an annotated type; of several numbers in one option ``1e-3/1e-4/0``.

    Raises:
        UserError: The text is no such value.
    """
    if get_origin(kind) in (Union, types.UnionType):
        if text.lower() == "none":
            return None
        choices = [choice for choice in get_args(kind) if choice is not type(None)]
        several = next((choice for choice in choices if get_origin(choice) is tuple), None)
        if several is not None and "/" in text:  # a comma would begin the next option
            return tuple(convert(part, get_args(several)[0], what) for part in text.split("/"))
        kind = choices[0]
    if get_origin(kind) is Literal or kind is str:
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"{what} must be true or false, got {text!r}")
        return text.lower() == "true"
    try:
        return number(text) if kind is float else kind(text)
    except (TypeError, ValueError):
        wanted = {int: "a whole number", float: "a number"}.get(kind, getattr(kind, "__name__", str(kind)))
        raise UserError(f"{what} must be {wanted}, got {text!r}") from None


_FRACTION = re.compile(r"\s*([+-]?[\d.]+(?:e[+-]?\d+)?)\s*/\s*([\d.]+(?:e[+-]?\d+)?)\s*", re.IGNORECASE)


def number(text: str) -> float:
    """A number, also one written as a fraction: ``8/255``.

    Raises:
        ValueError: It is none, or divided by zero.
    """
    if found := _FRACTION.fullmatch(text):
        above, below = float(found[1]), float(found[2])
        if below == 0:
            raise ValueError(f"{text} divides by zero")
        return above / below
    return float(text)


def guess(text: str) -> Value:
    """A value of whatever type it looks like: a whole number, a number, ``true`` or ``false``, else the text."""
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return text if "_" in text else number(text)
    except ValueError:
        return text


def literal(text: str) -> Any:
    """A Python literal, such as ``None`` or ``(1, 2)``, else :func:`guess`."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return guess(text)


def written(value: Any) -> str:
    """A value as :func:`convert` reads it."""
    return "/".join(map(written, value)) if isinstance(value, tuple) else str(value)


def check_choices(declaration: Any, of: str = "") -> None:
    """Raise a UserError unless fields that are a ``Literal``, or that or None, hold one of its values.

    ``of`` says in the complaint whose fields they are, e.g. ``" for pgd"``.
    """
    kind: Any = type(declaration)
    for name, choices, optional in _literals(kind):
        value = getattr(declaration, name)
        if value not in choices and not (optional and value is None):
            raise unknown(f"{name}{of}", str(value), choices)


@cache  # annotations are strings, which it takes a millisecond to read: a plan declares thousands of trainers
def _literals(kind: Any) -> tuple[tuple[str, tuple[Any, ...], bool], ...]:
    """Fields of a class that have a choice of values alone: name, choices, and whether it may be None as well."""
    found = []
    for name, hint in get_type_hints(kind).items():
        parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        literal, *others = [part for part in parts if part is not type(None)]
        if get_origin(literal) is Literal and not others:
            found.append((name, get_args(literal), type(None) in parts))
    return tuple(found)
