"""Folders of pictures of any size and depth: walked without a list of their files, and sampled by a seed.

Promises: a walk holds the folders that are open and no list of files, and reads no file. A sample depends on the seed
and on the files' names below the folder alone, not on the order in which the system lists them, and of two samples with
one seed the smaller one is the beginning of the larger one.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fxptq.errors import InputError
from fxptq.io.images import SUFFIXES

_Place = tuple[int, int]
"""Device and number of a folder, whatever path led to it."""


@dataclass(frozen=True)
class Sample:
    """Pictures of a folder.

    Attributes:
        files: in the order of the sample.
        total: number of pictures in the folder.
    """

    files: tuple[Path, ...]
    total: int


def walk_pictures(folder: Path, besides: Path | None = None) -> Iterator[Path]:
    """Yields the pictures in a folder and in the folders below it, by suffix, in the order of the system.

    Hidden files and folders are passed over. Links are followed, except to a folder that the walk is already in.

    Args:
        folder: where to look.
        besides: a folder below it that is passed over.

    Raises:
        InputError: the folder or one below it cannot be listed.
    """
    apart = besides is not None and besides.exists() and not (folder.exists() and besides.samefile(folder))
    return _walk(folder, (_place_of(besides),) if besides is not None and apart else ())


def list_pictures(folder: Path, besides: Path | None = None) -> list[Path]:
    """The pictures that `walk_pictures` finds, in order of path.

    Raises:
        InputError: there is none, or a folder cannot be listed.
    """
    found = sorted(walk_pictures(folder, besides))
    if not found:
        raise _without_pictures(folder)
    return found


def _place_of(folder: Path) -> _Place:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _walk(folder: Path, above: tuple[_Place, ...]) -> Iterator[Path]:
    try:
        place = _place_of(folder)
        if place in above:
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    yield from _walk(Path(entry.path), (*above, place))
                elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file():  # noqa: PTH122  # quick
                    yield Path(entry.path)
    except FileNotFoundError:
        raise InputError(f"{folder}: there is no such folder") from None
    except NotADirectoryError:
        raise InputError(f"{folder}: is a file; expected a folder of pictures") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed: {error.strerror}") from None


def check_pictures(folder: Path) -> None:
    """Looks for a first picture in a folder and the folders below it.

    Raises:
        InputError: there is none, or a folder cannot be listed.
    """
    if next(walk_pictures(folder), None) is None:
        raise _without_pictures(folder)


def sample_pictures(folder: Path, most: int, seed: int) -> Sample:
    """Draws pictures of a folder and of the folders below it; see `sample_files`.

    Raises:
        InputError: there is no picture, or a folder cannot be listed.
    """
    return sample_files(walk_pictures(folder), folder, most, seed)


def sample_files(files: Iterable[Path], folder: Path, most: int, seed: int) -> Sample:
    """Draws from files that lie below a folder, each set of them as likely as any other.

    Every file has a random rank, a digest of the seed and its name below the folder. The sample has the files of the
    lowest ranks, in the order of their ranks, so that a file that is added or removed changes one place of it at most.

    Args:
        files: any number of them, in any order.
        folder: the folder.
        most: the largest number of files to draw, at least 1.
        seed: of the ranks.

    Raises:
        InputError: there is no file.
    """
    total = 0

    def ranked() -> Iterator[tuple[bytes, Path]]:
        nonlocal total
        for path in files:
            total += 1
            yield _rank(seed, _name(path, folder)), path

    drawn = tuple(path for _, path in heapq.nsmallest(most, ranked()))
    if not drawn:
        raise _without_pictures(folder)
    return Sample(drawn, total)


def _without_pictures(folder: Path) -> InputError:
    return InputError(f"{folder}: holds no pictures; expected files named {', '.join(sorted(SUFFIXES))}")


def _rank(seed: int, name: bytes) -> bytes:
    return hashlib.blake2b(name, digest_size=16, key=seed.to_bytes(8, "little")).digest()


def _name(path: Path, folder: Path) -> bytes:
    """The path below the folder, the same on every system."""
    return os.fsencode(path.relative_to(folder).as_posix())


def sample_digest(files: Iterable[Path], folder: Path) -> str:
    """The SHA-256 of a list of files: of the lines that `sha256sum` prints for them in their order, run in the folder.

    Raises:
        InputError: a file cannot be read.
    """
    lines = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        lines.update(f"{content}  ".encode() + _name(path, folder) + b"\n")
    return lines.hexdigest()
