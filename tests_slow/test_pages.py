"""The documentation site in a browser: axe-core finds nothing, nothing is asked of the network (``nox -s pages``)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.reports.test_browser import browser, open_page  # noqa: F401  # fixtures

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
SITE = Path(os.environ.get("SITE", "site")).resolve()
PAGES = [path for path in sorted(SITE.rglob("*.html")) if "records" not in path.parts and path.name != "404.html"]
pytestmark = pytest.mark.skipif(not PAGES, reason=f"no site in {SITE}: nox -s pages builds one")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(SITE).as_posix())
def test_axe_finds_nothing(open_page: Any, page: Path, scheme: str) -> None:  # noqa: F811
    for width in (390, 1400):
        shown = open_page(page.as_uri(), width, color_scheme=scheme)
        found = axe.Axe().run(shown, options={"preload": False}).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
