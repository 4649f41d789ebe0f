"""The pages of the site: every block runs, tables from the code are up to date, and links lead somewhere."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from docs import make_settings
from tests.docs.pages import DOCS, blocks, run_block
from tests.tiny import OWN, picture, run

PAGES = (
    *("how.md", "report.md", "faq.md", "recipes.md", "passes.md", "export.md"),
    pytest.param("start.md", marks=pytest.mark.slow),  # it quantizes EDSR as a reader does, for a minute and a half
)
ROOT = DOCS.parent


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder, importable, with a picture, an empty folder and notes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    picture(tmp_path / "small.png", 24)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.html").write_text("notes")
    for name in ("nets", "own", "mod"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs(page: str, folder: Path) -> None:
    if page == "export.md":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `export`)")
    if page in ("faq.md", "export.md"):
        (folder / "mod.py").write_text(OWN)
        made = run("quantize", "--model", "mod:Net", "--preset", "quick", "--no-report", "--out", "own.safetensors")
        assert made.status == 0
    names: dict[str, object] = {}
    found = blocks(page)
    assert found
    for block in found:
        run_block(block, names, page)


@pytest.mark.parametrize("name", make_settings.PAGES)
def test_tables_from_the_code_are_up_to_date(name: str) -> None:
    assert make_settings.PAGES[name]() == (DOCS / name).read_text(encoding="utf-8"), "run `make api`"


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as code hosts and mkdocs make them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    "path",
    [*sorted(DOCS.glob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md"))],
    ids=lambda path: path.name if path.parent != ROOT / "examples" else "examples",
)
def test_links_lead_to_files_and_headings(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", text):
        aim = (path.parent / target).resolve() if target else path
        assert aim.exists(), f"{path.name}: {target}"
        if anchor and aim.suffix == ".md":
            assert anchor in anchors(aim.read_text(encoding="utf-8")), f"{path.name}: {target}#{anchor}"


def test_every_page_is_in_the_menu_of_the_site() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert {path.name for path in DOCS.glob("*.md")} <= set(re.findall(r"[\w.-]+\.md", menu))
