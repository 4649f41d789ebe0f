"""`fxptq upscale`: pictures of every kind and size come out `scale` times as large; none is overwritten."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import fxptq
from fxptq.data.resize import imresize
from fxptq.io.images import Picture, read_picture, to_image, to_tensor, write_picture
from tests.tiny import Ran, inputs, picture, run, settings, swinir, write_checkpoint


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: tiny.safetensors and mod.py."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path)
    return tmp_path


def upscale(*args: object) -> Ran:
    return run("upscale", "tiny.safetensors", *args, "--model", "mod:tiny")


def read(path: str) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.array(image)


def test_every_kind_and_size_of_picture(folder: Path) -> None:
    kinds = {f"{mode}.png": picture(folder / "in" / f"{mode}.png", 16, mode) for mode in ("L", "RGB", "RGBA", "I;16")}
    sizes = [(1, 1), (5, 3), (17, 9), (8, 40)]
    for height, width in sizes:
        Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(f"in/{height}x{width}.png")
    ran = upscale("in", "new/out")
    assert (ran.status, ran.err) == (0, "")
    assert len(ran.out.splitlines()) == len(kinds) + len(sizes)
    q = fxptq.load("tiny.safetensors", swinir(1))
    for name, source in kinds.items():
        with Image.open(source) as image:
            levels = np.asarray(image).astype(np.float32)
        levels = levels / np.float32(257) if name == "I;16.png" else levels
        colour = np.repeat(levels[:, :, None], 3, axis=2) if levels.ndim == 2 else levels[:, :, :3]
        with torch.no_grad():
            expected = to_image(q(to_tensor(colour)))
        assert np.array_equal(read_picture(Path(f"new/out/{name}")).levels.round(), expected), name
    for height, width in sizes:
        assert read(f"new/out/{height}x{width}.png").shape == (2 * height, 2 * width, 3)


def test_tiles_agree_with_the_whole_away_from_seams(folder: Path) -> None:
    picture(folder / "in.png", 96)
    assert upscale("in.png", "whole.png").status == 0
    ran = upscale("in.png", "tiled.png", "--tile", 64)
    assert (ran.status, ran.err) == (0, "")
    whole, tiled = (read(name).astype(int) for name in ("whole.png", "tiled.png"))
    assert tiled.shape == whole.shape == (192, 192, 3)
    apart = abs(whole - tiled)
    # Two tiles, 0..64 and 32..96, are cut at 48. Four attentions reach at most 8 pixels each, five convolutions 1 each.
    reach = 4 * 8 + 5
    inside = np.r_[0 : 2 * (64 - reach), 2 * (32 + reach) : 2 * 96]
    assert apart[np.ix_(inside, inside)].max() == 0
    assert apart.max() <= 8


@pytest.mark.parametrize(("tile", "message"), [(-1, "--tile -1: expected 0"), (16, "leaves nothing; give 40 or more")])
def test_unfit_tile(tile: int, message: str, folder: Path) -> None:
    picture(folder / "in.png", 48)
    ran = upscale("in.png", "out.png", "--tile", tile)
    assert ran.status == 2
    assert message in ran.line


def test_folder_of_pictures(folder: Path) -> None:
    for name in ("a.png", "b.jpg", "c.bmp"):
        picture(folder / "in" / name, 9)
    (folder / "in" / "notes.txt").touch()
    ran = upscale("in", "out/v1.0")
    assert (ran.status, ran.out.splitlines()) == (0, [f"out/v1.0/{name}.png" for name in "abc"])
    assert read("out/v1.0/b.png").shape == (18, 18, 3)


def test_picture_into_a_folder(folder: Path) -> None:
    picture(folder / "in.jpg", 9)
    (folder / "out").mkdir()
    assert upscale("in.jpg", "out").out == "out/in.png\n"


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("missing.png", "out.png", "missing.png: there is no such file"),
        ("text.png", "out.png", "text.png: not a picture in a format that can be read"),
        ("ok.png", "out.jpg", "out.jpg: pictures are written as .png"),
        ("ok.png", "out", "out: pictures are written as .png"),
        ("ok.png", "ok.png", "ok.png: would overwrite the picture it is made from; give another OUT"),
        ("ok.png", ".", "ok.png: would overwrite the picture it is made from; give another OUT"),
        ("ok.png", "text.png/out.png", "text.png/out.png: cannot be written: "),
        ("pictures", "out.png", "out.png: pictures is a folder, so OUT must be a folder too"),
        ("pictures", "text.png", "text.png: pictures is a folder, so OUT must be a folder too"),
        ("pictures", "out", "pictures: p.jpg and p.png would both become p.png"),
        ("empty", "out", "empty: holds no pictures; expected files named"),
    ],
)
def test_unfit_paths(source: str, target: str, message: str, folder: Path) -> None:
    picture(folder / "ok.png", 9)
    (folder / "text.png").write_text("not a picture")
    for name in ("p.png", "p.jpg"):
        picture(folder / "pictures" / name, 9)
    (folder / "empty").mkdir()
    before = sorted(folder.rglob("*"))
    ran = upscale(source, target)
    assert (ran.status, ran.out) == (2, "")
    assert ran.line.startswith(message)
    assert [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts] == before


def test_network_that_fails_on_a_size_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "even.py").write_text(
        "import torch\nfrom torch import nn\ndef net():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 12, 3, padding=1), nn.PixelShuffle(2))\n"
    )
    monkeypatch.syspath_prepend(folder)
    q = fxptq.quantize(import_module("even").net(), inputs(1), fxptq.Bits(4, 4), inputs(), settings())
    q.save("even.safetensors")
    picture(folder / "odd.png", 9)
    ran = run("upscale", "even.safetensors", "odd.png", "out.png", "--model", "even:net")
    assert (ran.status, ran.out) == (1, "")
    assert "(1, 3, 9, 9)" in ran.line


def test_what_a_picture_has_beside_its_colours_is_kept(folder: Path) -> None:
    """Depth, transparency and colour profile; the colours are those of the picture without transparency."""
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 65536, (9, 12, 4)).astype(np.uint16)
    profile = b"a profile" * 20
    write_picture(folder / "in" / "deep.png", Picture(deep[:, :, :3], deep[:, :, 3], profile))
    write_picture(folder / "in" / "opaque.png", Picture(deep[:, :, :3]))
    flat = (deep >> 8).astype(np.uint8)
    write_picture(folder / "in" / "flat.png", Picture(flat[:, :, :3], np.full((9, 12), 70, np.uint8), profile))
    assert upscale("in", "out").status == 0
    made, opaque, flat_made = (read_picture(Path(f"out/{name}.png")) for name in ("deep", "opaque", "flat"))
    assert (made.white, opaque.white, flat_made.white) == (65535, 65535, 255)
    assert (made.profile, opaque.profile, flat_made.profile) == (profile, b"", profile)
    assert np.array_equal(made.colour, opaque.colour)
    assert len(np.unique(made.colour % 257)) > 200  # not 8 bits, widened
    assert opaque.alpha is None
    assert (flat_made.alpha == 70).all()
    expected = np.clip(imresize(deep[:, :, 3].astype(np.float64), 2), 0, 65535).round()
    assert np.array_equal(made.alpha, expected)


@pytest.mark.parametrize("target", ["in/b.png", "link.png", "tiny.png"])
def test_nothing_that_is_read_is_written_over(target: str, folder: Path) -> None:
    for name in "ab":
        picture(folder / "in" / f"{name}.png", 9)
    (folder / "link.png").symlink_to("in/a.png")
    (folder / "tiny.safetensors").rename("tiny.png")
    (folder / "tiny.safetensors").symlink_to("tiny.png")
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    (folder / "all").mkdir()
    (folder / "all" / "x.png").symlink_to("../in/b.png" if target == "in/b.png" else "../in/a.png")
    source, place = ("all", "in") if target == "in/b.png" else ("in/a.png", target)
    if target == "in/b.png":  # what is read as x.png is in/b.png, and so is what would be written of b.png
        (folder / "all" / "b.png").symlink_to("../in/a.png")
    ran = upscale(source, place)
    assert ran.status == 2
    assert "would overwrite" in ran.line
    assert {path: path.read_bytes() for path in before} == before
