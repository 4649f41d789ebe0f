"""Which pictures `fxptq upscale` reads and writes, found out before the work.

Promises: nothing that is read is written over; a file that is there already stays unless the caller said otherwise; no
two pictures become one file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fxptq.errors import InputError
from fxptq.io.folders import list_pictures
from fxptq.io.writing import FORMATS, WRITTEN, Format, format_of

STREAM = Path("-")
"""Standard input, or standard output."""

SAME = "same"
"""As `ext`: the format of the picture that is read, or PNG where it is none that is written."""


@dataclass(frozen=True)
class Names:
    """How written pictures are called in a folder.

    Attributes:
        ext: a suffix of a format, with or without its dot, or "same"; None for PNG.
        suffix: what is added to the name, before its ending.

    Raises:
        InputError: the format is none that is written, or the suffix would lead into another folder.
    """

    ext: str | None = None
    suffix: str = ""

    def __post_init__(self) -> None:
        if self.ext not in {None, SAME} and format_of(str(self.ext)) is None:
            raise InputError(f"--ext {self.ext!r}: expected {', '.join(x[1:] for x in WRITTEN)}, or {SAME}")
        if set("/\\\0") & set(self.suffix):
            raise InputError(f"--suffix {self.suffix!r}: expected a part of a file name")

    def of(self, path: Path) -> Path:
        """The name of the picture made from `path`."""
        same = path.suffix if format_of(path.suffix) is not None else ".png"
        ending = {None: ".png", SAME: same}.get(self.ext, f".{str(self.ext).removeprefix('.')}")
        return path.with_name(f"{path.stem}{self.suffix}{ending}")

    @property
    def stream_format(self) -> Format:
        """The format of standard output."""
        return format_of(self.ext) or FORMATS[0] if self.ext is not None else FORMATS[0]


@dataclass(frozen=True)
class Job:
    """A picture to restore: where it is read, and where the result is written; `STREAM` for a standard stream."""

    read: Path
    write: Path


@dataclass(frozen=True)
class Existing:
    """What happens to files that are there already: at most one of the two."""

    skip: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.skip and self.overwrite:
            raise InputError("--skip-existing and --overwrite exclude each other; give one")


@dataclass(frozen=True)
class Jobs:
    """The work of a run.

    Attributes:
        todo: the pictures to restore, in order.
        skipped: pictures that were there already and stay.
        folder: whether a folder is worked on, so that one bad picture does not end the run.
    """

    todo: tuple[Job, ...]
    skipped: tuple[Path, ...]
    folder: bool


def plan_jobs(source: Path, target: Path, checkpoint: Path, names: Names, existing: Existing) -> Jobs:
    """The pictures to read and to write.

    Args:
        source: a picture, a folder, or `STREAM`.
        target: likewise.
        checkpoint: must not be written over.
        names: how written pictures are called in a folder.
        existing: what happens to files that are there already.

    Raises:
        InputError: nothing to read, a target that does not fit, or something would be lost.
    """
    folder = source != STREAM and source.is_dir()
    jobs = _folder_jobs(source, target, names) if folder else [_single_job(source, target, names)]
    _check_sources_stay(jobs, checkpoint)
    there = [job.write for job in jobs if job.write != STREAM and job.write.exists()]
    if there and not (existing.skip or existing.overwrite):
        which = f"{there[0]}: exists" if len(jobs) == 1 else f"{target}: {len(there)} of {len(jobs)} pictures exist"
        raise InputError(f"{which} already; give --skip-existing to keep it, or --overwrite to write it anew")
    skipped = set(there) if existing.skip else set()
    todo = tuple(job for job in jobs if job.write not in skipped)
    return Jobs(todo, tuple(job.write for job in jobs if job.write in skipped), folder)


def _check_sources_stay(jobs: Sequence[Job], checkpoint: Path) -> None:
    read = [job.read for job in jobs if job.read != STREAM]
    taken = {_identity(path): path for path in (*read, checkpoint)}
    for job in jobs:
        there = taken.get(_identity(job.write)) if job.write != STREAM and job.write.exists() else None
        if there is not None:
            what = "the picture it is made from" if there == job.read else str(there)
            raise InputError(f"{job.write}: would overwrite {what}; give another OUT")


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    return found.st_dev, found.st_ino


def _single_job(source: Path, target: Path, names: Names) -> Job:
    if source != STREAM and not source.exists():
        raise InputError(f"{source}: there is no such file")
    if target == STREAM:
        return Job(source, target)
    if target.is_dir():
        return Job(source, target / names.of(Path("stdin") if source == STREAM else source).name)
    written = format_of(target.suffix)
    if written is None:
        raise InputError(f"{target}: pictures are written as {', '.join(WRITTEN)}; or give a folder that exists")
    if names.suffix:
        raise InputError(f"--suffix {names.suffix!r}: OUT is a folder then; {target} names the file itself")
    if names.ext is not None and names.ext != SAME and format_of(names.ext) != written:
        raise InputError(f"--ext {names.ext}: OUT {target} is a {written.name} by its name; give one of the two")
    return Job(source, target)


def _folder_jobs(source: Path, target: Path, names: Names) -> list[Job]:
    if target == STREAM:
        raise InputError(f"OUT -: {source} is a folder, so OUT must be a folder too")
    if target.is_file() or format_of(target.suffix) is not None:
        raise InputError(f"{target}: {source} is a folder, so OUT must be a folder too")
    files = list_pictures(source, besides=target)
    if target.exists() and target.samefile(source):  # what an earlier run has made there is no picture to restore
        made = {names.of(file): file for file in files}
        files = [file for file in files if made.get(file, file) == file]
    found: dict[Path, Path] = {}
    for file in files:
        within = names.of(file.relative_to(source))
        if within in found:
            raise InputError(f"{source}: {found[within].name} and {file.name} would both become {within.name}")
        found[within] = file
    return [Job(file, target / within) for within, file in found.items()]
