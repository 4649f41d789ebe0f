"""TIFF files of 8 or 16 bits a sample, with transparency and metadata: Pillow writes no colour of 16 bits.

The samples are stored as horizontal differences in strips packed by Deflate, which every reader of TIFF knows.
"""

from __future__ import annotations

import io
import zlib

from PIL import TiffImagePlugin

from fxptq.io.exif import LAYOUT, parts_of
from fxptq.io.picture import Samples

_STRIP = 1 << 20  # bytes before packing
_SHORT = 3


def encode_tiff(
    samples: Samples, *, alpha: bool, profile: bytes = b"", exif: bytes = b"", dpi: tuple[float, float] | None = None
) -> bytes:
    """A TIFF file.

    Args:
        samples: `[H, W, C]`: grey or RGB, with transparency as the last channel if `alpha`.
        alpha: whether the last channel is transparency, not multiplied into the colour.
        profile: an ICC profile, empty for none.
        exif: EXIF as `fxptq.io.exif.kept_exif` gives it, empty for none.
        dpi: dots per inch, None for unknown.
    """
    height, width, channels = samples.shape
    ordered = samples.astype(samples.dtype.newbyteorder("<"))
    ordered[:, 1:] = samples[:, 1:] - samples[:, :-1]  # modulo the number of levels
    rows = max(1, _STRIP // (width * channels * samples.itemsize))
    strips = [zlib.compress(ordered[top : top + rows].tobytes()) for top in range(0, height, rows)]
    lengths = [len(strip) for strip in strips]

    directory = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\0\0\0\0")
    for tag, value in (parts_of(exif) if exif else {}).items():
        if tag not in LAYOUT:
            directory[tag] = value
    if dpi is not None:
        directory[282], directory[283], directory[296] = *dpi, 2
    fields = {
        256: width,
        257: height,
        258: (samples.itemsize * 8,) * channels,
        259: 8,  # Deflate
        262: 2 if channels > 2 else 1,  # RGB, or grey from black to white
        277: channels,
        278: rows,
        279: tuple(lengths),
        284: 1,  # the samples of a pixel lie side by side
        317: 2,  # horizontal differences
        273: tuple(sum(lengths[:index]) for index in range(len(lengths))),
    }
    for tag, value in fields.items():
        directory[tag] = value
    if alpha:
        directory.tagtype[338] = _SHORT
        directory[338] = (2,)
    if profile:
        directory.tagtype[34675] = 7
        directory[34675] = profile
    file = io.BytesIO()
    directory.save(file)
    return file.getvalue() + b"".join(strips)
