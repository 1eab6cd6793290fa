"""The self-contained page: one file, no network, the same bytes for the same records."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import jinja2
from markupsafe import Markup

from . import text
from .charts import Chart, eps_chart, sparkline
from .gallery import PER_SECTION, PER_STRIP, Picture, choose, pictures
from .tables import Section, column
from .view import Entry

PALETTE = 10


@dataclass(frozen=True)
class Strip:
    """A row of the gallery: one model under one attack."""

    entry: Entry
    attack: str
    threat: str
    seed: int
    anchor: str
    pictures: Sequence[Picture]


def render(sections: Sequence[Section], title: str, command: str) -> str:
    """The page as text.

    Args:
        sections: What to show, see :func:`reports.tables.sections`.
        title: Heading and window title.
        command: What reproduces the whole report, "" to leave it out.
    """
    script = _source("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            command=command,
            sections=sections,
            charts={section.anchor: charts(section) for section in sections},
            strips={section.anchor: strips(section) for section in sections},
            environments=environments(sections),
            style=Markup(_source("style.css")),
            script=Markup(script),
            script_hash=digest,
        )
    )


def environment() -> jinja2.Environment:
    """The jinja environment: everything is escaped, an undefined name is an error."""
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("reports", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters |= {
        "percent": text.percent,
        "number": text.number,
        "integer": text.integer,
        "norm": text.norm_name,
        "toolkit": text.toolkit_name,
        "pretty": pretty,
        "link": link,
        "clip": clip,
        "soft": soft,
    }
    env.globals |= {
        "spread": text.spread,
        "interval": text.interval,
        "eps_text": text.eps_text,
        "threat_text": text.threat_text,
        "plural": text.plural,
        "is_number": text.is_number,
        "sparkline": sparkline,
        "column": column,
        "MISSING": text.MISSING,
        "PALETTE": PALETTE,
    }
    env.tests["number"] = text.is_number
    return env


def charts(section: Section) -> list[Chart]:
    """A chart for every norm of a section."""
    lines = [(entry.index, entry.name, entry.n, entry.models) for entry in section.attacked if entry.n]
    budgets = section.board.budgets.get(section.dataset, {})
    return [eps_chart(lines, norm, budgets[norm], section.levels) for norm in section.norms if lines and budgets[norm]]


def strips(section: Section) -> list[tuple[str, list[Strip]]]:
    """Per norm the gallery: for every model the attack that broke most at the middle eps, on its first images."""
    budgets = section.board.budgets.get(section.dataset, {})
    per_strip = max(1, min(PER_STRIP, PER_SECTION // max(1, len(section.attacked) * len(section.norms))))
    found = []
    for norm in section.norms:
        rows = []
        for entry in section.attacked:
            pair = choose(entry.pairs, norm, budgets[norm][len(budgets[norm]) // 2])
            shown = pictures(pair, per_strip) if pair else []
            if pair and shown:
                anchor = next(r.anchor for r in section.records[entry.anchor] if r.pair is pair)
                threat = text.threat_text(norm, pair.meta["eps"], section.levels)
                rows.append(Strip(entry, column(pair).name, threat, pair.meta["seed"], anchor, shown))
        if rows:
            found.append((norm, rows))
    return found


def environments(sections: Sequence[Section]) -> list[tuple[dict[str, str], str, int]]:
    """Distinct (versions, commit) behind the pairs, each with its number of pairs, most first."""
    found: dict[str, int] = {}
    for section in sections:
        for pair in section.pairs:
            versions = {str(name): str(value) for name, value in (pair.meta.get("versions") or {}).items()}
            key = json.dumps([versions, str(pair.meta.get("git_commit") or "")], sort_keys=True)
            found[key] = found.get(key, 0) + 1
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return [(*json.loads(key), count) for key, count in ordered]


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
    """Escaped text that may break where a label has joints (after ``( , = / _`` and before a hump), not anywhere."""
    parts = re.split(r"(?<=[(,=/_|])(?=\w)|(?<=[a-z])(?=[A-Z])", words)
    return Markup("<wbr>").join(part[i : i + 30] for part in parts for i in range(0, len(part), 30))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, Sequence) else str(value)


def _source(name: str) -> str:
    return resources.files("reports").joinpath("templates", name).read_text(encoding="utf-8")
