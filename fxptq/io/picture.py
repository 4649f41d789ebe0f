"""A picture with all that is kept of it when it is restored, as one value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Picture:
    """A picture with all that is kept of it when it is restored.

    Attributes:
        colour: `[H, W, 1]` or `[H, W, 3]`, uint8, or uint16 of a picture of 16 bits a sample.
        alpha: `[H, W]` of the same type, the largest value where nothing shows through; None for no transparency.
        profile: its ICC colour profile, empty for none.
        exif: its EXIF as `fxptq.io.exif.kept_exif` gives it, empty for none.
        dpi: horizontal and vertical resolution in dots per inch; None where the file names none.
    """

    colour: Samples
    alpha: Samples | None = None
    profile: bytes = b""
    exif: bytes = b""
    dpi: tuple[float, float] | None = None

    @property
    def white(self) -> int:
        """The largest value of a sample: 255, or 65535."""
        return int(np.iinfo(self.colour.dtype).max)

    @property
    def levels(self) -> npt.NDArray[np.float32]:
        """The colour on the scale 0..255, whatever the depth."""
        return (self.colour / np.float32(self.white / 255)).astype(np.float32)


def describes(profile: bytes, channels: int) -> bool:
    """Whether an ICC profile is for RGB, or grey if there is one channel, as far as it says so."""
    space = profile[16:20] if profile[36:40] == b"acsp" else b""
    return bool(profile) and space in (b"", b"RGB " if channels == 3 else b"GRAY")
