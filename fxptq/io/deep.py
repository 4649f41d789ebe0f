"""Pictures of 16 bits a sample, which Pillow shows in 8 where they have colour: decoded and encoded in full.

A decoder of Pillow's that keeps the high byte of each sample keeps the low one when it is told the other byte order;
two readings together are the sample.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps

Samples = npt.NDArray[np.uint16]

WHITE = 65535
_OTHER_ORDER = {"16B": "16L", "16L": "16B", "16N": "16B" if np.little_endian else "16L"}
_METRE = 0.0254  # of an inch
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # of a PNG, by the number of channels


@dataclass(frozen=True)
class Deep:
    """A picture of 16 bits a sample.

    Attributes:
        colour: `[H, W, 1]` or `[H, W, 3]`.
        alpha: `[H, W]`, 65535 where nothing shows through; None for a picture without transparency.
    """

    colour: Samples
    alpha: Samples | None = None


def decode(reopen: Callable[[], ImageFile.ImageFile]) -> Deep | None:
    """The samples of a picture of 16 bits, upright; None for a picture of any other depth.

    Args:
        reopen: opens the picture, anew at each call.
    """
    with reopen() as opened:
        transparent = opened.info.get("transparency")
        rawmode = _rawmode(opened)
        if opened.mode.startswith("I;16") or (opened.format in {"PNG", "PPM"} and opened.mode == "I"):
            samples = np.clip(np.asarray(_upright(opened)), 0, WHITE).astype(np.uint16)[:, :, None]
        elif opened.format == "PPM" and isinstance(opened.tile[0].args, tuple) and opened.tile[0].args[-1] == WHITE:
            samples = _two_readings(opened, reopen, "raw", ("RGB;16B", 0, 1), ("RGB;16L", 0, 1))
        elif rawmode == "LA;16B":
            bytes_of = np.asarray(_upright(_told(opened, "RGBA"))).astype(np.uint16)
            samples = bytes_of[:, :, ::2] << 8 | bytes_of[:, :, 1::2]
        elif rawmode in {"RGB;16B", "RGB;16L", "RGB;16N", "RGBA;16B", "RGBA;16L", "RGBA;16N"}:
            name, _, order = rawmode.partition(";")
            samples = _two_readings(opened, reopen, None, rawmode, f"{name};{_OTHER_ORDER[order]}")
        else:
            return None
    if samples.shape[2] in {2, 4}:
        return Deep(samples[:, :, :-1], samples[:, :, -1])
    if transparent is not None and opened.format == "PNG":
        opaque = (samples != np.array(transparent, np.int64)).any(axis=2)
        return Deep(samples, np.where(opaque, np.uint16(WHITE), np.uint16(0)))
    return Deep(samples)


def encode_png(
    colour: Samples,
    alpha: Samples | None = None,
    profile: bytes = b"",
    exif: bytes = b"",
    dpi: tuple[float, float] | None = None,
) -> bytes:
    """A PNG of 16 bits a sample.

    Args:
        colour: `[H, W, 1]` or `[H, W, 3]`, values up to 65535.
        alpha: `[H, W]`, None for none.
        profile: an ICC profile, empty for none.
        exif: EXIF, with or without its prefix of six bytes; empty for none.
        dpi: dots per inch, None for unknown.
    """
    samples = colour if alpha is None else np.concatenate([colour, alpha[:, :, None]], axis=2)
    height, width, channels = samples.shape
    rows = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    above = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    filtered = np.hstack([np.full((height, 1), 2, np.uint8), rows - above])  # filter 2: the difference from above
    header = struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes())), (b"IEND", b"")]
    if exif:
        chunks.insert(1, (b"eXIf", exif.removeprefix(b"Exif\0\0")))
    if dpi is not None:
        chunks.insert(1, (b"pHYs", struct.pack(">IIB", *(round(dots / _METRE) for dots in dpi), 1)))
    if profile:
        chunks.insert(1, (b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def _two_readings(
    opened: ImageFile.ImageFile, reopen: Callable[[], ImageFile.ImageFile], codec: str | None, high: Any, low: Any
) -> Samples:
    first = np.asarray(_upright(_told(opened, high, codec))).astype(np.uint16)
    with reopen() as again:
        second = np.asarray(_upright(_told(again, low, codec)))
    samples: Samples = first << 8 | second
    return samples


def _told(opened: ImageFile.ImageFile, args: Any, codec: str | None = None) -> ImageFile.ImageFile:
    """The picture with its decoder told another layout: `args` themselves, or in place of the raw mode among them."""
    opened.tile = [
        tile._replace(
            codec_name=codec or tile.codec_name,
            args=(args, *tile.args[1:]) if codec is None and isinstance(tile.args, tuple) else args,
        )
        for tile in opened.tile
    ]
    return opened


def _rawmode(opened: ImageFile.ImageFile) -> str:
    """What the decoder is told of the layout, where that is the same everywhere in the picture."""
    modes = {tile.args[0] if isinstance(tile.args, tuple) else tile.args for tile in opened.tile}
    return str(modes.pop()) if len(modes) == 1 else ""


def _upright(opened: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(opened)
