"""Tables and the page: nothing cut off, nothing read as markup, one file that needs no other."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import fxptq
from fxptq.checkpoint.file import ByteCounts
from fxptq.commands.quantize import Outcome
from fxptq.commands.source import Source
from fxptq.errors import InputError
from fxptq.evaluate.contrast import Contrast, Layers, Patch
from fxptq.evaluate.score import Score, SetScore
from fxptq.report import console, page
from fxptq.report.gather import of_quantize
from tests.tiny import Medley, inputs, settings

NASTY = "<script>alert('[bold]&\"')</script>"


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    """A run with names that HTML and rich would read as their own."""
    model = torch.nn.Sequential()
    model.add_module(f"[bold]<i>{'long' * 15}", Medley().tail)
    model.add_module("x", torch.nn.Conv2d(3, 3, 3, padding=1))
    q = fxptq.quantize(
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), model),
        inputs(1),
        fxptq.Bits(4, 4),
        inputs(),
        settings(),
        sites={"1.x": "float"},
    )
    recipe = settings().model_copy(update={"title": NASTY})
    scores = [SetScore(NASTY, Score(30.125, 0.9, 29.0), {"a[b]": Score(30.125, 0.9, 29.0)})]
    stages = {"fp": scores, "dobi": scores, "final": scores}
    sizes, seconds = ByteCounts(1000, 20, 3, 4, 5), {"capture": 1.25}
    return Outcome(Source(NASTY, model, recipe), q, stages, 12345, sizes, seconds, 99.5, Path("out[1].safetensors"))


class Reader(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.handlers |= {name for name, _ in attrs if name.startswith("on")}

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_page_escapes_names_and_needs_no_other_file(outcome: Outcome, tmp_path: Path) -> None:
    path = page.write(of_quantize(outcome, f"fxptq {NASTY}"), tmp_path / "new" / "page.html")
    text = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert not {*reader.tags} & {"i", "iframe", "object", "embed", "base"}
    assert reader.tags.count("script") == 1
    assert not reader.handlers
    assert all(address.startswith(("#", "data:")) for address in reader.addresses)
    assert not re.search(r"url\(|@import|https?://", text)
    assert NASTY in reader.text
    assert f"fxptq {NASTY}" in reader.text
    assert "a[b]" in reader.text
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_page_lists_every_site_and_reason(outcome: Outcome, tmp_path: Path) -> None:
    reader = Reader()
    reader.feed(page.write(of_quantize(outcome, ""), tmp_path / "page.html").read_text(encoding="utf-8"))
    for site in outcome.model.sites:
        assert site.name in reader.text
    assert "left out by the pattern '1.x'" in reader.text
    assert "1,032" in reader.text  # bytes of the checkpoint
    assert "12,345" in reader.text


def test_a_page_of_many_pictures_stays_below_its_limit(outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (192, 192, 3), dtype=np.uint8) for _ in range(4)]
    patches = tuple(Patch("set", f"p{i}", 0, 0, 9.0 - i, Layers(*noise)) for i in range(9))
    content = replace(of_quantize(outcome, ""), contrast=Contrast(patches))
    whole = page.page(content)
    assert len(whole) < 5_000_000
    shown = whole.count('<figure class="patch">')
    assert 5 < shown < 9
    assert f"{9 - shown} more patches are left out" in whole
    monkeypatch.setattr(page, "MOST", 0)
    assert page.page(content).count('<figure class="patch">') == 1


def test_page_that_cannot_be_written(outcome: Outcome, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"page\.html: cannot be written"):
        page.write(of_quantize(outcome, ""), tmp_path / "file" / "page.html")


def shown(width: int, show: object, *args: object) -> str:
    out = io.StringIO()
    terminal = Console(file=out, width=width, force_terminal=False, soft_wrap=True, markup=False, highlight=False)
    show(terminal, *args)  # type: ignore[operator]
    return out.getvalue()


def test_console_cuts_nothing_off_in_a_narrow_terminal(outcome: Outcome) -> None:
    text = shown(60, console.show_sites, outcome.model.sites)
    assert "…" not in text
    first = "".join(line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│"))
    for site in outcome.model.sites:
        assert site.name in first


def test_console_shows_names_as_they_are(outcome: Outcome) -> None:
    text = shown(200, console.show_quantized, outcome, Path("out[1].html"))
    assert "checkpoint  out[1].safetensors" in text
    assert "report      out[1].html" in text
    assert NASTY in text
    assert "1.x: left out by the pattern '1.x'" in text
    assert "30.12 / 0.9000" in text
    assert "1,032 (11.96x smaller)" in text


def test_warnings_and_artefacts_of_the_quality_gate_are_on_the_page(outcome: Outcome) -> None:
    quality = replace(
        outcome.model.quality,
        warnings=("mesh: phases differ by 1.9 levels", NASTY),
        figures={"mesh": 1.94, "colour_shift": -0.25},
    )
    model = fxptq.QuantizedModel(outcome.model.program, outcome.model.meta, outcome.model.report, quality)
    text = page.page(of_quantize(replace(outcome, model=model), "fxptq quantize"))
    assert text.count('class="warnings"') == 1
    assert "<li>Warning: mesh: phases differ by 1.9 levels.</li>" in text
    assert NASTY not in text
    for shown in ("highest minus lowest", "1.94", "-0.25"):
        assert shown in text
    without = fxptq.QuantizedModel(outcome.model.program, outcome.model.meta, outcome.model.report)
    plain = page.page(of_quantize(replace(outcome, model=without), "fxptq quantize"))
    assert 'class="warnings"' not in plain
    assert "highest minus lowest" not in plain
