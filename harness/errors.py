"""Errors that users cause, each one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The message is one line: what is wrong, and what the choices are or what mends it."""


def unknown(what: str, name: str, choices: Iterable[str]) -> UserError:
    """Error for a name that does not exist, with the nearest matches and every choice."""
    choices = list(choices)
    bare = {choice.partition("(")[0]: choice for choice in choices}  # a label may carry settings in parentheses
    near = [bare[match] for match in difflib.get_close_matches(name, bare, n=3, cutoff=0.5)]
    hint = f" did you mean {' or '.join(near)}?" if near else ""
    return UserError(f"unknown {what} {name!r};{hint} choose from {', '.join(choices)}")


def printable(text: str) -> str:
    r"""A text with what is no UTF-8 in it written out, as ``caf\xe9``: terminals, JSON and MLflow take nothing else."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def visible(text: str) -> str:
    """A text of a stranger's, without what a terminal would take for a command: such characters are written out."""
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in printable(text))


def first_line(error: Exception) -> str:
    """What an error says, in one line; its type if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def describe(error: Exception) -> str:
    """One line for the record, ``"Type: message"``."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def said(error: BaseException) -> str:
    """An exception with all that it says, on one line."""
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
