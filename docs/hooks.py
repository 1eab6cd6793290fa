"""What mkdocs needs to know of this repository: pages from outside ``docs/``, and links to them.

Links in ``docs/`` are written for reading in the repository; here those that lead out of it are turned to the page that
the file becomes, so that the site is whole by itself.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "LICENSE")
FOLDERS = ("records", "examples")
ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):(<code>)(?:~(?:\w+\.)*|\.+)?")
NAV = re.compile(
    r'(<nav class="md-nav"[^>]*)aria-labelledby="(__nav_\d+)_label"'
    r'([^>]*>\s*<label class="md-nav__title" for="\2">\s*<span[^>]*></span>\s*(.*?)\s*</label>)',
    re.DOTALL,
)
FOOTER = re.compile(r'(<a [^>]*md-footer__link[^>]*?) aria-label="[^"]*"')
SHIM = "https://unpkg.com/iframe-worker/shim"  # of the plugin offline, for the search of pages opened from a disk
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let ``FOLDER/*`` in the navigation stand for the folder's pages that it does not name."""
    for section in config.nav or ():
        for pages in section.values() if isinstance(section, dict) else ():
            for place, name in enumerate(list(pages)):
                if name.endswith("/*"):
                    found = sorted(Path(config.docs_dir, name[:-2]).glob("*.md"))
                    pages[place:] = [page for path in found if (page := f"{name[:-2]}/{path.name}") not in pages]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Bring in what lies beside ``docs/``."""
    beside = [ROOT / name for name in PAGES]
    beside += [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.is_file()]
    for path in beside:
        name = path.relative_to(ROOT).as_posix()
        if "__pycache__" in name:
            continue
        name = "readme.md" if name == "README.md" else name  # the site's own first page is docs/index.md
        files.append(File.generated(config, name, abs_src_path=str(path)))
    text = notebook(ROOT / "examples" / "first_hour.ipynb")
    files.append(File.generated(config, "guides/first-hour.md", content=text))
    return files


def notebook(path: Path) -> str:
    """A notebook as a page: its text, and its code in blocks."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text())["cells"]]
    parts = [text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells]
    where = f"*This page is a notebook: [{path.name}](../examples/{path.name}).*"
    return "\n\n".join([parts[0], where, *parts[1:]]) + "\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that leave ``docs/``, or lead into it from outside."""
    inside = page.file.generated_by is None
    here = f"docs/{page.file.src_uri}" if inside else page.file.src_uri.replace("readme.md", "README.md")

    def turned(found: re.Match[str]) -> str:
        target = normpath(f"{here.rpartition('/')[0]}/{found[2]}".lstrip("/"))
        if (ROOT / target).is_dir():
            target += "/README.md"
        name = "readme.md" if target == "README.md" else target.removeprefix("docs/")
        return f"{found[1]}{relpath(name, page.file.src_uri.rpartition('/')[0] or '.')}{found[3]}"

    return LINK.sub(turned, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Mend what the theme leaves: sections without a name, names that hide the text, a script from elsewhere."""
    output = NAV.sub(r'\1aria-label="\4"\3', output)
    output = FOOTER.sub(r"\1", output)
    output = output.replace('class="md-search" data-md', 'class="md-search" aria-label="Search" data-md')
    return output.replace(SHIM, relpath("iframe-worker.js", page.url.rpartition("/")[0] or "."))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Take the roles of docstrings for what they name, which the handler of Google's style leaves as they are."""
    return ROLE.sub(r"\1", html)
