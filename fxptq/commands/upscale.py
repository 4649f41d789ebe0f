"""`fxptq upscale`: pictures through a checkpoint, with their depth, transparency and metadata.

Promises: one bad picture of a folder does not end the run; each picture is written whole or not at all, so that a run
that was interrupted is taken up by the next one.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

from fxptq.commands.pictures import STREAM, Job, Jobs, plan_jobs
from fxptq.commands.pool import in_processes, threads_of_each
from fxptq.commands.restorer import Restorer, Settings
from fxptq.errors import FxptqError, InputError
from fxptq.io.files import check_writable, write_bytes
from fxptq.kernels.pace import Pace
from fxptq.progress import Advance, Progress


@dataclass(frozen=True)
class Upscaled:
    """What was done.

    Attributes:
        written: the pictures.
        skipped: pictures that were there already and stay.
        failed: why each other picture could not be restored, one line each.
        paces: how fast integers were beside float, by size of input; empty without integers.
    """

    written: tuple[Path, ...] = ()
    skipped: tuple[Path, ...] = ()
    failed: tuple[str, ...] = ()
    paces: tuple[Pace, ...] = ()


def parse_tile(text: str) -> int | None:
    """Reads `--tile`: a number of pixels, 0 for the whole picture, or auto (None).

    Raises:
        InputError: it is none of them.
    """
    if text == "auto":
        return None
    if text.isascii() and text.isdigit():
        return int(text)
    raise InputError(f"--tile {text}: expected 0 for the whole picture, a size in pixels, or auto")


def run(source: Path, target: Path, settings: Settings, progress: Progress) -> Upscaled:
    """Restores a picture, or every picture of a folder and the folders below it.

    Args:
        source: a picture, a folder, or `-` for standard input.
        target: a file, a folder, or `-` for standard output.
        settings: how.
        progress: shows pictures and tiles.

    Raises:
        InputError: nothing can be read, the target is unfit, or a file cannot be written.
        FxptqError: the only picture cannot be restored.
    """
    jobs = plan_jobs(source, target, settings.checkpoint, settings.names, settings.existing)
    if not jobs.todo:
        return Upscaled(skipped=jobs.skipped)
    first = jobs.todo[0].write
    if first != STREAM:
        check_writable(first)
    elif sys.stdout.isatty():
        raise InputError("OUT -: standard output is a terminal; send it to a file or a program")
    count = min(settings.jobs, len(jobs.todo))
    done = _in_processes(jobs, settings, count, progress) if count > 1 else _one_by_one(jobs, settings, progress)
    return replace(done, skipped=jobs.skipped)


def _one_by_one(jobs: Jobs, settings: Settings, progress: Progress) -> Upscaled:
    restorer = Restorer(settings)
    written: list[Path] = []
    failed: list[str] = []
    with progress.task("upscale", len(jobs.todo)) as advance:
        for job in jobs.todo:
            try:
                with TileBar(progress, job.read.name) as tiles:
                    content = restorer.content(job, tiles)
            except FxptqError as error:
                if not jobs.folder:
                    raise
                failed.append(str(error))
            else:
                _write(job.write, content)
                written.append(job.write)
            advance(note=job.read.name)
    return Upscaled(tuple(written), (), tuple(failed), restorer.paces)


def _in_processes(jobs: Jobs, settings: Settings, count: int, progress: Progress) -> Upscaled:
    """Each process restores one picture at a time, and takes its part of the processor's cores and of the memory."""
    tiling = replace(settings.tiling, share=settings.tiling.share / count)
    own = replace(settings, tiling=tiling, threads=threads_of_each(count))
    failures: dict[Job, str] = {}
    remedy = (
        f"give fewer than {count} --jobs, or a smaller --tile; the pictures that are written stay (--skip-existing "
        "goes on from there)"
    )
    with (
        in_processes(count, partial(_restore_one, own), jobs.todo, remedy) as finished,
        progress.task(f"upscale in {count} processes", len(jobs.todo)) as advance,
    ):
        for job, found in finished:
            failures |= {job: found} if found else {}
            advance(note=job.read.name)
    written = tuple(job.write for job in jobs.todo if job not in failures)
    return Upscaled(written, (), tuple(failures[job] for job in jobs.todo if job in failures))


def _restore_one(settings: Settings, job: Job) -> str:
    """Restores a picture in a process of the pool; why it cannot be restored, or nothing."""
    try:
        content = _restorer(settings).content(job)
    except FxptqError as error:
        return str(error)
    _write(job.write, content)
    return ""


@lru_cache(maxsize=1)
def _restorer(settings: Settings) -> Restorer:
    return Restorer(settings)


def _write(path: Path, content: bytes) -> None:
    if path == STREAM:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    else:
        write_bytes(path, content)


class TileBar:
    """The bar of a picture's tiles, which appears where there is more than one.

    Args:
        progress: shows it.
        name: of the picture.
    """

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._name = progress, name
        self._stack = ExitStack()
        self._advance: Advance | None = None
        self._total = 0

    def __enter__(self) -> TileBar:
        """See the class."""
        return self

    def __exit__(self, *_: object) -> None:
        """Takes the bar away."""
        self._stack.close()

    def __call__(self, done: int, total: int) -> None:
        """Shows that `done` tiles of `total` are done."""
        if total > 1 and total != self._total:  # the first tile, or the first of smaller ones
            self._stack.close()
            self._total = total
            self._advance = self._stack.enter_context(self._progress.task(f"tiles of {self._name}", total))
            self._advance(done - 1)
        if self._advance is not None:
            self._advance()
