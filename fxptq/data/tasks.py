"""The tasks of image restoration, one row each: the damage, its level, and the figures that papers report.

A recipe names a task as the kind of its degradation. To add a task is to add a row to `TASKS`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from fxptq.data.resize import imresize
from fxptq.errors import InputError

Clean = npt.NDArray[np.uint8]
Damaged = npt.NDArray[np.float32]
Level = Literal["", "scale", "sigma", "quality", "amount"]


TITLES: Mapping[str, str] = {
    "psnr_y": "PSNR-Y (dB)",
    "ssim_y": "SSIM-Y",
    "psnr": "PSNR (dB)",
    "psnr_b": "PSNR-B (dB)",
}
"""What tables call each figure."""


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: the kind of degradation, as recipes and the command line call it.
        damage: makes the network's input from a clean picture [H, W, C] and the level, on the scale 0..255; random
            damage draws from the generator.
        figures: the figures that papers on the task report, by their names in `fxptq.evaluate.score.Score`; tables
            compare by the first.
        level: the setting that says how strong the damage is; "amount" for a level that is no scale, sigma or quality.
        allows: whether a level is in range.
        expected: the range of the level in words, for errors.
        random: whether the damage of one picture differs from draw to draw.
        protocol: how a model card says that the task was measured; {scale} and the name of the level are filled in.
    """

    name: str
    damage: Callable[[Clean, float, np.random.Generator], Damaged]
    figures: tuple[str, ...]
    level: Level = ""
    allows: Callable[[float], bool] = lambda _: True
    expected: str = ""
    random: bool = False
    protocol: str = ""


def _shrunk(hr: Clean, scale: float, rng: np.random.Generator) -> Damaged:  # noqa: ARG001  # the signature of damage
    factor = int(scale)
    height, width = hr.shape[0] // factor, hr.shape[1] // factor
    if min(height, width) == 0:
        raise InputError(f"a picture of {hr.shape[1]}x{hr.shape[0]} cannot be shrunk {factor} times")
    return imresize(hr[: height * factor, : width * factor], 1 / factor).astype(np.float32)


def _noisy(hr: Clean, sigma: float, rng: np.random.Generator) -> Damaged:
    """Neither rounded nor clipped, as in the denoising literature."""
    return hr.astype(np.float32) + np.float32(sigma) * rng.standard_normal(hr.shape, dtype=np.float32)


def _compressed(hr: Clean, quality: float, rng: np.random.Generator) -> Damaged:  # noqa: ARG001  # likewise
    """Compressed and decompressed; colour gets 4:2:0 chroma, the default of encoders."""
    picture = Image.fromarray(hr[:, :, 0] if hr.shape[2] == 1 else hr)
    with io.BytesIO() as file:
        picture.save(file, format="JPEG", quality=int(quality), subsampling="4:2:0")
        with Image.open(file) as compressed:
            return np.array(compressed).reshape(hr.shape).astype(np.float32)


def _unchanged(hr: Clean, level: float, rng: np.random.Generator) -> Damaged:  # noqa: ARG001  # likewise
    return hr.astype(np.float32)


TASKS: tuple[Task, ...] = (
    Task(
        name="bicubic",
        damage=_shrunk,
        figures=("psnr_y", "ssim_y"),
        level="scale",
        allows=lambda scale: scale >= 1,
        expected="1 or more",
        protocol="MATLAB bicubic inputs, output rounded to 8 bits, {scale} pixels cropped at each border.",
    ),
    Task(
        name="noise",
        damage=_noisy,
        figures=("psnr",),
        level="sigma",
        allows=lambda sigma: 0 < sigma < math.inf,
        expected="one above 0",
        random=True,
        protocol="Gaussian noise of standard deviation {sigma:g} on the scale 0..255, the same for the same picture,\n"
        "neither rounded nor clipped; output rounded to 8 bits, nothing cropped.",
    ),
    Task(
        name="jpeg",
        damage=_compressed,
        figures=("psnr_y", "ssim_y", "psnr_b"),
        level="quality",
        allows=lambda quality: 1 <= quality <= 100,
        expected="1 to 100",
        protocol="pictures turned to grey (BT.601), then JPEG of quality {quality} as Pillow writes it; output "
        "rounded\nto 8 bits, nothing cropped.",
    ),
    Task(
        name="none",
        damage=_unchanged,
        figures=("psnr_y", "ssim_y"),
        protocol="output rounded to 8 bits, nothing cropped.",
    ),
    Task(
        name="pairs",  # a folder of pairs brings real inputs; where there is none, pictures are shrunk to the scale
        damage=_shrunk,
        figures=("psnr", "psnr_y", "ssim_y"),
        level="scale",
        allows=lambda scale: scale >= 1,
        expected="1 or more",
        protocol="pairs of pictures as they are; output rounded to 8 bits, {scale} pixels cropped at each border\n"
        "above scale 1.",
    ),
)


def task_names() -> tuple[str, ...]:
    """Names of all tasks, in the order of the table."""
    return tuple(task.name for task in TASKS)


def task_named(name: str) -> Task:
    """The task of that name.

    Raises:
        InputError: there is none.
    """
    for task in TASKS:
        if task.name == name:
            return task
    raise InputError(f"degradation {name!r} is unknown; expected one of {', '.join(task_names())}")


def takers_of(level: Level) -> str:
    """Which tasks have a level of that name, and in which range, for errors; empty if none has."""
    return ", ".join(f"{task.name} takes {task.expected}" for task in TASKS if task.level == level)
