"""Benchmark sets: pairs of a network's input and the clean picture it should give back.

Promises: pictures are read when asked for, one pair at a time; what a set lacks is found when it is opened and named
together with what was expected; noise and compression are the same at every run.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fxptq.data.degrade import Degradation
from fxptq.data.pairs import INPUT, TARGET, is_paired, pairs_in
from fxptq.data.sources import clean_pictures
from fxptq.data.synthetic import synthetic_image
from fxptq.errors import InputError
from fxptq.io.images import list_images, pixels_in, read_image
from fxptq.sizes import ANY_SIZE, Size, Sizes

SAMPLES = "samples"  # the name of the set made without files


@dataclass(frozen=True)
class Pair:
    """One picture of a set.

    Attributes:
        name: the clean picture's file name without its suffix; with it where two pictures differ in nothing else.
        lr: the network's input, `[h, w, C]` float32 on the scale 0..255.
        hr: the clean picture, `[h * scale, w * scale, C]` uint8.
    """

    name: str
    lr: npt.NDArray[np.float32]
    hr: npt.NDArray[np.uint8]


class Maker(Protocol):
    """Makes a pair when it is called."""

    @property
    def pixels(self) -> int:
        """About the number of pixels of the pair's pictures, without reading them; 0 if it is not known."""
        ...

    def __call__(self) -> Pair:
        """The pair."""
        ...


@dataclass(frozen=True)
class BenchmarkSet:
    """A named sequence of pairs, each made when it is asked for.

    Attributes:
        name: as given on the command line and shown in reports.
        task: what separates input and clean picture.
        makers: one for each pair.
    """

    name: str
    task: Degradation
    makers: tuple[Maker, ...]

    @property
    def scale(self) -> int:
        """Size of the clean picture over the size of the input."""
        return self.task.scale

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.makers)

    def __iter__(self) -> Iterator[Pair]:
        """The pairs in order of name."""
        return (make() for make in self.makers)


def parse_data(option: str) -> tuple[str, Path]:
    """Split `NAME=DIR`.

    Raises:
        InputError: one of the two is missing.
    """
    name, _, folder = option.partition("=")
    if not (name and folder):
        raise InputError(f"{option!r}: expected NAME=DIR, such as Set5=data/Set5")
    return name, Path(folder)


def open_set(name: str, folder: Path, degradation: Degradation, *, channels: int = 3, seed: int = 0) -> BenchmarkSet:
    """Open a set on disk.

    For super-resolution, `folder` holds HR/ and LR_bicubic/X2, X3, X4 with the inputs named after the clean pictures
    (HR/baby.png, LR_bicubic/X4/babyx4.png: the layout of BasicSR); clean pictures are cropped at the bottom and right
    to the input's size times the scale. For everything else it holds HR/, or the clean pictures themselves, and the
    degradation is applied as they are read, with noise that depends only on the seed and the picture's name. A folder
    that holds input/ and target/ has real inputs, which are taken as they are, whatever the task.

    Args:
        name: what to call the set.
        folder: where it is.
        degradation: the task.
        channels: 3 for RGB, 1 for grey.
        seed: of the noise.

    Raises:
        InputError: a folder or a picture is missing; the message names it and what was expected.
    """
    scale = degradation.scale
    if is_paired(folder):
        stored = (_Stored(pair.input, pair.target, scale, channels, pair.name) for pair in pairs_in(folder))
        return BenchmarkSet(name, degradation, tuple(stored))
    if degradation.kind == "pairs":
        raise InputError(f"{name}: {folder} holds no pairs; expected {folder / INPUT} and {folder / TARGET}")
    if scale == 1:
        files = list_images(folder / "HR" if (folder / "HR").is_dir() else folder)
        stems = Counter(file.stem for file in files)
        shown = [file.stem if stems[file.stem] == 1 else file.name for file in files]
        makers = (_Degraded(file, degradation, channels, seed, title) for file, title in zip(files, shown, strict=True))
        return BenchmarkSet(name, degradation, tuple(makers))
    if not (folder / "HR").is_dir():
        raise InputError(
            f"{name}: {folder} has no folder HR; expected HR/NAME.png and LR_bicubic/X{scale}/NAMEx{scale}.png"
        )
    small = folder / "LR_bicubic" / f"X{scale}"
    if not small.is_dir():
        raise InputError(f"{name}: there is no folder {small}; expected the inputs there, named NAMEx{scale}.png")
    inputs = _by_stem(name, small)
    pairs = []
    for hr in _by_stem(name, folder / "HR").values():
        lr = inputs.get(f"{hr.stem}x{scale}")
        if lr is None:
            raise InputError(f"{name}: {hr.name} has no input; expected {small / f'{hr.stem}x{scale}.png'}")
        pairs.append(_Stored(lr, hr, scale, channels))
    return BenchmarkSet(name, degradation, tuple(pairs))


def _by_stem(name: str, folder: Path) -> dict[str, Path]:
    """The pictures of a folder by their names without suffix, each of which is given once."""
    found: dict[str, Path] = {}
    for file in list_images(folder):
        if file.stem in found:
            raise InputError(
                f"{name}: {found[file.stem].name} and {file.name} in {folder} are both named {file.stem}; rename one"
            )
        found[file.stem] = file
    return found


def samples(
    degradation: Degradation,
    *,
    channels: int = 3,
    count: int = 8,
    size: int = 64,
    sizes: Sizes = ANY_SIZE,
    seed: int = 0,
) -> BenchmarkSet:
    """A set of generated pictures, for a first look where no benchmark is at hand.

    None of them is ever generated for calibration. Scores on them are no substitute for a benchmark's: they compare
    a network with itself, before and after.

    Args:
        degradation: the task.
        channels: 3 for RGB, 1 for grey.
        count: how many.
        size: height and width of the inputs in pixels, at least.
        sizes: the sizes that the network takes.
        seed: of the pictures.
    """
    makers = tuple(_Generated(i, degradation, channels, sizes.near(size, size), seed) for i in range(count))
    return BenchmarkSet(SAMPLES, degradation, makers)


def held_out(
    source: str | Path,
    degradation: Degradation,
    *,
    channels: int = 3,
    start: int,
    count: int = 6,
    size: int = 48,
    sizes: Sizes = ANY_SIZE,
    seed: int = 0,
) -> BenchmarkSet:
    """A set of pictures from the source of the calibration inputs that come behind those.

    Args:
        source: a folder, or "synthetic". A folder of few pictures gives other crops of them.
        degradation: the task.
        channels: 3 for RGB, 1 for grey.
        start: the number of calibration inputs.
        count: how many.
        size: height and width of the inputs in pixels, at least.
        sizes: the sizes that the network takes.
        seed: of the calibration inputs.
    """
    height, width = (side * degradation.scale for side in sizes.near(size, size))
    pictures = clean_pictures(source, channels, range(start, start + count), (height, width), seed)
    makers = tuple(_Made(f"held-out {i}", hr, degradation, (seed, start + i, 1)) for i, hr in enumerate(pictures))
    return BenchmarkSet("held-out pictures", degradation, makers)


@dataclass(frozen=True)
class _Made:
    name: str
    hr: npt.NDArray[np.uint8]
    degradation: Degradation
    seed: tuple[int, int, int]

    @property
    def pixels(self) -> int:
        return int(self.hr.shape[0]) * int(self.hr.shape[1])

    def __call__(self) -> Pair:
        return Pair(self.name, self.degradation.apply(self.hr, np.random.default_rng(self.seed)), self.hr)


@dataclass(frozen=True)
class _Stored:
    lr: Path
    hr: Path
    scale: int
    channels: int
    name: str = ""

    @property
    def pixels(self) -> int:
        return pixels_in(self.lr)

    def __call__(self) -> Pair:
        lr, hr = read_image(self.lr, self.channels), read_image(self.hr, self.channels)
        height, width = (side * self.scale for side in lr.shape[:2])
        spare = hr.shape[0] - height, hr.shape[1] - width
        if not all(0 <= pixels < self.scale for pixels in spare):
            raise InputError(
                f"{self.lr}: is {lr.shape[1]}x{lr.shape[0]}; expected {hr.shape[1] // self.scale}x"
                f"{hr.shape[0] // self.scale}, "
                + (f"a {self.scale}th of {self.hr}" if self.scale > 1 else f"the size of {self.hr}")
            )
        return Pair(self.name or self.hr.stem, lr.astype(np.float32), hr[:height, :width])


@dataclass(frozen=True)
class _Degraded:
    hr: Path
    degradation: Degradation
    channels: int
    seed: int
    name: str

    @property
    def pixels(self) -> int:
        return pixels_in(self.hr)

    def __call__(self) -> Pair:
        hr = read_image(self.hr, self.channels)
        rng = np.random.default_rng([self.seed, zlib.crc32(self.hr.stem.encode())])
        return Pair(self.name, self.degradation.apply(hr, rng), hr)


@dataclass(frozen=True)
class _Generated:
    index: int
    degradation: Degradation
    channels: int
    size: Size
    seed: int

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]

    def __call__(self) -> Pair:
        height, width = (side * self.degradation.scale for side in self.size)
        # Calibration draws from [seed, index, 0 or 1]; the last number keeps these pictures apart from those.
        rng = np.random.default_rng([self.seed, self.index, 2])
        hr = synthetic_image(height, width, self.channels, rng)
        return Pair(f"sample{self.index}", self.degradation.apply(hr, rng), hr)
