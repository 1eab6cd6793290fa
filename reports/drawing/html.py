"""Self-contained HTML pages from templates: one file each, no network, the same bytes for the same records."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, Final
from urllib.parse import urlsplit

import jinja2
from markupsafe import Markup, escape

from . import text
from .charts import sparkline

PALETTE: Final = 10

MARK: Final = '<meta name="generator" content="Gauntlet">'
"""Stands in the head of every page: a file without it was written by somebody else."""


def page(template: str, **context: Any) -> str:
    """A page as text.

    Args:
        template: Name of the template.
        context: What it shows: ``title`` (of the window), ``up`` (relative address of the report's folder), and what
            the template asks for.
    """
    script = _source("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assets = {"style": Markup(_source("style.css")), "script": Markup(script), "script_hash": digest}
    return environment().get_template(template).render(**context, **assets, mark=Markup(MARK))


@cache
def environment() -> jinja2.Environment:
    """The jinja environment: everything is escaped, an undefined name is an error."""
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("reports.drawing", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    words = (
        "band_on band_text days_text spread interval points_interval p_text rank_text budget_text plural GRADE_MEANS "
        "ANSWERS planted_text"
    )
    env.globals |= {name: getattr(text, name) for name in words.split()}
    env.globals |= {"sparkline": sparkline, "PALETTE": PALETTE, "MISSING": text.MISSING}
    env.filters |= {name: getattr(text, name) for name in ("percent", "points", "number", "integer", "seconds", "both")}
    env.filters |= {"norm": text.norm_name, "eps": text.eps_text, "toolkit": text.toolkit_name}
    env.filters |= {one.__name__: one for one in (pretty, link, clip, soft, heading, options)}
    env.tests["number"] = text.is_number
    return env


def link(url: str) -> str:
    """The address if a browser may follow it (http or https), "" otherwise: records are not trusted."""
    try:
        parts = urlsplit(str(url))
    except ValueError:
        return ""
    return str(url) if parts.scheme in ("http", "https") and parts.netloc else ""


def pretty(value: Any) -> str:
    """A declaration as indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=_plain)


def clip(words: str, limit: int = 180) -> str:
    """The beginning of a long text."""
    return words if len(words) <= limit else words[: limit - 1].rstrip() + "\u2026"


def soft(words: str) -> Markup:
    """Escaped text that may break where a label has joints: after ``( , / _``, before a hump, before a long value.

    A word without joints breaks after every 30 letters.
    """
    parts = re.split(r"(?<=[(,/_|])(?=\w)|(?<==)(?=[^,)]{6})|(?<=[a-z])(?=[A-Z])", words)
    return Markup("<wbr>").join(piece for part in parts for piece in re.findall(r"\S{30}|(?:\S{1,29}(?!\S)|\s)+", part))


def heading(words: str) -> str:
    """With a capital at the beginning."""
    return words[:1].upper() + words[1:]


def options(words: str) -> Markup:
    """Escaped text with command-line options as code, so that they are not torn apart at their hyphens."""
    return Markup(re.sub(r"--[a-z][a-z-]*(?: \w+=\w+)?", r"<code>\g<0></code>", str(escape(words))))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, Sequence) else str(value)


def _source(name: str) -> str:
    return resources.files("reports.drawing").joinpath("templates", name).read_text(encoding="utf-8")
