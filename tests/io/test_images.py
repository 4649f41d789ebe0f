"""Reading every kind of picture, refusing what is none, and the way to tensors and back."""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fxptq.errors import FxptqError, InputError
from fxptq.io.images import (
    list_images,
    read_image,
    read_picture,
    to_image,
    to_tensor,
)
from fxptq.io.picture import Picture
from fxptq.io.writing import write_picture, write_png
from tests.fuzz.pictures import png_of


def _png(path: Path, samples: np.ndarray, colour_type: int) -> Path:
    """Write a 16-bit PNG by hand: Pillow cannot write 16-bit colour."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return path


def _noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".tif"])
def test_lossless_colour_is_read_exactly(tmp_path: Path, suffix: str) -> None:
    pixels = _noise((5, 7, 3))
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), pixels)


def test_jpeg_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (9, 6), (200, 100, 50)).save(tmp_path / "a.jpg", quality=95)
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == (6, 9, 3)
    assert np.abs(image.astype(int) - (200, 100, 50)).max() <= 3


def test_grey_gives_three_equal_channels_or_one(tmp_path: Path) -> None:
    pixels = _noise((4, 6))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.stack([pixels] * 3, axis=2))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", channels=1), pixels[:, :, None])


def test_colour_as_one_channel_is_bt601_grey(tmp_path: Path) -> None:
    pixels = _noise((4, 6, 3))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    grey = read_image(tmp_path / "a.png", channels=1)
    assert grey.shape == (4, 6, 1)
    assert np.abs(grey[:, :, 0] - pixels @ np.array([0.299, 0.587, 0.114])).max() <= 0.51


def test_palette_one_bit_and_cmyk(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "p.png")
    Image.new("1", (3, 2), 1).save(tmp_path / "b.png")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "c.tif")
    assert (read_image(tmp_path / "p.png") == (10, 200, 30)).all()
    assert (read_image(tmp_path / "b.png") == 255).all()
    assert (read_image(tmp_path / "c.tif") == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "key colour"])
def test_transparency_is_composited_over_white(tmp_path: Path, kind: str) -> None:
    layer = Image.new("RGBA", (2, 1), (40, 40, 40, 255))
    layer.putpixel((1, 0), (80, 80, 80, 0))
    file = tmp_path / "a.png"
    if kind == "palette":
        paletted = layer.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
        paletted.save(file, transparency=paletted.getpixel((1, 0)))
    elif kind == "key colour":
        layer.convert("RGB").save(file, transparency=(80, 80, 80))
    else:
        layer.convert(kind).save(file)
    np.testing.assert_array_equal(read_image(file)[0], [[40] * 3, [255] * 3])


def test_half_transparent_is_half_way_to_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 100, 200, 128)).save(tmp_path / "a.png")
    expected = np.array([0, 100, 200]) * (128 / 255) + 255 * (127 / 255)
    assert np.abs(read_image(tmp_path / "a.png")[0, 0] - expected).max() <= 1


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    samples = np.array([[0, 128, 129, 257, 1000, 32768, 65406, 65535]], np.uint16)
    image = read_image(_png(tmp_path / "a.png", samples, colour_type=0), channels=1)
    np.testing.assert_array_equal(image[0, :, 0], np.round(samples[0] / 257))


def test_16_bit_grey_tiff_is_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4)], ids=["RGB", "RGBA"])
def test_16_bit_colour_is_scaled(tmp_path: Path, colour_type: int, channels: int) -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (6, 5, channels))
    samples[:, :, 3:] = 65535
    image = read_image(_png(tmp_path / "a.png", samples, colour_type))
    assert np.abs(image - samples[:, :, :3] / 257).max() < 1


def test_orientation_is_applied(tmp_path: Path) -> None:
    pixels = _noise((4, 6, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to view
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(pixels, -1))


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_samples_of_unknown_range_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (2, 2)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.tif: has .* samples"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"just some text\n", "not a picture"),
        (b"", "not a picture"),
        (None, "there is no such file"),
        (b"\x89PNG\r\n\x1a\n", "picture"),
    ],
    ids=["text", "empty", "missing", "signature only"],
)
def test_what_is_no_picture_is_named_on_one_line(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "holiday.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_image(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_a_damaged_file_never_gives_another_error(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole{suffix}"
    Image.fromarray(_noise((40, 40, 3))).save(whole)
    data = whole.read_bytes()
    file = tmp_path / f"cut{suffix}"
    for length in range(1, len(data) * 9 // 10, max(1, len(data) // 60)):
        file.write_bytes(data[:length])
        with pytest.raises(InputError, match=rf"cut\{suffix}: "):
            read_image(file)
    rng = np.random.default_rng(0)
    for _ in range(60):
        flipped = bytearray(data)
        for position in rng.integers(0, len(data), 8):
            flipped[position] = rng.integers(0, 256)
        file.write_bytes(flipped)
        with contextlib.suppress(InputError):  # a picture or this error: both are right
            assert read_image(file).shape[2] == 3


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="directory"):
        read_image(tmp_path)


def test_listing_is_sorted_and_skips_what_is_no_picture(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.jpeg", "notes.txt", "._b.png", "Thumbs.db"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in list_images(tmp_path)] == ["a.JPG", "b.png", "c.jpeg"]


@pytest.mark.parametrize(("name", "words"), [("", "holds no pictures"), ("no", "no such folder"), ("f", "is a file")])
def test_a_folder_without_pictures_is_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(InputError, match=words):
        list_images(tmp_path / name)


@pytest.mark.parametrize("value_range", [1.0, 255.0, 2.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_levels_survive_the_way_to_a_tensor_and_back(value_range: float, channels: int) -> None:
    pixels = np.arange(256 * channels).reshape(16, 16, channels).astype(np.uint8)
    tensor = to_tensor(pixels, value_range)
    assert tensor.shape == (1, channels, 16, 16)
    assert tensor.dtype == torch.float32
    assert tensor.max() == value_range
    np.testing.assert_array_equal(to_image(tensor, value_range), pixels)


def test_tensors_hold_rows_as_height() -> None:
    pixels = _noise((2, 5, 3))
    assert to_tensor(pixels)[0, 1, 1, 4] == np.float32(pixels[1, 4, 1]) / np.float32(255)


def test_outputs_are_clamped_and_rounded() -> None:
    tensor = torch.tensor([-0.2, 0.0, 0.501, 0.9999, 1.7]).reshape(1, 1, 1, 5)
    assert to_image(tensor).ravel().tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_output_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(FxptqError, match="not finite"):
        to_image(torch.full((1, 3, 2, 2), value))


def test_a_batch_is_no_picture() -> None:
    with pytest.raises(FxptqError, match=r"\(2, 3, 4, 4\)"):
        to_image(torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize("channels", [1, 3])
def test_written_pictures_read_back_equal(tmp_path: Path, channels: int) -> None:
    pixels = _noise((6, 5, channels))
    write_png(tmp_path / "new/folder/a.png", pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "new/folder/a.png", channels), pixels)
    assert [p.name for p in (tmp_path / "new/folder").iterdir()] == ["a.png"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = _noise((4, 4, 3))
    write_png(tmp_path / "a.png", old)

    def full(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"a\.png: cannot be written: No space left"):
        write_png(tmp_path / "a.png", _noise((4, 4, 3), seed=1))
    monkeypatch.undo()
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), old)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(("name", "words"), [("a.jpg", "ending in .png"), ("file/a.png", "cannot be written")])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=words):
        write_png(tmp_path / name, _noise((2, 2, 3)))


# -- all of a picture ------------------------------------------------------------------------------------------------


def _wide(channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 65536, (6, 5, channels)).astype(np.uint16)


@pytest.mark.parametrize("channels", [1, 2, 3, 4], ids=["grey", "grey and alpha", "RGB", "RGBA"])
def test_16_bits_are_read_in_full(tmp_path: Path, channels: int) -> None:
    samples = _wide(channels)
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    picture = read_picture(_png(tmp_path / "a.png", samples, colour_type), 3 if channels > 2 else 1)
    colours = 3 if channels > 2 else 1
    np.testing.assert_array_equal(picture.colour, samples[:, :, :colours])
    assert picture.white == 65535
    if channels in {2, 4}:
        np.testing.assert_array_equal(picture.alpha, samples[:, :, -1])
    else:
        assert picture.alpha is None


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_colour_tiff_and_ppm_are_read_in_full(tmp_path: Path, order: str) -> None:
    samples = _wide(3)
    (tmp_path / "a.ppm").write_bytes(b"P6\n5 6\n65535\n" + samples.astype(">u2").tobytes())
    np.testing.assert_array_equal(read_picture(tmp_path / "a.ppm").colour, samples)
    data = samples.astype(f"{order}u2").tobytes()
    entries = [(256, 5), (257, 6), (259, 1), (262, 2), (277, 3), (278, 6)]
    first = 8 + 2 + 12 * (len(entries) + 3) + 4
    fields = [(tag, 3, 1, struct.pack(f"{order}HH", value, 0)) for tag, value in entries]
    fields += [(258, 3, 3, struct.pack(f"{order}I", first)), (273, 4, 1, struct.pack(f"{order}I", first + 6))]
    fields += [(279, 4, 1, struct.pack(f"{order}I", len(data)))]
    body = b"".join(struct.pack(f"{order}HHI", tag, kind, count) + value for tag, kind, count, value in sorted(fields))
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(fields))
    (tmp_path / "a.tif").write_bytes(start + body + bytes(4) + struct.pack(f"{order}HHH", 16, 16, 16) + data)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").colour, samples)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("colour_type", [0, 2], ids=["grey", "RGB"])
def test_a_transparent_level_is_transparent_in_every_depth(tmp_path: Path, depth: int, colour_type: int) -> None:
    """What a PNG's tRNS chunk names; a level that differs in its low byte alone is another."""
    channels, step = (1, 3)[colour_type == 2], 1 if depth == 8 else 257
    samples = np.full((2, 3, channels), 40 * step)
    samples[0, 0], samples[1, 2] = 90 * step, 90 * step + (depth == 16)
    pixels = samples.astype(f">u{depth // 8}")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", 3, 2, depth, colour_type, 0, 0, 0)
    key = samples[0, 0].astype(">u2").tobytes()
    file = tmp_path / "a.png"
    file.write_bytes(png_of([(b"IHDR", header), (b"tRNS", key), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]))
    seen = read_image(file, channels)
    assert (seen[0, 0] == 255).all()
    assert (seen[1, 2] == (90 if depth == 16 else 255)).all()
    assert (seen[0, 1] == 40).all()
    picture = read_picture(file, channels)
    assert picture.alpha is not None
    assert (picture.alpha == 0).sum() == (1 if depth == 16 else 2)
    np.testing.assert_array_equal(picture.colour, samples)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("with_alpha", [False, True], ids=["opaque", "alpha"])
@pytest.mark.parametrize("channels", [1, 3])
def test_all_of_a_picture_survives_writing(tmp_path: Path, depth: type, with_alpha: bool, channels: int) -> None:
    samples = _wide(4) if depth is np.uint16 else _noise((6, 5, 4))
    written = Picture(samples[:, :, :channels], samples[:, :, 3] if with_alpha else None, b"a profile" * 9)
    write_picture(tmp_path / "a.png", written)
    read = read_picture(tmp_path / "a.png", channels)
    np.testing.assert_array_equal(read.colour, written.colour)
    assert read.colour.dtype == depth
    assert read.profile == written.profile
    assert (read.alpha is None) == (not with_alpha)
    if with_alpha:
        np.testing.assert_array_equal(read.alpha, written.alpha)
    with Image.open(tmp_path / "a.png") as opened:  # any other reader takes it
        opened.verify()


@pytest.mark.parametrize(("space", "kept"), [(b"RGB ", True), (b"GRAY", False), (b"CMYK", False)])
def test_a_profile_of_another_kind_of_colour_is_left_out(tmp_path: Path, space: bytes, kept: bool) -> None:
    profile = bytes(16) + space + bytes(16) + b"acsp" + bytes(88)
    write_picture(tmp_path / "a.png", Picture(_noise((2, 2, 3)), None, profile))
    assert read_picture(tmp_path / "a.png").profile == (profile if kept else b"")


def profile_of(space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile (version 2) of an output device, as section 6 of the specification lays it out."""
    offset, table, data = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", offset + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    illuminant = struct.pack(">iii", 63190, 65536, 54061)
    head = bytes(8) + struct.pack(">I", 0x02400000) + b"prtr" + space + pcs + bytes(12) + b"acsp" + bytes(28)
    head += illuminant + bytes(48)
    return struct.pack(">I", 128 + len(table) + len(data)) + head[4:128] + table + data


WHITE_POINT = b"XYZ " + bytes(4) + struct.pack(">iii", 63190, 65536, 54061)
GAMMA = 1.75
CURVE = b"curv" + bytes(4) + struct.pack(">IH", 1, int(GAMMA * 256))
GREY = profile_of(b"GRAY", b"XYZ ", {b"wtpt": WHITE_POINT, b"kTRC": CURVE})


def inks() -> bytes:
    """A profile of CMYK in which each ink, alone or with others, makes the paper darker and no ink is coloured."""
    ramp = bytes(range(256))
    corners = [(round(255 * (1 - corner.bit_count() / 4)), 128, 128) for corner in range(16)]
    clut = b"".join(map(bytes, corners))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    return profile_of(b"CMYK", b"Lab ", {b"wtpt": WHITE_POINT, b"A2B0": lut + ramp * 4 + clut + ramp * 3})


def in_srgb(luminance: float) -> float:
    """The level of a grey in sRGB, by IEC 61966-2-1."""
    return 255 * (12.92 * luminance if luminance <= 0.0031308 else 1.055 * luminance ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grey_picture_becomes_srgb_by_its_profile(tmp_path: Path, mode: str) -> None:
    levels = np.arange(0, 256, 5, dtype=np.uint8).reshape(4, 13)
    picture = Image.fromarray(levels).convert(mode)
    picture.save(tmp_path / "a.png", icc_profile=GREY)
    read = read_picture(tmp_path / "a.png")
    expected = [[[in_srgb((level / 255) ** GAMMA)] * 3 for level in row] for row in levels]
    np.testing.assert_allclose(read.colour, expected, atol=2)
    assert (read.profile, read.alpha is not None) == (b"", mode == "LA")
    grey = read_picture(tmp_path / "a.png", channels=1)
    np.testing.assert_array_equal(grey.colour[:, :, 0], levels)
    assert grey.profile == GREY


def test_cmyk_becomes_srgb_by_its_profile(tmp_path: Path) -> None:
    parts = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 255), (255, 255, 255, 255)]
    picture = Image.new("CMYK", (4, 1))
    picture.putdata(parts)
    picture.save(tmp_path / "a.tif", icc_profile=inks())
    read = read_picture(tmp_path / "a.tif")
    assert read.profile == b""
    lightness = [100, 75, 50, 0]  # of CIE 1976: Y = ((L + 16) / 116)^3 above 8
    expected = [[in_srgb(((each + 16) / 116) ** 3 if each > 8 else 0.0)] * 3 for each in lightness]
    np.testing.assert_allclose(read.colour[0], expected, atol=3)


def test_a_profile_that_cannot_be_used_is_said_to_be_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damaged = GREY[:140] + bytes(len(GREY) - 140)
    Image.fromarray(_noise((4, 4, 1))[:, :, 0]).save(tmp_path / "a.png", icc_profile=damaged)
    read = read_picture(tmp_path / "a.png")
    assert not caplog.messages
    write_picture(tmp_path / "b.png", read)
    what = "the colour profile of its original is for GRAY; a picture in RGB is written without"
    assert caplog.messages == [f"{tmp_path / 'b.png'}: {what}"]


def test_levels_are_on_one_scale_whatever_the_depth() -> None:
    assert Picture(np.array([[[65535, 257, 0]]], np.uint16)).levels.tolist() == [[[255.0, 1.0, 0.0]]]
    assert Picture(np.array([[[255, 1, 0]]], np.uint8)).levels.tolist() == [[[255.0, 1.0, 0.0]]]


def test_a_picture_that_is_a_program_is_none(tmp_path: Path) -> None:
    """PostScript is drawn by another program, which Pillow would call."""
    words = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(never) print\n%%EOF\n"
    (tmp_path / "a.png").write_text(words)
    with pytest.raises(InputError, match="not a picture in a format that can be read"):
        read_image(tmp_path / "a.png")


def test_a_size_that_the_file_cannot_hold_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 13000, 13000, 8, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(png_of([(b"IHDR", header), (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b"")]))
    with pytest.raises(InputError, match=r"claims to be of 13000x13000 pixels, and the file has \d+ bytes"):
        read_image(tmp_path / "a.png")
