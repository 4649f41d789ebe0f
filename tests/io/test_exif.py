"""EXIF of other programs: kept, or left out with a warning, and never the end of a picture."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import IFD, Base

from fxptq.errors import InputError
from fxptq.io.exif import of_size, parts_of
from fxptq.io.images import decode_picture, read_picture
from fxptq.io.picture import Picture
from fxptq.io.writing import FORMATS, encoded


def camera() -> bytes:
    tags = Image.Exif()
    tags[Base.Model], tags[Base.Orientation], tags[Base.XResolution] = "A camera", 6, 72.0
    tags[IFD.Exif] = {Base.ExposureTime: 0.01, Base.ISOSpeedRatings: 200, Base.UserComment: b"ASCII\0\0\0hello"}
    tags[IFD.GPSInfo] = {1: "N", 2: (52.0, 30.0, 1.5)}
    return tags.tobytes()


def jpeg(exif: bytes) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def test_the_orientation_goes_and_the_rest_stays() -> None:
    picture = decode_picture(jpeg(camera()), "a.jpg")
    assert picture.colour.shape == (6, 4, 3)
    kept = parts_of(picture.exif)
    assert kept[Base.Model] == b"A camera"
    assert Base.Orientation not in kept
    assert kept[IFD.Exif][Base.ISOSpeedRatings] == 200
    assert kept[IFD.Exif][Base.UserComment] == b"ASCII\0\0\0hello"
    assert tuple(map(float, kept[IFD.GPSInfo][2])) == (52.0, 30.0, 1.5)


def test_no_exif_stays_none_and_a_resolution_is_added_where_it_is_asked_for() -> None:
    assert of_size(b"", 8, 8) == b""
    assert float(parts_of(of_size(b"", 8, 8, (300.0, 150.0)))[Base.YResolution]) == 150


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
def test_damaged_exif_never_ends_a_picture(row: object, caplog: pytest.LogCaptureFixture) -> None:
    whole = camera()
    rng = np.random.default_rng(0)
    kept = 0
    for _ in range(150):
        flipped = bytearray(whole)
        for position in rng.integers(8, len(whole), rng.integers(1, 12)):
            flipped[position] = rng.integers(0, 256)
        try:
            picture = decode_picture(jpeg(bytes(flipped)), "a.jpg")
        except InputError:
            continue
        made = decode_picture(encoded(picture, row, "b"), "b")  # type: ignore[arg-type]
        assert made.colour.shape == picture.colour.shape
        kept += bool(picture.exif)
    assert kept > 20
    assert all(message.endswith("left out") for message in caplog.messages)


def test_what_cannot_be_written_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    row = next(row for row in FORMATS if row.name == "JPEG")
    large = Image.Exif()
    large[Base.ImageDescription] = "x" * 70_000
    picture = Picture(np.zeros((4, 4, 3), np.uint8), exif=large.tobytes())
    (tmp_path / "a.jpg").write_bytes(encoded(picture, row, "a.jpg"))
    assert read_picture(tmp_path / "a.jpg").exif == b""
    assert caplog.messages == ["a.jpg: its EXIF of 70034 bytes is left out, because JPEG holds 65527"]
