"""Pictures on disk, as uint8 arrays and as tensors in a network's own range.

Promises: whatever the file holds (grey, palette, 16 bit, alpha, CMYK, rotated by EXIF), reading gives `[H, W, C]` uint8
as a viewer would show it on white; what cannot be read is an `InputError` of one line that names the file; a file is
never left half written.
"""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fxptq.errors import FxptqError, InputError

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

# What Pillow's decoders raise on damaged files; UnidentifiedImageError and FileNotFoundError are OSErrors.
_DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, IndexError, EOFError, OverflowError, MemoryError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


def read_image(path: Path, channels: int = 3) -> npt.NDArray[np.uint8]:
    """Read one picture.

    Grey becomes three equal channels; colour becomes grey by BT.601 weights when one channel is asked for. Transparency
    is composited over white, so that colours hidden under it do not appear. 16-bit grey is scaled by 255/65535 and
    rounded (of 16-bit colour Pillow keeps the high byte, which is less than one level off). EXIF orientation is
    applied; colour profiles are not. The first frame of an animation is read.

    Args:
        path: a file of any format Pillow decodes.
        channels: 3 for RGB, 1 for grey.

    Returns:
        `[H, W, channels]` uint8.

    Raises:
        InputError: the file is missing, not a picture, damaged, or of 32-bit or L*a*b* samples.
    """
    try:
        # Pillow warns of damage before it fails on it; the one line of the error is enough.
        with warnings.catch_warnings(action="ignore"), Image.open(path) as opened:
            grey_of_16_bits = opened.format in {"PNG", "PPM"} and opened.mode == "I"
            picture = ImageOps.exif_transpose(opened)
            picture.load()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except UnidentifiedImageError:
        raise InputError(
            f"{path}: not a picture in a format that can be read (PNG, JPEG, BMP, TIFF, WebP, ...)"
        ) from None
    except _DECODING_ERRORS as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read as a picture: {reason}") from None
    if picture.mode.startswith("I;16") or grey_of_16_bits:
        picture = _from_16_bits(picture)
    elif picture.mode in {"I", "F", "LAB"}:
        kind = {"I": "32-bit integer", "F": "floating-point", "LAB": "L*a*b*"}[picture.mode]
        raise InputError(f"{path}: has {kind} samples; save it as grey or RGB of 8 or 16 bits")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    array = np.array(picture.convert("RGB" if channels == 3 else "L"))
    return array.reshape(*array.shape[:2], channels)


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
    if tensor.ndim != 4 or tensor.shape[0] != 1:
        raise FxptqError(f"the network returned shape {tuple(tensor.shape)}; expected one picture, [1, C, H, W]")
    values = tensor.detach()[0].to("cpu", torch.float32)
    if not torch.isfinite(values).all():
        raise FxptqError("the network returned values that are not finite; no picture can be made of them")
    levels = (values.clamp(0, value_range) * (255.0 / value_range)).round()
    return np.ascontiguousarray(levels.to(torch.uint8).permute(1, 2, 0).numpy())


def write_png(path: Path, image: npt.NDArray[np.uint8]) -> None:
    """Write `[H, W, 3]` or `[H, W, 1]` uint8 as PNG, whole or not at all; folders are made as needed.

    Raises:
        InputError: the name does not end in .png, or the file cannot be written there.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: pictures are written as PNG; give a name ending in .png")
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            picture.save(beside, format="PNG")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None


def _from_16_bits(picture: Image.Image) -> Image.Image:
    # Pillow's own conversion to 8 bits clips at 255 instead of scaling.
    samples = np.asarray(picture).astype(np.float64)
    return Image.fromarray(np.round(np.clip(samples, 0, 65535) / 257.0).astype(np.uint8))
