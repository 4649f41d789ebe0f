"""Pictures on disk, as arrays and as tensors in a network's own range.

Promises: whatever the file holds (grey, palette, 16 bit, alpha, CMYK, rotated by EXIF), `read_image` gives `[H, W, C]`
uint8 as a viewer would show it on white, and `read_picture` all of it, for a picture that is to be written again; what
cannot be read is an `InputError` of one line that names the file; a file is never left half written.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from fxptq.errors import FxptqError, InputError
from fxptq.io import deep
from fxptq.io.deep import Deep
from fxptq.io.exif import kept_exif, resolution
from fxptq.io.picture import Picture

_log = logging.getLogger("fxptq")

T = TypeVar("T")
Source = Path | bytes
"""A file by its path, or its content."""

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

# Formats of pictures alone: Pillow would run another program to show a PostScript file.
_FORMATS = "AVIF BMP DIB GIF JPEG JPEG2000 MPO PCX PNG PPM QOI SGI TGA TIFF WEBP".split()  # noqa: SIM905  # a list
_CLAIMED = 1 << 24, 4096  # pixels, and pixels for each byte of the file: more is a claim that no file keeps


def read_image(path: Path, channels: int = 3) -> npt.NDArray[np.uint8]:
    """Read one picture as it looks.

    Grey becomes three equal channels; colour becomes grey by BT.601 weights when one channel is asked for. Transparency
    is composited over white, so that colours hidden under it do not appear. Samples of 16 bits are scaled by 255/65535
    and rounded. EXIF orientation is applied; colour profiles are not. The first frame of an animation is read.

    Args:
        path: a file of any usual format of pixels; its suffix does not matter.
        channels: 3 for RGB, 1 for grey.

    Returns:
        `[H, W, channels]` uint8.

    Raises:
        InputError: the file is missing, not a picture, damaged, or of 32-bit or L*a*b* samples.
    """
    return _reading(str(path), lambda: _as_seen(_decoded(path, str(path)), channels))


def read_picture(path: Path, channels: int | None = 3) -> Picture:
    """Read one picture with its transparency, its depth and its metadata; otherwise as `read_image` does.

    Colours under transparency are those of the file. CMYK, and grey of 8 bits that becomes RGB, are converted to sRGB
    by their profile, which has done its work then; a profile that cannot be used is kept.

    Args:
        path: a file of any usual format of pixels; its suffix does not matter.
        channels: 3 for RGB, 1 for grey, None for as many as the picture has.

    Raises:
        InputError: as `read_image`.
    """
    return _reading(str(path), lambda: _whole(path, str(path), channels))


def decode_picture(content: bytes, name: str, channels: int | None = 3) -> Picture:
    """As `read_picture`, from the content of a file, which errors call `name`."""
    return _reading(name, lambda: _whole(content, name, channels))


def _reading(name: str, read: Callable[[], T]) -> T:
    try:
        # Pillow warns of damage before it fails on it; the one line of the error is enough.
        with warnings.catch_warnings(action="ignore"):
            return read()
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{name}: there is no such file") from None
    except UnidentifiedImageError:
        raise InputError(
            f"{name}: not a picture in a format that can be read (PNG, JPEG, BMP, TIFF, WebP, ...)"
        ) from None
    except Exception as error:  # noqa: BLE001  # whatever decoders raise on damage
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name}: cannot be read as a picture: {reason}") from None


def _decoded(source: Source, name: str) -> Deep | Image.Image:
    """The picture upright: of 16 bits a sample, or of 8 as Pillow has it."""
    _check_claims(source, name)
    found = deep.decode(lambda: _opened(source))
    if found is not None:
        return found
    with _opened(source) as opened:
        picture: Image.Image = ImageOps.exif_transpose(opened)
        picture.load()
    if picture.mode in {"I", "F", "LAB"}:
        kind = {"I": "32-bit integer", "F": "floating-point", "LAB": "L*a*b*"}[picture.mode]
        raise InputError(f"{name}: has {kind} samples; save it as grey or RGB of 8 or 16 bits")
    return picture


def _opened(source: Source) -> ImageFile.ImageFile:
    Image.init()
    file = source if isinstance(source, Path) else io.BytesIO(source)
    return Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN])


def _check_claims(source: Source, name: str) -> None:
    """Refuses, before anything is allocated, a size that the file cannot hold."""
    with _opened(source) as opened:
        width, height = opened.size
    least, times = _CLAIMED
    size = source.stat().st_size if isinstance(source, Path) else len(source)
    if width * height > max(least, times * size):
        raise InputError(f"{name}: claims to be of {width}x{height} pixels, and the file has {size} bytes")


def _as_seen(picture: Deep | Image.Image, channels: int) -> npt.NDArray[np.uint8]:
    if isinstance(picture, Deep):
        picture = _in_8_bits(picture)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return _array(picture, channels)


def _whole(source: Source, name: str, channels: int | None) -> Picture:
    decoded = _decoded(source, name)
    with _opened(source) as opened:
        found, format_name = opened.info.get("icc_profile"), opened.format
        dpi = resolution(opened)
        try:
            exif = kept_exif(opened)
        except ValueError:
            exif = b""
            _log.warning("%s: its EXIF is damaged and is left out", name)
    profile = found if isinstance(found, bytes) else b""
    picture = _coloured(decoded, channels or (1 if _is_grey(decoded) else 3), profile)
    if channels is None and format_name == "WEBP" and (picture.colour[:, :, :1] == picture.colour).all():
        picture = replace(picture, colour=picture.colour[:, :, :1])  # the format has no grey of its own
    return replace(picture, exif=exif, dpi=dpi)


def _is_grey(picture: Deep | Image.Image) -> bool:
    return picture.colour.shape[2] == 1 if isinstance(picture, Deep) else picture.mode in {"1", "L", "LA"}


def _coloured(picture: Deep | Image.Image, channels: int, profile: bytes) -> Picture:
    if isinstance(picture, Deep):
        return Picture(_with_channels(picture.colour, channels), picture.alpha, profile)
    alpha, converted = None, in_srgb(picture, profile) if channels == 3 else None
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture, alpha = layer.convert("RGB"), np.array(layer.getchannel("A"))
    if converted is not None:
        return Picture(np.array(converted), alpha)
    return Picture(_array(picture, channels), alpha, profile)


def in_srgb(picture: Image.Image, profile: bytes) -> Image.Image | None:
    """CMYK or grey as RGB, converted by its colour profile; None for other pictures and for a profile without use."""
    space = {b"CMYK": "CMYK", b"GRAY": "L"}.get(profile[16:20])
    if space is None or space != {"CMYK": "CMYK", "L": "L", "LA": "L", "1": "L"}.get(picture.mode):
        return None
    try:
        return ImageCms.profileToProfile(
            picture.convert(space),
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            outputMode="RGB",
            flags=ImageCms.Flags.HIGHRESPRECALC,
        )
    except Exception:  # noqa: BLE001  # whatever a damaged profile, or a Pillow without this part, leads to
        return None


def _array(picture: Image.Image, channels: int) -> npt.NDArray[np.uint8]:
    array = np.array(picture.convert("RGB" if channels == 3 else "L"))
    return array.reshape(*array.shape[:2], channels)


def _with_channels(colour: deep.Samples, channels: int) -> deep.Samples:
    if colour.shape[2] == channels:
        return colour
    if channels == 3:
        return np.repeat(colour, 3, axis=2)
    grey: deep.Samples = np.round(colour @ np.array([0.299, 0.587, 0.114])).astype(np.uint16)
    return grey[:, :, None]


def _in_8_bits(picture: Deep) -> Image.Image:
    # Pillow's own conversion to 8 bits clips at 255 instead of scaling.
    planes = [picture.colour] if picture.alpha is None else [picture.colour, picture.alpha[:, :, None]]
    bytes_of = np.round(np.concatenate(planes, axis=2) / 257.0).astype(np.uint8)
    return Image.fromarray(bytes_of[:, :, 0] if bytes_of.shape[2] == 1 else bytes_of)


def pixels_in(path: Path) -> int:
    """The number of pixels that the header of a picture claims; 0 if it cannot be read."""
    try:
        with Image.open(path) as picture:
            return picture.width * picture.height
    except Exception:  # noqa: BLE001  # whoever reads the picture says what is wrong with it
        return 0


def list_images(folder: Path) -> list[Path]:
    """The pictures directly in `folder`, by suffix, sorted by name; other files and hidden ones are passed over.

    Raises:
        InputError: the folder is missing, is not a folder, or holds no picture.
    """
    try:
        found = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != "." and p.is_file()]
    except FileNotFoundError:
        raise InputError(f"{folder}: there is no such folder") from None
    except NotADirectoryError:
        raise InputError(f"{folder}: is a file; expected a folder of pictures") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed: {error.strerror}") from None
    if not found:
        raise InputError(f"{folder}: holds no pictures; expected files named {', '.join(sorted(SUFFIXES))}")
    return sorted(found, key=lambda path: path.name)


def to_tensor(image: npt.NDArray[np.uint8] | npt.NDArray[np.float32], value_range: float = 1.0) -> Tensor:
    """A picture as a network's input.

    Args:
        image: `[H, W, C]` on the scale 0..255; float where a degradation has left values between or beyond the levels.
        value_range: what the network takes white to be: 1.0 or 255.0.

    Returns:
        `[1, C, H, W]` float32, 255 mapped to `value_range`.
    """
    planes = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
    return torch.from_numpy(planes)[None] / (255.0 / value_range)


def to_image(tensor: Tensor, value_range: float = 1.0) -> npt.NDArray[np.uint8]:
    """A network's output as a picture: clamped to 0..value_range, scaled to 0..255, rounded.

    Args:
        tensor: `[1, C, H, W]`, floating point.
        value_range: the value of white.

    Returns:
        `[H, W, C]` uint8.

    Raises:
        FxptqError: the output is not finite, or not one picture.
    """
    return _levels(tensor, value_range).astype(np.uint8)


def _levels(tensor: Tensor, value_range: float) -> npt.NDArray[np.float32]:
    if tensor.ndim != 4 or tensor.shape[0] != 1:
        raise FxptqError(f"the network returned shape {tuple(tensor.shape)}; expected one picture, [1, C, H, W]")
    values = tensor.detach()[0].to("cpu", torch.float32)
    if not torch.isfinite(values).all():
        raise FxptqError("the network returned values that are not finite; no picture can be made of them")
    levels = (values.clamp(0, value_range) * (255.0 / value_range)).round()
    return np.ascontiguousarray(levels.permute(1, 2, 0).numpy())
