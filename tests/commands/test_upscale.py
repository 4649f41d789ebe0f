"""`fxptq upscale`: pictures of every kind and size come out `scale` times as large; none is overwritten."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import fxptq
from fxptq.commands import upscale as command
from fxptq.commands.pictures import Existing
from fxptq.commands.restorer import Settings, chosen
from fxptq.data.resize import imresize
from fxptq.io.files import write_bytes
from fxptq.io.images import read_picture, to_image, to_tensor
from fxptq.io.picture import Picture
from fxptq.io.writing import write_picture
from fxptq.kernels.backend import Installed
from fxptq.kernels.lower import IntegerModel
from fxptq.progress import Silent
from tests.tiny import Ran, environment, inputs, picture, run, settings, spawn, swinir, write_checkpoint


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: tiny.safetensors and mod.py."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path)
    return tmp_path


def upscale(*args: object) -> Ran:
    """In the simulation, which needs no kernels."""
    return run("upscale", "tiny.safetensors", *args, "--model", "mod:tiny", "--simulated")


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
            output = q(to_tensor(colour))
        grey = levels.ndim == 2
        expected = to_image(output.mean(1, keepdim=True) if grey else output)
        made = read_picture(Path(f"new/out/{name}"), None)
        assert made.colour.shape == (32, 32, 1 if grey else 3)
        assert np.abs(made.levels - expected).max() <= (0.5 if name == "I;16.png" else 0), name
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
        ("ok.png", "out.bmp", "out.bmp: pictures are written as .png"),
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


# -- folders ---------------------------------------------------------------------------------------------------------


def test_folders_below_are_restored_too_but_not_the_target(folder: Path) -> None:
    for name in ("in/a.png", "in/deep/er/b.jpg", "in/.hidden/c.png"):
        picture(folder / name, 9)
    for _ in range(2):  # what the first run has written into in/out is no picture to restore
        ran = upscale("in", "in/out", "--suffix", "_x2", "--ext", "webp", "--overwrite")
        assert (ran.status, ran.out.splitlines()) == (0, ["in/out/a_x2.webp", "in/out/deep/er/b_x2.webp"])
    ran = upscale("in", "in", "--suffix", "_x2", "--ext", "same")
    assert ran.out.splitlines()[0] == "in/a_x2.png"
    again = upscale("in/deep", "in/deep", "--suffix", "_x2", "--ext", "same", "--skip-existing")
    assert (again.status, again.out) == (0, "")
    assert sorted(path.name for path in (folder / "in/deep/er").iterdir()) == ["b.jpg", "b_x2.jpg"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_one_damaged_file_is_reported_and_the_rest_is_done(jobs: int, folder: Path) -> None:
    for name in ("a.png", "c.png"):
        picture(folder / "in" / name, 9)
    (folder / "in" / "b.png").write_text("not a picture")
    ran = spawn(["upscale", "tiny.safetensors", "in", "out", "--model", "mod:tiny", "--jobs", jobs], folder)
    assert (ran.status, ran.out.splitlines()) == (1, ["out/a.png", "out/c.png"])
    assert ran.err.splitlines() == [
        "fxptq: in/b.png: not a picture in a format that can be read (PNG, JPEG, BMP, TIFF, WebP, ...)",
        "fxptq: 1 of 3 pictures could not be restored; the others are written",
    ]
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.png", "c.png"]


def test_existing_files_stay_unless_the_caller_says_so(folder: Path) -> None:
    for name in "ab":
        picture(folder / "in" / f"{name}.png", 9)
    (folder / "out").mkdir()
    (folder / "out" / "a.png").write_text("mine")
    ran = upscale("in", "out")
    assert (ran.status, ran.out) == (2, "")
    assert ran.line.startswith("out: 1 of 2 pictures exist already; give --skip-existing to keep it, or --overwrite")
    assert upscale("in/a.png", "out/a.png").line.startswith("out/a.png: exists already; give --skip-existing")
    assert upscale("in", "out", "--skip-existing", "--overwrite").status == 2
    ran = upscale("in", "out", "--skip-existing")
    assert (ran.status, ran.out) == (0, "out/b.png\n")
    assert ran.line == "1 picture existed already (--overwrite writes them anew)"
    assert (folder / "out" / "a.png").read_text() == "mine"
    assert upscale("in", "out", "--overwrite").status == 0
    assert read("out/a.png").shape == (18, 18, 3)


def test_processes_give_the_same_files(folder: Path) -> None:
    for index in range(3):
        picture(folder / "in" / f"{index}.png", 9 + index)
    ran = spawn(["upscale", "tiny.safetensors", "in", "two", "--model", "mod:tiny", "--simulated", "--jobs", 2], folder)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines() == [f"two/{index}.png" for index in range(3)]
    assert upscale("in", "one").status == 0
    for index in range(3):
        assert (folder / f"one/{index}.png").read_bytes() == (folder / f"two/{index}.png").read_bytes()


def test_a_run_that_was_interrupted_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(3):
        picture(folder / "in" / f"{index}.png", 9 + index)
    settings = Settings(folder / "tiny.safetensors", "mod:tiny", computation="simulated")
    command.run(Path("in"), Path("whole"), settings, Silent())
    written: list[Path] = []

    def interrupted(path: Path, content: bytes) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write_bytes(path, content)

    monkeypatch.setattr("fxptq.commands.upscale.write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command.run(Path("in"), Path("out"), settings, Silent())
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    done = command.run(Path("in"), Path("out"), replace(settings, existing=Existing(skip=True)), Silent())
    assert (done.skipped, done.written) == (tuple(written), (Path("out/2.png"),))
    for index in range(3):
        assert (folder / f"out/{index}.png").read_bytes() == (folder / f"whole/{index}.png").read_bytes()


def test_a_killed_process_is_one_line(folder: Path) -> None:
    for index in range(3):
        picture(folder / "in" / f"{index}.png", 9)
    (folder / "dies.py").write_text(
        "import multiprocessing, os\nfrom mod import tiny as real\n"
        "def tiny():\n    return os._exit(9) if multiprocessing.parent_process() else real()\n"
    )
    ran = spawn(["upscale", "tiny.safetensors", "in", "out", "--model", "dies:tiny", "--jobs", 2], folder)
    assert (ran.status, ran.out) == (1, "")
    assert ran.line.startswith("a process was killed, perhaps because memory has ended: give fewer than 2 --jobs")


def test_standard_streams(folder: Path) -> None:
    source = picture(folder / "in.png", 9)
    assert upscale("in.png", "out.jpg").status == 0
    command = [
        sys.executable,
        "-m",
        "fxptq",
        "upscale",
        "tiny.safetensors",
        "-",
        "-",
        "--model",
        "mod:tiny",
        "--simulated",
    ]
    ran = subprocess.run(  # noqa: S603  # our own
        [*command, "--ext", "jpg"],
        input=source.read_bytes(),
        cwd=folder,
        env=environment(),
        capture_output=True,
        check=True,
    )
    assert ran.stdout == (folder / "out.jpg").read_bytes()
    assert ran.stderr == b""
    bad = subprocess.run(  # noqa: S603  # likewise
        command, input=b"no picture", cwd=folder, env=environment(), capture_output=True, check=False
    )
    assert (bad.returncode, bad.stdout) == (2, b"")
    assert bad.stderr.startswith(b"fxptq: standard input: not a picture in a format that can be read")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["in.png", "out.png", "--ext", "jpg"], "--ext jpg: OUT out.png is a PNG by its name; give one of the two"),
        (["in.png", "out.png", "--ext", "gif"], "--ext 'gif': expected png, jpg, jpeg, webp, tif, tiff, or same"),
        (["in.png", "out.png", "--suffix", "_x2"], "--suffix '_x2': OUT is a folder then; out.png names the file"),
        (["folder", "out", "--suffix", "a/b"], "--suffix 'a/b': expected a part of a file name"),
        (["folder", "-"], "OUT -: folder is a folder, so OUT must be a folder too"),
        (["in.png", "out.png", "--quality", "0"], "--quality 0: expected a number from 1 to 100"),
        (["in.png", "out.png", "--jobs", "0"], "--jobs 0: expected the number of processes, 1 or more"),
        (["in.png", "out.png", "--alpha", "x"], "--alpha 'x': expected bicubic or network"),
        (["in.png", "out.png", "--tile", "big"], "--tile big: expected 0 for the whole picture, a size in pixels, or"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unfit_options(args: list[str], message: str, folder: Path) -> None:
    picture(folder / "in.png", 9)
    picture(folder / "folder" / "a.png", 9)
    ran = upscale(*args)
    assert (ran.status, ran.out) == (2, "")
    assert ran.line.startswith(message)
    assert not (folder / "out.png").exists()


@pytest.mark.parametrize("kernels", ["fast", "slow", "none"])
def test_integers_where_they_are_faster(kernels: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    q = fxptq.load("tiny.safetensors", swinir(1))
    monkeypatch.setattr("fxptq.kernels.lower.gains_on_simulation", lambda *_: kernels == "fast")
    installed = Installed("torch" if kernels == "none" else "generic")
    backend = SimpleNamespace(install=lambda: installed)
    monkeypatch.setattr("fxptq.commands.restorer.backend_for", lambda _: backend)
    model = chosen(q, "auto", torch.device("cpu"))
    if kernels == "fast" and not q.to_integer(compile=False, compare=False).backend.install().native:
        pytest.skip("needs a C++ compiler")
    assert isinstance(model, IntegerModel) == (kernels == "fast")
    assert chosen(q, "simulated", torch.device("cpu")) is q
    assert isinstance(chosen(q, "integer", torch.device("cpu")), IntegerModel)


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
