"""Pictures written as PNG, JPEG, WebP or TIFF, with depth, transparency and metadata as far as the format has them.

Promises: a file is written whole or not at all; a warning that names the file says what the format cannot hold.
"""

from __future__ import annotations

import io
import logging
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fxptq.errors import InputError
from fxptq.io import deep
from fxptq.io.exif import of_size
from fxptq.io.files import write_bytes
from fxptq.io.picture import Picture, Samples, describes
from fxptq.io.tiff import encode_tiff

_log = logging.getLogger("fxptq")

_JPEG_EXIF = 65533 - 6  # bytes that one segment of a JPEG holds
_EXIF_LOST = "its EXIF cannot be written and is left out"
JPEG_QUALITY = 95
"""Of JPEGs where nobody asks for another; WebP is lossless then."""


@dataclass(frozen=True)
class Format:
    """A format that pictures are written in.

    Attributes:
        name: what Pillow and people call it.
        suffixes: what names of files end in; the first for new names.
        side: the largest height and width.
        depth: most bits a sample.
        alpha: whether it holds transparency.
        grey: whether it holds grey as one channel.
        veiled_grey: whether it holds grey of 16 bits with transparency so that others can read it.
        resolution: whether it has a field for dots per inch; else EXIF holds them.
    """

    name: str
    suffixes: tuple[str, ...]
    side: int
    depth: int = 16
    alpha: bool = True
    grey: bool = True
    veiled_grey: bool = True
    resolution: bool = True


FORMATS = (
    Format("PNG", (".png",), 2**31 - 1),
    Format("JPEG", (".jpg", ".jpeg"), 65500, depth=8, alpha=False),
    Format("WebP", (".webp",), 16383, depth=8, grey=False, resolution=False),
    Format("TIFF", (".tif", ".tiff"), 2**31 - 1, veiled_grey=False),  # Pillow cannot read it
)
"""The formats, one row each."""

WRITTEN = tuple(suffix for row in FORMATS for suffix in row.suffixes)
"""What names of written pictures may end in."""


def format_of(suffix: str) -> Format | None:
    """The format of names that end in `suffix`, with or without its dot, in small letters or capitals."""
    wanted = "." + suffix.lower().removeprefix(".")
    return next((row for row in FORMATS if wanted in row.suffixes), None)


def check_size(path: str | Path, written: Format, height: int, width: int) -> None:
    """Refuses a picture that is too large for its format.

    Raises:
        InputError: a side is too long.
    """
    if max(height, width) > written.side:
        raise InputError(
            f"{path}: would be {width}x{height}, and {written.name} holds {written.side} pixels a side at most; "
            "write it as PNG or TIFF"
        )


def write_png(path: Path, image: npt.NDArray[np.uint8]) -> None:
    """Write `[H, W, 3]` or `[H, W, 1]` uint8 as PNG, whole or not at all; folders are made as needed.

    Raises:
        InputError: the name does not end in .png, or the file cannot be written there.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: pictures are written as PNG; give a name ending in .png")
    write_picture(path, Picture(image))


def write_picture(path: Path, picture: Picture, quality: int | None = None) -> None:
    """Writes a picture in the format that its name ends in; folders are made as needed.

    Args:
        path: where; its name ends in one of `WRITTEN`.
        picture: what.
        quality: see `encoded`.

    Raises:
        InputError: the name ends in another suffix, the picture is too large for the format, or the file cannot be
            written there.
    """
    written = format_of(path.suffix)
    if written is None:
        raise InputError(f"{path}: pictures are written as {', '.join(WRITTEN)}; give a name ending in one of them")
    write_bytes(path, encoded(picture, written, str(path), quality))


def encoded(picture: Picture, written: Format, name: str, quality: int | None = None) -> bytes:
    """A picture as the content of a file.

    What the format cannot hold is left out with a warning: 16 bits become 8, transparency is laid over white, and a
    profile of another kind of colour (CMYK, or grey where the picture is in RGB) would be wrong.

    Args:
        picture: what to encode.
        written: the format.
        name: what warnings and errors call the picture.
        quality: 1..100 of a lossy JPEG or WebP; None for 95 in JPEG and lossless WebP.

    Raises:
        InputError: the picture is too large for the format.
    """
    check_size(name, written, *picture.colour.shape[:2])
    fitting, losses = _fitted(picture, written)
    for loss in losses:
        _log.warning("%s: %s", name, loss)
    encode = _ENCODERS[written.name]
    if fitting.exif:
        try:
            return encode(fitting, quality)
        except Exception:  # noqa: BLE001  # likewise; whatever else is wrong is met again below
            fitting = replace(fitting, exif=b"")
            _log.warning("%s: %s", name, _EXIF_LOST)
    try:
        return encode(fitting, quality)
    except (OSError, ValueError, OverflowError, struct.error) as error:
        raise InputError(f"{name}: cannot be written: {getattr(error, 'strerror', None) or error}") from None


def _fitted(picture: Picture, written: Format) -> tuple[Picture, list[str]]:
    """The picture as far as a format can hold it, and what is lost."""
    losses = []
    if picture.white > 255 and written.depth == 8:
        losses.append(f"16 bits a sample become 8, because {written.name} holds no more")
        alpha = None if picture.alpha is None else _narrow(picture.alpha)
        picture = replace(picture, colour=_narrow(picture.colour), alpha=alpha)
    if picture.alpha is not None and not written.alpha:
        losses.append(f"transparency is laid over white, because {written.name} holds none")
        share = picture.alpha[:, :, None] / np.float32(picture.white)
        over = np.round(picture.colour * share + picture.white * (1 - share))
        picture = replace(picture, colour=over.astype(np.uint8), alpha=None)
    veiled = picture.white > 255 and picture.alpha is not None
    if picture.colour.shape[2] == 1 and not (written.grey and (written.veiled_grey or not veiled)):
        picture = replace(picture, colour=_in_rgb(picture.colour))
    channels, profile = picture.colour.shape[2], picture.profile
    if profile and not describes(profile, channels):
        space, kind = profile[16:20].decode("ascii", "replace").strip(), "RGB" if channels == 3 else "grey"
        losses.append(f"the colour profile of its original is for {space}; a picture in {kind} is written without")
        picture = replace(picture, profile=b"")
    height, width = picture.colour.shape[:2]
    try:
        exif = of_size(picture.exif, width, height, None if written.resolution else picture.dpi)
    except Exception:  # noqa: BLE001  # whatever Pillow raises on odd tags
        losses.append(_EXIF_LOST)
        exif = b""
    if written.name == "JPEG" and len(exif) > _JPEG_EXIF:
        losses.append(f"its EXIF of {len(exif)} bytes is left out, because JPEG holds {_JPEG_EXIF}")
        exif = b""
    return replace(picture, exif=exif), losses


def _narrow(samples: Samples) -> npt.NDArray[np.uint8]:
    return np.round(samples / 257.0).astype(np.uint8)


def _in_rgb(grey: Samples) -> Samples:
    rgb: Samples = np.concatenate([grey, grey, grey], axis=2)
    return rgb


def _samples(picture: Picture) -> Samples:
    if picture.alpha is None:
        return picture.colour
    joined: Samples = np.concatenate([picture.colour, picture.alpha[:, :, None]], axis=2)
    return joined


def _by_pillow(picture: Picture, name: str, **options: Any) -> bytes:
    samples = _samples(picture)
    metadata = {"icc_profile": picture.profile, "exif": picture.exif, "dpi": picture.dpi}
    file = io.BytesIO()
    Image.fromarray(samples[:, :, 0] if samples.shape[2] == 1 else samples).save(
        file, name, **options, **{key: value for key, value in metadata.items() if value}
    )
    return file.getvalue()


def _png(picture: Picture, quality: int | None) -> bytes:  # noqa: ARG001  # the signature of encoders
    if picture.white == 255:
        return _by_pillow(picture, "PNG")
    alpha = None if picture.alpha is None else picture.alpha.astype(np.uint16)
    return deep.encode_png(picture.colour.astype(np.uint16), alpha, picture.profile, picture.exif, picture.dpi)


def _jpeg(picture: Picture, quality: int | None) -> bytes:
    return _by_pillow(picture, "JPEG", quality=quality or JPEG_QUALITY, subsampling="4:4:4")


def _webp(picture: Picture, quality: int | None) -> bytes:
    # `exact` keeps the colours under transparency; effort 2 of 6 is six times faster and hardly larger.
    how: dict[str, Any] = {"lossless": True, "quality": 50, "exact": True} if quality is None else {"quality": quality}
    return _by_pillow(picture, "WEBP", method=2, **how)


def _tiff(picture: Picture, quality: int | None) -> bytes:  # noqa: ARG001  # likewise
    return encode_tiff(
        _samples(picture),
        alpha=picture.alpha is not None,
        profile=picture.profile,
        exif=picture.exif,
        dpi=picture.dpi,
    )


_ENCODERS = {"PNG": _png, "JPEG": _jpeg, "WebP": _webp, "TIFF": _tiff}
