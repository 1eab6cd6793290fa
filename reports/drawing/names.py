"""File names of pages: safe on every file system, the same for the same model, different for different ones."""

from __future__ import annotations

import hashlib
import re
from typing import Final

LONGEST: Final = 24
"""Characters of one part; five parts of either of two models stay below the 255 that file systems allow."""


def slug(text: str) -> str:
    """Lower-case letters, digits and single hyphens; what that loses is told apart by a digest at the end."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if plain == text and len(plain) <= LONGEST:
        return plain
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return "-".join(filter(None, [plain[: LONGEST - 9].strip("-"), digest]))


def page(*parts: str) -> str:
    """Name of a model's page. No part holds the ``_`` between them, so that different parts make different names."""
    return "_".join(map(slug, parts))


def versus(a: str, b: str) -> str:
    """Name of the page that compares two models; no page's name holds ``--``."""
    return "--".join(sorted((a, b)))
