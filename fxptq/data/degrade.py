"""How a network's input is made from a clean picture: bicubic shrinking, Gaussian noise, JPEG, or nothing.

Promises: a degradation is a frozen description that can be stored; the same generator state gives the same input.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from fxptq.data.resize import imresize
from fxptq.errors import InputError

Kind = Literal["bicubic", "noise", "jpeg", "none"]


@dataclass(frozen=True)
class Degradation:
    """The damage that makes a network's input from the clean picture.

    Attributes:
        kind: "bicubic", "noise", "jpeg" or "none".
        scale: size of the clean picture over the size of the input; above 1 only for "bicubic".
        sigma: standard deviation of "noise" on the scale 0..255; 0 for other kinds.
        quality: quality of "jpeg", 1 (worst) to 100; 0 for other kinds.

    Raises:
        InputError: a value out of its range, or a level that belongs to another kind.
    """

    kind: Kind
    scale: int = 1
    sigma: float = 0.0
    quality: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"degradation {self.kind!r} is unknown; expected one of {', '.join(get_args(Kind))}")
        self._check("scale", self.scale >= 1 if self.kind == "bicubic" else self.scale == 1, "bicubic takes 1 or more")
        self._check(
            "sigma", 0 < self.sigma < math.inf if self.kind == "noise" else self.sigma == 0, "noise takes one above 0"
        )
        self._check(
            "quality", 1 <= self.quality <= 100 if self.kind == "jpeg" else self.quality == 0, "jpeg takes 1 to 100"
        )

    def _check(self, setting: str, sound: bool, expected: str) -> None:
        if not sound:
            value = getattr(self, setting)
            raise InputError(f"degradation {self.kind!r} cannot have {setting} {value}; {expected}, other kinds none")

    def __str__(self) -> str:
        """In words, for reports: "bicubic x4", "noise sigma 25", "jpeg quality 40", "none"."""
        level = {
            "bicubic": f" x{self.scale}",
            "noise": f" sigma {self.sigma:g}",
            "jpeg": f" quality {self.quality}",
            "none": "",
        }
        return self.kind + level[self.kind]

    def apply(self, hr: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """Makes the degraded picture.

        Args:
            hr: clean picture, `[H, W, C]` uint8 with C of 1 or 3. For bicubic, H and W are first cropped at the bottom
                and right to multiples of the scale.
            rng: source of the noise; only "noise" draws from it.

        Returns:
            `[H // scale, W // scale, C]` float32 on the scale 0..255. Levels are whole numbers; only "noise" is neither
            rounded nor clipped, as in the denoising literature.

        Raises:
            InputError: the picture is smaller than the scale.
        """
        if self.kind == "bicubic":
            height, width = hr.shape[0] // self.scale, hr.shape[1] // self.scale
            if min(height, width) == 0:
                raise InputError(f"a picture of {hr.shape[1]}x{hr.shape[0]} cannot be shrunk {self.scale} times")
            return imresize(hr[: height * self.scale, : width * self.scale], 1 / self.scale).astype(np.float32)
        if self.kind == "noise":
            return hr.astype(np.float32) + np.float32(self.sigma) * rng.standard_normal(hr.shape, dtype=np.float32)
        if self.kind == "jpeg":
            return _jpeg(hr, self.quality).astype(np.float32)
        return hr.astype(np.float32)


def _jpeg(image: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    """Compresses and decompresses; colour gets 4:2:0 chroma, the default of encoders."""
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    with io.BytesIO() as file:
        picture.save(file, format="JPEG", quality=quality, subsampling="4:2:0")
        with Image.open(file) as compressed:
            return np.array(compressed).reshape(image.shape)
