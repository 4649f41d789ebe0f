"""`fxptq upscale`: pictures through a checkpoint, whole or in tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fxptq.commands.evaluate import open_checkpoint, runnable
from fxptq.commands.source import device_of
from fxptq.data.resize import imresize
from fxptq.errors import FxptqError, InputError
from fxptq.evaluate.restore import NetworkRun, fitted
from fxptq.io.files import check_writable
from fxptq.io.images import SUFFIXES, Picture, Samples, list_images, read_picture, to_samples, to_tensor, write_picture
from fxptq.kernels.lower import IntegerModel
from fxptq.kernels.pace import Pace
from fxptq.progress import Progress


@dataclass(frozen=True)
class Upscaled:
    """What was done.

    Attributes:
        written: the pictures.
        paces: how fast integers were beside float, by size of input; empty without integers.
    """

    written: tuple[Path, ...]
    paces: tuple[Pace, ...]


def run(
    checkpoint: Path,
    source: Path,
    target: Path,
    factory: str | None,
    progress: Progress,
    *,
    tile: int,
    integer: bool,
    device: str,
) -> Upscaled:
    """Restores a picture, or every picture of a folder.

    Raises:
        InputError: a picture cannot be read, or the target is unfit.
    """
    if tile < 0:
        raise InputError(f"--tile {tile}: expected 0 for the whole picture, or a size in pixels")
    jobs = _jobs(source, target, checkpoint)
    check_writable(jobs[0][1])
    quantized = open_checkpoint(checkpoint, factory)
    task, where = quantized.task, device_of(device)
    model = runnable(quantized.to(where), integer=integer)
    restore = fitted(NetworkRun(model, where, task.scale), task.pictures, tile)
    with progress.task("upscale", len(jobs)) as advance:
        for read, write in jobs:
            picture = read_picture(read, task.input.channels)
            write_picture(write, restored(picture, restore, task.input.range))
            advance(note=read.name)
    return Upscaled(tuple(write for _, write in jobs), model.lowering.paces if isinstance(model, IntegerModel) else ())


def restored(picture: Picture, restore: Callable[[Tensor], Tensor], value_range: float) -> Picture:
    """A picture through a network, in its own depth and with its profile; its transparency is resized with it.

    Args:
        picture: what to restore.
        restore: the network, [1, C, H, W] to [1, C, H * scale, W * scale].
        value_range: the value of white.

    Raises:
        FxptqError: the network gave no picture.
    """
    with torch.no_grad():
        output = restore(to_tensor(picture.levels, value_range))
    colour = to_samples(output, value_range, picture.white)
    return Picture(colour, _resized(picture.alpha, colour.shape[:2]), picture.profile)


def _resized(alpha: Samples | None, size: tuple[int, ...]) -> Samples | None:
    """A plane of transparency in another size."""
    if alpha is None or alpha.shape == size:
        return alpha
    scale = size[0] / alpha.shape[0]
    resized = imresize(alpha.astype(np.float64), scale)
    if resized.shape != size:
        raise FxptqError(f"the network made {size} of {alpha.shape}; expected one scale for height and width")
    rounded = np.round(np.clip(resized, 0, np.iinfo(alpha.dtype).max))
    return rounded.astype(np.uint8) if alpha.dtype == np.uint8 else rounded.astype(np.uint16)


def _jobs(source: Path, target: Path, checkpoint: Path) -> list[tuple[Path, Path]]:
    """What is read and what is written, none of which is anything that is read."""
    jobs = _folder_jobs(source, target) if source.is_dir() else [_single_job(source, target)]
    taken = {_identity(read): read for read in (*(read for read, _ in jobs), checkpoint)}
    for read, write in jobs:
        there = taken.get(_identity(write)) if write.exists() else None
        if there is not None:
            what = "the picture it is made from" if there == read else str(there)
            raise InputError(f"{write}: would overwrite {what}; give another OUT")
    return jobs


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    return found.st_dev, found.st_ino


def _single_job(source: Path, target: Path) -> tuple[Path, Path]:
    if not source.exists():
        raise InputError(f"{source}: there is no such file")
    if target.is_dir():
        return source, target / f"{source.stem}.png"
    if target.suffix.lower() != ".png":
        raise InputError(f"{target}: pictures are written as .png")
    return source, target


def _folder_jobs(source: Path, target: Path) -> list[tuple[Path, Path]]:
    if target.is_file() or target.suffix.lower() in SUFFIXES:
        raise InputError(f"{target}: {source} is a folder, so OUT must be a folder too")
    found: dict[str, Path] = {}
    for file in list_images(source):
        if file.stem in found:
            raise InputError(f"{source}: {found[file.stem].name} and {file.name} would both become {file.stem}.png")
        found[file.stem] = file
    return [(file, target / f"{stem}.png") for stem, file in found.items()]
