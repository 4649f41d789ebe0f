"""Hooks of mkdocs: pages that stand beside docs/ join the site, and links to other files name them as text.

On a code host, `../CONTRIBUTING.md` leads from a page of docs/ to the file. The site has the pages of `BESIDE` under
their own names. Of every other file outside docs/ it shows the path, because it does not know where the repository is.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
BESIDE = ("CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./)?[\w./-]*)(#[\w-]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages that stand beside docs/."""
    for name in BESIDE:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Turns links out of docs/ into links of the site, or into text.

    Raises:
        FileNotFoundError: a link leads to no file of the repository.
    """
    beside = page.file.src_path in BESIDE

    def inside(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        if not target or (not beside and not target.startswith("../")):
            return found[0]
        path = target.removeprefix("../")
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"{page.file.src_path}: {target} is no file of the repository")
        if path in BESIDE:
            return f"[{text}]({path}{anchor})"
        if path.startswith("docs/") and path.endswith(".md"):
            return f"[{text}]({path.removeprefix('docs/')}{anchor})"
        return f"{text} (`{path}`)" if f"`{path}`" != text else text

    return LINK.sub(inside, markdown)
