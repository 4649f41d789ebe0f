"""`fxptq upscale`: pictures through a checkpoint, whole or in tiles."""

from __future__ import annotations

from pathlib import Path

import torch

from fxptq.commands.evaluate import open_checkpoint, runnable
from fxptq.commands.source import device_of
from fxptq.errors import InputError
from fxptq.evaluate.restore import NetworkRun, fitted
from fxptq.io.images import SUFFIXES, list_images, read_image, to_image, to_tensor, write_png
from fxptq.progress import Progress


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
) -> list[Path]:
    """Restores a picture, or every picture of a folder, and returns what was written.

    Raises:
        InputError: a picture cannot be read, or the target is unfit.
    """
    if tile < 0:
        raise InputError(f"--tile {tile}: expected 0 for the whole picture, or a size in pixels")
    jobs = _jobs(source, target)
    quantized = open_checkpoint(checkpoint, factory)
    task, where = quantized.task, device_of(device)
    model = runnable(quantized.to(where), integer=integer)
    restore = fitted(NetworkRun(model, where, task.scale), task.pictures, tile)
    with progress.task("upscale", len(jobs)) as advance:
        for read, write in jobs:
            picture = to_tensor(read_image(read, task.input.channels), task.input.range)
            with torch.no_grad():
                output = restore(picture)
            write_png(write, to_image(output, task.input.range))
            advance(note=read.name)
    return [write for _, write in jobs]


def _jobs(source: Path, target: Path) -> list[tuple[Path, Path]]:
    jobs = _folder_jobs(source, target) if source.is_dir() else [_single_job(source, target)]
    for read, write in jobs:
        if write.exists() and write.samefile(read):
            raise InputError(f"{write}: would overwrite the picture it is made from; give another OUT")
    return jobs


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
