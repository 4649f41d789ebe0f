"""A checkpoint that restores pictures with their depth, colours, transparency and metadata."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fxptq.commands.evaluate import open_checkpoint
from fxptq.commands.pictures import STREAM, Existing, Job, Names
from fxptq.commands.source import device_of
from fxptq.data.resize import imresize
from fxptq.errors import FxptqError, InputError
from fxptq.evaluate.restore import NetworkRun
from fxptq.evaluate.tiles import Progress as Tiles
from fxptq.evaluate.tiling import TiledRun, Tiling
from fxptq.formats import PictureFormat
from fxptq.io.images import decode_picture, read_picture, to_tensor
from fxptq.io.picture import Picture, Samples
from fxptq.io.writing import Format, check_size, encoded, format_of
from fxptq.kernels.backend import backend_for
from fxptq.kernels.lower import IntegerModel, lower
from fxptq.kernels.pace import Pace
from fxptq.quantized import QuantizedModel

Computation = Literal["auto", "integer", "simulated"]
"""What computes: integer kernels, the simulation, or whichever is faster here."""
Alpha = Literal["bicubic", "network"]
"""What enlarges transparency."""


@dataclass(frozen=True)
class Settings:
    """How pictures are restored.

    Attributes:
        checkpoint: the file of the network.
        factory: builds the network if it is no bundled one.
        tiling: how pictures are cut.
        computation: what computes.
        device: auto, cpu or cuda.
        alpha: what enlarges transparency.
        quality: of lossy JPEG or WebP, 1..100; None for 95 and lossless.
        names: how written pictures are called in a folder.
        existing: what happens to files that are there already.
        jobs: number of processes.
        threads: of each process; 0 to leave the number as it is.

    Raises:
        InputError: a value out of its range.
    """

    checkpoint: Path
    factory: str | None = None
    tiling: Tiling = field(default_factory=Tiling)
    computation: Computation = "auto"
    device: str = "auto"
    alpha: Alpha = "bicubic"
    quality: int | None = None
    names: Names = field(default_factory=Names)
    existing: Existing = field(default_factory=Existing)
    jobs: int = 1
    threads: int = 0

    def __post_init__(self) -> None:
        if self.alpha not in {"bicubic", "network"}:
            raise InputError(f"--alpha {self.alpha!r}: expected bicubic or network")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise InputError(f"--quality {self.quality}: expected a number from 1 to 100")
        if self.jobs < 1:
            raise InputError(f"--jobs {self.jobs}: expected the number of processes, 1 or more")


class Restorer:
    """A loaded checkpoint that restores pictures.

    Args:
        settings: how.

    Raises:
        InputError: the checkpoint cannot be loaded, or the device is not there.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        if settings.threads:
            torch.set_num_threads(settings.threads)
        quantized = open_checkpoint(settings.checkpoint, settings.factory)
        task, device = quantized.task, device_of(settings.device)
        self._model = chosen(quantized.to(device), settings.computation, device)
        self._pictures: PictureFormat = task.pictures
        network = NetworkRun(self._model, device, task.scale)
        self._run = TiledRun(network, task.pictures, settings.tiling, device)

    @property
    def paces(self) -> tuple[Pace, ...]:
        """How fast integers were beside float, by size of input; empty without integers."""
        return self._model.lowering.paces if isinstance(self._model, IntegerModel) else ()

    def content(self, job: Job, tiles: Tiles | None = None) -> bytes:
        """The restored picture of a job, as the content of the file to write.

        Raises:
            InputError: the picture cannot be read, or the result does not fit its format.
            FxptqError: the network fails.
        """
        channels = None if self._pictures.channels == 3 else self._pictures.channels
        if job.read == STREAM:
            picture = decode_picture(sys.stdin.buffer.read(), "standard input", channels)
        else:
            picture = read_picture(job.read, channels)
        written = self._settings.names.stream_format if job.write == STREAM else _format(job.write)
        name = "standard output" if job.write == STREAM else str(job.write)
        check_size(name, written, *(side * self._pictures.scale for side in picture.colour.shape[:2]))
        try:
            restored = self.restored(picture, tiles)
        except FxptqError as error:
            raise type(error)(f"{job.read}: {error}") from error
        return encoded(restored, written, name, self._settings.quality)

    def restored(self, picture: Picture, tiles: Tiles | None = None) -> Picture:
        """A picture through the network, in its own depth and colours and with its metadata.

        Grey goes through a network of colour as three equal channels, and their mean comes back.

        Args:
            picture: what to restore.
            tiles: called after each tile with (done, total).

        Raises:
            FxptqError: the network fails, or gives no picture.
        """
        colour = self._plane(picture, tiles)
        alpha = picture.alpha
        if alpha is not None and self._settings.alpha == "network" and alpha.min() < alpha.max():
            alpha = self._plane(Picture(alpha[:, :, None]))[:, :, 0]
        return replace(picture, colour=colour, alpha=_resized(alpha, colour.shape[:2]))

    def _plane(self, picture: Picture, tiles: Tiles | None = None) -> Samples:
        channels, white, bright = picture.colour.shape[2], picture.white, self._pictures.value_range
        x = to_tensor(picture.levels, bright).expand(-1, max(channels, self._pictures.channels), -1, -1)
        with torch.no_grad():
            output = self._run(x.contiguous(), lambda y: to_levels(y, channels, bright, white), tiles)
        samples: Samples = output[0].permute(1, 2, 0).contiguous().numpy()
        return samples


def chosen(quantized: QuantizedModel, computation: Computation, device: torch.device) -> nn.Module:
    """The network as it is computed; not compiled, because pictures come in many sizes.

    Integers equal the simulation up to the rounding of float sums, so that `auto` may take whichever is faster here.
    """
    if computation == "integer":
        return quantized.to_integer(compile=False)
    if computation == "simulated" or not backend_for(device).install().native:
        return quantized
    integer = lower(quantized.program, compile=False, compare=True, pace=False)
    return integer if integer.beats_simulation() else quantized


def to_levels(y: Tensor, channels: int, value_range: float, white: int) -> Tensor:
    """A network's output as samples of a picture: clamped to 0..value_range, scaled to 0..white, rounded.

    Args:
        y: [1, C, H, W], floating point.
        channels: of the picture; of grey the mean of all channels is taken.
        value_range: the value of white in `y`.
        white: 255 for uint8, 65535 for uint16.

    Raises:
        FxptqError: the output is not finite.
    """
    if not bool(y.isfinite().all()):
        raise FxptqError("the network returned values that are not finite; no picture can be made of them")
    values = y.float()
    if channels == 1 and values.shape[1] > 1:
        values = values.mean(1, keepdim=True)
    levels = (values.clamp(0, value_range) * (float(white) / value_range)).round()
    return levels.to(torch.uint8 if white == 255 else torch.uint16)


def _format(path: Path) -> Format:
    found = format_of(path.suffix)
    if found is None:
        raise InputError(f"{path}: not the name of a picture that can be written")
    return found


def _resized(alpha: Samples | None, size: tuple[int, ...]) -> Samples | None:
    """A plane of transparency in another size, by bicubic interpolation."""
    if alpha is None or alpha.shape == size:
        return alpha
    if alpha.min() == alpha.max():  # the usual case, which needs no memory
        return np.full(size, alpha.min(), alpha.dtype)
    scale = size[0] / alpha.shape[0]
    resized = imresize(alpha.astype(np.float64), scale)
    if resized.shape != size:
        raise FxptqError(f"the network made {size} of {alpha.shape}; expected one scale for height and width")
    rounded = np.round(np.clip(resized, 0, np.iinfo(alpha.dtype).max))
    return rounded.astype(np.uint8) if alpha.dtype == np.uint8 else rounded.astype(np.uint16)
