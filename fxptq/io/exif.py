"""The EXIF of a picture that is restored: fields about the scene and the camera stay, fields about the file do not.

Promises: the orientation is left out, because pictures are turned when they are read; so is the thumbnail, which would
show the picture as it was; the size in pixels is the size of the new picture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from PIL import Image
from PIL.ExifTags import IFD, Base

_PARTS = (IFD.Exif, IFD.GPSInfo)
_RESOLUTION = (Base.XResolution, Base.YResolution, Base.ResolutionUnit)

_SAMPLES = (*range(254, 260), 262, 263, 266, 273, 274, *range(277, 282), 284, *range(288, 292), 317, *range(320, 326))
_OTHERS = (330, *range(332, 348), *range(512, 533), 700, 33723, 34377, 34675, 37724)

LAYOUT = frozenset((*_SAMPLES, *_OTHERS))
"""Tags of a TIFF that say how its samples lie, and tags that hold other kinds of metadata."""


def kept_exif(opened: Image.Image) -> bytes:
    """The EXIF of an opened picture that goes with its restored form, empty for none.

    Raises:
        ValueError: the EXIF is damaged.
    """
    try:
        found = opened.getexif()
        own = Image.Exif()
        for tag, value in found.items():
            of_the_file = tag in LAYOUT or (opened.format == "TIFF" and tag in _RESOLUTION)
            if not of_the_file and tag not in _PARTS:
                own[tag] = _as_it_was(value)
        for part in _PARTS:
            content = _part(found, part)
            if content:
                own[part] = content
        return own.tobytes() if len(own) else b""
    except Exception as error:  # whatever Pillow raises on damage
        raise ValueError("the EXIF is damaged") from error


def resolution(opened: Image.Image) -> tuple[float, float] | None:
    """Dots per inch of an opened picture, from the file's own field or from its EXIF; None where it names none."""
    with contextlib.suppress(Exception):  # likewise
        found = opened.info.get("dpi")
        if found is None:
            exif = opened.getexif()
            inches = {2: 1.0, 3: 2.54}.get(exif.get(Base.ResolutionUnit, 2))
            if inches is None or Base.XResolution not in exif:
                return None
            found = tuple(float(exif[tag]) * inches for tag in _RESOLUTION[:2])
        across, down = float(found[0]), float(found[1])
        if 0 < across < 1e6 and 0 < down < 1e6:
            return across, down
    return None


def parts_of(exif: bytes) -> Mapping[int, Any]:
    """The tags of EXIF that `kept_exif` gave; parts of their own (camera, place) are mappings under their tags."""
    read = Image.Exif()
    read.load(exif)
    plain = {tag: _as_it_was(value) for tag, value in read.items() if tag not in _PARTS}
    return {**plain, **{part: _part(read, part) for part in _PARTS if part in read}}


def _part(exif: Image.Exif, part: int) -> dict[int, Any]:
    found = exif.get_ifd(part).items()
    return {tag: _as_it_was(value) for tag, value in found if tag != IFD.Interop and not isinstance(value, dict)}


def _as_it_was(value: Any) -> Any:
    """Text as its bytes, which Pillow reads as Latin-1 and would write as ASCII."""
    return value.encode("latin-1", "replace") if isinstance(value, str) else value


def of_size(exif: bytes, width: int, height: int, dpi: tuple[float, float] | None = None) -> bytes:
    """The EXIF for a picture of another size.

    Args:
        exif: as `kept_exif` gave it, empty for none.
        width: of the new picture in pixels.
        height: likewise.
        dpi: the resolution, for a format that has no field of its own for it; None to add none.
    """
    parts = dict(parts_of(exif)) if exif else {}
    camera = parts.get(IFD.Exif, {})
    new = {Base.ExifImageWidth: width, Base.ExifImageHeight: height}
    camera |= {tag: pixels for tag, pixels in new.items() if tag in camera}
    if dpi is not None and Base.XResolution not in parts:
        parts |= dict(zip(_RESOLUTION, (*dpi, 2), strict=True))
    if not parts:
        return b""
    changed = Image.Exif()
    changed.update(parts)
    return changed.tobytes()
