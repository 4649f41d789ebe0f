"""`fxptq upscale` from every format to every format, for every kind of picture: what each may and may not change.

The network copies pixels (nearest neighbour, twice as large), so that each expected sample is known.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin
from PIL.ExifTags import IFD, Base
from torch import Tensor, nn

from fxptq.commands.pictures import Job
from fxptq.commands.restorer import Restorer, Settings
from fxptq.data.resize import imresize
from fxptq.evaluate.tiling import TiledRun, Tiling
from fxptq.formats import PictureFormat
from fxptq.io import deep
from fxptq.io.images import decode_picture, read_picture
from tests.io.test_images import profile_of

HEIGHT, WIDTH = 20, 26
MODES = ("L", "LA", "RGB", "RGBA", "I;16", "RGB;16")
ENDINGS = ("png", "jpg", "webp", "tif")
CAMERA, EXPOSED, AUTHOR = "A camera", (1, 250), "Ångström"
SRGB = profile_of(b"RGB ", b"XYZ ", {})
GREY = profile_of(b"GRAY", b"XYZ ", {})


class Doubled(nn.Module):
    """Each pixel becomes four."""

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def doubled(samples: np.ndarray) -> np.ndarray:
    return samples.repeat(2, 0).repeat(2, 1)


def restorer(monkeypatch: pytest.MonkeyPatch, channels: int = 3, **settings: object) -> Restorer:
    """The command's own code around the network that copies pixels."""
    made = Restorer.__new__(Restorer)
    pictures = PictureFormat(channels=channels, scale=2)
    made._settings = Settings(Path("x.safetensors"), **settings)  # type: ignore[arg-type]
    made._model, made._pictures = Doubled(), pictures
    made._run = TiledRun(Doubled(), pictures, Tiling(), torch.device("cpu"))
    return made


def samples_of(mode: str) -> np.ndarray:
    """Smooth samples [H, W, C], which JPEG keeps nearly as they are; transparency has a gradient of its own."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    planes = [x / WIDTH, y / HEIGHT, (x + y) / (HEIGHT + WIDTH)]
    count = 1 if mode in {"L", "LA", "I;16"} else 3
    planes = planes[:count] + ([0.2 + 0.7 * y / HEIGHT] if mode.endswith("A") else [])
    white = 65535 if "16" in mode else 255
    return np.round(np.stack(planes, axis=2) * 0.9 * white).astype(np.uint16 if "16" in mode else np.uint8)


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags[Base.Model], tags[Base.Orientation], tags[Base.Artist] = CAMERA, 1, AUTHOR.encode()  # in UTF-8
    tags[IFD.Exif] = {Base.ExposureTime: TiffImagePlugin.IFDRational(*EXPOSED), Base.ExifImageWidth: WIDTH}
    tags[IFD.GPSInfo] = {1: "N"}
    return tags


def write(path: Path, mode: str, ending: str) -> None:
    """Writes a picture without fxptq, but for TIFF in 16-bit colour, which is written by hand."""
    samples, profile = samples_of(mode), GREY if mode in {"L", "LA", "I;16"} else SRGB
    if mode == "RGB;16" and ending == "png":
        header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
        metre = struct.pack(">IIB", round(300 / 0.0254), round(150 / 0.0254), 1)
        chunks = [(b"IHDR", header), (b"iCCP", b"x\0\0" + zlib.compress(profile)), (b"pHYs", metre)]
        chunks += [(b"eXIf", exif().tobytes()[6:]), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
        )
        return
    if mode == "RGB;16":
        ifd = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\0\0\0\0")
        for tag, value in exif().items():
            ifd[tag] = value
        fields = {256: WIDTH, 257: HEIGHT, 258: (16, 16, 16), 259: 1, 262: 2, 277: 3, 278: HEIGHT, 282: 300.0}
        for tag, value in {**fields, 283: 150.0, 296: 2, 273: 0, 279: samples.nbytes}.items():
            ifd[tag] = value
        ifd.tagtype[34675], ifd[34675] = 7, profile
        with path.open("wb") as file:
            ifd.save(file)
            file.write(samples.astype("<u2").tobytes())
        return
    image = Image.fromarray(samples[:, :, 0] if samples.shape[2] == 1 else samples)
    options = {"lossless": True, "exact": True} if ending == "webp" else {"quality": 98} if ending == "jpg" else {}
    tags = exif()
    if ending == "webp":  # which has no field for the resolution
        tags[Base.XResolution], tags[Base.YResolution], tags[Base.ResolutionUnit] = 300.0, 150.0, 2
    image.save(path, exif=tags.tobytes(), icc_profile=profile, dpi=(300, 150), **options)  # type: ignore[arg-type]


def holds(ending: str, mode: str) -> bool:
    """Whether a format can hold a kind of picture as it is."""
    return {"jpg": mode in {"L", "RGB"}, "webp": "16" not in mode}.get(ending, True)


CASES = [(source, mode) for source in ENDINGS for mode in MODES if holds(source, mode)]


@pytest.mark.parametrize("out", ENDINGS)
@pytest.mark.parametrize(("source", "mode"), CASES)
def test_every_format_and_mode(
    source: str, mode: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read, written = tmp_path / f"in.{source}", tmp_path / f"out.{out}"
    write(read, mode, source)
    written.write_bytes(restorer(monkeypatch).content(Job(read, written)))
    with Image.open(read) as opened:
        author = opened.getexif()[Base.Artist]
        assert author.encode("latin-1").decode() == AUTHOR or source == "tif"  # for which Pillow writes ASCII alone

    with Image.open(written) as opened:
        opened.load()
        bands, size, tags = opened.getbands(), opened.size, opened.getexif()
        assert tags.get(Base.Model) == CAMERA
        assert Base.Orientation not in tags
        assert tags.get(Base.Artist) == author
        camera = tags.get_ifd(IFD.Exif)
        assert float(camera[Base.ExposureTime]) == pytest.approx(EXPOSED[0] / EXPOSED[1])
        assert camera[Base.ExifImageWidth] == 2 * WIDTH
        assert tags.get_ifd(IFD.GPSInfo)[1] == "N"
        dots = opened.info.get("dpi") or (tags.get(Base.XResolution), tags.get(Base.YResolution))
        profile = opened.info.get("icc_profile")
    assert tuple(map(float, dots)) == pytest.approx((300, 150), abs=0.5)
    assert size == (2 * WIDTH, 2 * HEIGHT)

    grey, wide = mode in {"L", "LA", "I;16"}, "16" in mode and out in {"png", "tif"}
    made, samples = read_picture(written, None), samples_of(mode)
    assert made.colour.shape[2] == (1 if grey else 3)
    assert made.white == (65535 if wide else 255)
    assert len(bands) == {"jpg": 1 if grey else 3, "webp": 4 if mode.endswith("A") else 3}.get(out, len(bands))
    assert profile == (None if grey and out == "webp" else GREY if grey else SRGB)

    colour = samples[:, :, : 1 if grey else 3].astype(np.float64)
    if mode.endswith("A"):
        bicubic = imresize(samples[:, :, -1].astype(np.float64), 2).round().clip(0, 255)
        if out == "jpg":
            assert made.alpha is None
        else:
            assert made.alpha is not None
            assert np.array_equal(made.alpha, bicubic)
    else:
        assert made.alpha is None
    expected = doubled(colour) * (257 if wide and "16" not in mode else 1) / (257 if "16" in mode and not wide else 1)
    if mode.endswith("A") and out == "jpg":  # laid over white
        share = bicubic[:, :, None] / 255
        expected = expected * share + 255 * (1 - share)
    lossy = "jpg" in {source, out}
    tolerance = 12 if lossy else 0.51 if "16" in mode and not wide else 0
    assert np.abs(made.colour - expected).max() <= tolerance

    said = [message.partition(": ")[2] for message in caplog.messages]
    losses = {
        "16 bits a sample become 8": "16" in mode and not wide,
        "transparency is laid over white": mode.endswith("A") and out == "jpg",
        "the colour profile of its original is for GRAY": grey and out == "webp",
    }
    assert len(said) == sum(losses.values())
    assert all(any(message.startswith(words) for message in said) for words, lost in losses.items() if lost)


@pytest.mark.parametrize("alpha", [False, True], ids=["opaque", "alpha"])
@pytest.mark.parametrize("grey", [False, True], ids=["RGB", "grey"])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bits_with_transparency(ending: str, grey: bool, alpha: bool, tmp_path: Path, monkeypatch: object) -> None:
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 65536, (9, 7, 1 if grey else 3)).astype(np.uint16)
    shown = rng.integers(0, 65536, (9, 7)).astype(np.uint16) if alpha else None
    (tmp_path / "in.png").write_bytes(deep.encode_png(colour, shown))
    target = tmp_path / f"out.{ending}"
    target.write_bytes(restorer(monkeypatch).content(Job(tmp_path / "in.png", target)))  # type: ignore[arg-type]
    made = read_picture(target, 1 if grey and ending == "png" else 3)
    assert made.white == 65535
    assert np.array_equal(made.colour, np.broadcast_to(doubled(colour), made.colour.shape))
    if shown is None:
        assert made.alpha is None
    else:
        assert np.array_equal(made.alpha, imresize(shown.astype(np.float64), 2).round().clip(0, 65535))


def test_transparency_through_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in.png", "RGBA", "png")
    made = restorer(monkeypatch, alpha="network").restored(read_picture(tmp_path / "in.png", None))
    assert np.array_equal(made.alpha, doubled(samples_of("RGBA")[:, :, 3]))


def test_a_network_of_grey_gives_grey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in.png", "RGB", "png")
    made = decode_picture(
        restorer(monkeypatch, channels=1).content(Job(tmp_path / "in.png", tmp_path / "out.png")), "x", None
    )
    assert made.colour.shape == (2 * HEIGHT, 2 * WIDTH, 1)


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_quality_is_the_callers(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "in.png")
    job = Job(tmp_path / "in.png", tmp_path / f"out.{ending}")
    contents = [restorer(monkeypatch, quality=quality).content(job) for quality in (10, 90, None)]
    losses = [np.abs(decode_picture(content, "x").colour - doubled(noise).astype(int)).mean() for content in contents]
    assert losses == sorted(set(losses), reverse=True)


def test_a_picture_too_large_for_its_format_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (8200, 2)).save(tmp_path / "in.png")
    made = restorer(monkeypatch)
    made._run = lambda *_: pytest.fail("the work has begun")  # type: ignore[assignment]
    with pytest.raises(Exception, match="would be 16400x4, and WebP holds 16383 pixels a side at most"):
        made.content(Job(tmp_path / "in.png", tmp_path / "out.webp"))
