"""The page in a browser: nothing goes wrong, nothing is wider than the screen, and everything works by keyboard.

Skipped where there is no Chromium (Debian's package is `chromium`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.report.browser import PROGRAM, Browser, browser
from tests.tiny import run, write_recipe

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with distillation."""
    folder = tmp_path_factory.mktemp("page")
    recipe, weights = write_recipe(folder)
    options = ["--site", "conv_first=float", "--w", 3, "--a", 4, "--out", folder / "m.safetensors"]
    ran = run("quantize", "--recipe", recipe, "--weights", weights, *options)
    assert (ran.status, ran.err) == (0, "")
    return folder / "m.html"


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    """A browser that reaches no network."""
    assert PROGRAM is not None
    with browser(PROGRAM) as opened:
        yield opened


def test_the_page_is_small(report: Path) -> None:
    assert report.stat().st_size < 5_000_000


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280], ids=["narrow", "wide"])
def test_nothing_goes_wrong_and_nothing_sticks_out(tab: Browser, report: Path, width: int, dark: bool) -> None:
    tab.open(report, width, 800, dark=dark)
    assert tab.faults == []
    assert tab.value("document.documentElement.scrollWidth <= innerWidth")
    sizes = "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
    assert tab.value(sizes)
    paper, ink = (
        sum(map(int, tab.value(f"getComputedStyle(document.body).{name}")[4:-1].split(",")))
        for name in ("backgroundColor", "color")
    )
    assert (paper < ink) == dark
    assert abs(paper - ink) > 500


def test_every_picture_and_drawing_says_what_it_shows(tab: Browser, report: Path) -> None:
    tab.open(report)
    assert tab.value("document.images.length") > 10
    assert tab.value("[...document.images].every(i => i.alt.length > 15)")
    unnamed = (
        "[...document.querySelectorAll('svg')].filter(s => !s.getAttribute('aria-label') || !s.getAttribute('role'))"
    )
    assert tab.value(f"{unnamed}.length") == 0
    nameless = "[...document.querySelectorAll('input')].filter(i => !i.labels.length && !i.getAttribute('aria-label'))"
    assert tab.value(f"{nameless}.length") == 0
    headings = tab.value("[...document.querySelectorAll('h1, h2')].map(h => h.tagName).join(' ')")
    assert headings.startswith("H1 H2")
    assert headings.count("H1") == 1
    ids = "[...document.querySelectorAll('[id]')].map(e => e.id)"
    assert tab.value(f"new Set({ids}).size == {ids}.length")
    links = tab.value("[...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href').slice(1))")
    assert set(links) <= set(tab.value(ids))


def test_the_slider_moves_by_keyboard(tab: Browser, report: Path) -> None:
    tab.open(report)
    tab.value("document.querySelector('.stack input').focus()")
    at = "document.querySelector('.stack').style.getPropertyValue('--at')"
    assert tab.value(at) == "50%"
    for _ in range(3):
        tab.press("ArrowRight")
    assert tab.value(at) == "53%"
    tab.press("End")
    assert tab.value(at) == "100%"
    shown = "getComputedStyle(document.querySelector('.stack img.right')).clipPath"
    assert tab.value(shown) == "inset(0px 0px 0px 100%)"
    tab.press("Home")
    assert tab.value(at) == "0%"


def test_the_slider_is_reached_by_the_tab_key(tab: Browser, report: Path) -> None:
    tab.open(report)
    for _ in range(30):
        tab.press("Tab")
        if tab.value("document.activeElement.type") == "range":
            break
    assert tab.value("document.activeElement.matches('.stack input')")
    assert tab.value("getComputedStyle(document.querySelector('.handle')).outlineStyle") == "solid"


def test_each_side_shows_what_is_chosen(tab: Browser, report: Path) -> None:
    tab.open(report)
    assert tab.value("document.querySelector('img.left').dataset.layer") == "first"
    assert tab.value("document.querySelector('.stack img.right').dataset.layer") == "second"
    for layer in ("plain", "truth", "map"):
        chosen = f"document.querySelector('select[data-side=right] option[value={layer}]')"
        tab.value(f"{chosen}.selected = true; {chosen}.parentElement.dispatchEvent(new Event('change'))")
        assert tab.value("document.querySelector('.stack img.right').dataset.layer") == layer
        assert tab.value("document.querySelectorAll('.patch:first-child .stack img.right').length") == 1
    assert tab.value("document.querySelector('.tag.right').textContent") == "error map"


def test_the_table_of_sites_is_sorted_and_searched(tab: Browser, report: Path) -> None:
    tab.open(report)
    column = "[...document.querySelectorAll('#sites-table tbody tr')].map(r => r.cells[{}].textContent)"
    heading = (
        "[...document.querySelectorAll('#sites-table th button')].findIndex(b => b.textContent == 'share of MACs')"
    )
    index = tab.value(heading)
    tab.value(f"document.querySelectorAll('#sites-table th button')[{index}].focus()")
    tab.press("Enter")
    assert tab.value("document.activeElement.parentElement.ariaSort") == "ascending"
    shares = [float(text.rstrip(" %")) for text in tab.value(column.format(index))]
    assert shares == sorted(shares)
    tab.press("Enter")
    assert [float(text.rstrip(" %")) for text in tab.value(column.format(index))] == sorted(shares, reverse=True)
    tab.value(
        "(f => { f.value = 'blocks.1 qkv'; f.dispatchEvent(new Event('input')) })(document.getElementById('find-site'))"
    )
    left = tab.value(
        "[...document.querySelectorAll('#sites-table tbody tr:not([hidden])')].map(r => r.cells[1].textContent)"
    )
    assert sorted(left) == [f"layers.{n}.residual_group.blocks.1.attn.qkv" for n in range(2)]


def test_the_drawing_is_coloured_by_choice(tab: Browser, report: Path) -> None:
    tab.open(report)
    fill = "getComputedStyle(document.querySelector('.site[data-w=\"3\"] rect')).fill"
    by_weights = tab.value(fill)
    tab.value("document.querySelector('input[value=a]').click()")
    assert tab.value("document.getElementById('network-drawing').dataset.by") == "a"
    assert tab.value(fill) != by_weights
    tab.value("document.querySelector('input[value=n]').click()")
    assert tab.value("getComputedStyle(document.querySelector('.for-levels')).display") == "flex"
    assert tab.value("document.querySelectorAll('#network-drawing .site').length") == 29
    assert tab.value("document.querySelector('.site[data-w=float] title').textContent").startswith("conv_first")


def test_loss_curves_and_float_sites_are_there(tab: Browser, report: Path) -> None:
    tab.open(report)
    titles = tab.value("[...document.querySelectorAll('.chart figcaption')].map(c => c.textContent)")
    assert titles[0].startswith("dqc: loss")
    text = tab.value("document.getElementById('float').parentElement.textContent")
    assert "conv_first" in text
    assert "left out by the pattern" in text
