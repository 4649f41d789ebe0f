"""docs/custom.md: every block runs, in order, and prints what the page says."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from fxptq.passes import base
from tests.docs.pages import Block, blocks, matches, run_block
from tests.tiny import picture

PAGE = "custom.md"
MODULES = ("nets", "denoiser", "fickle", "widen", "widen.passes")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder: pictures to score, and a picture to restore; importable, as in a session of Python."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(base, "_PASSES", base._PASSES.apart())
    for name in ("a", "b"):
        picture(tmp_path / "pictures" / f"{name}.png", 40)
    picture(tmp_path / "noisy.png", 33)
    picture(tmp_path / "small.png", 24)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "community.pth")
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    return tmp_path


def run_all(page: list[Block]) -> dict[str, object]:
    names: dict[str, object] = {}
    for block in page:
        run_block(block, names, PAGE)
    return names


def test_every_block_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    names = run_all([block for block in blocks(PAGE) if block.note != "zoo"])
    picture = names["picture"]
    assert isinstance(picture, torch.Tensor)
    assert picture.shape == (1, 3, 80, 121)
    assert isinstance(names["large"], Image.Image)
    assert names["large"].size == (48, 48)


def test_first_example_is_ten_lines_at_most() -> None:
    first = next(block for block in blocks(PAGE) if block.language == "python" and not block.file)
    assert len([line for line in first.text.splitlines() if line.strip()]) <= 10
    assert all(step in first.text for step in ("fxptq.quantize", ".save(", "fxptq.load", ".to_integer()"))


@pytest.mark.zoo
def test_blocks_that_need_spandrel(folder: Path) -> None:
    pytest.importorskip("spandrel")
    from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact  # noqa: PLC0415  # not always there

    torch.manual_seed(0)
    torch.save(SRVGGNetCompact(num_feat=8, num_conv=2, upscale=2).state_dict(), "community.pth")
    run_all([block for block in blocks(PAGE) if block.note == "zoo"])


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("a ... d\n", "a  b\nc d\n", True),
        ("...\nb\n...\n", "a\nb\n", True),
        ("", "", True),
        ("", "a\n", False),
        ("a\n", "a b\n", False),
        ("a ... c\n", "a b\n", False),
    ],
)
def test_what_is_printed_is_compared(expected: str, printed: str, same: bool) -> None:
    assert matches(expected, printed) is same
