"""Where trained weights come from: a download that was asked for, or the package.

Promises: nothing here touches the network; a file in the cache that is not what was published is refused; whatever is
missing is named with the URL to get it from and the path to put it at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from fxptq.errors import InputError
from fxptq.io.cache import cache_folder
from fxptq.io.download import Checksum, Downloaded, Progress, compare, download, file_digest

__all__ = ["WeightsRow", "WeightsSource", "cache_folder", "download", "fetch", "known_weights", "locate"]


@dataclass(frozen=True)
class WeightsSource:
    """What is known about one set of weights.

    Attributes:
        name: of the recipe.
        bundled: file in the package fxptq.models.weights, "" for none.
        url: where the authors publish them, "" for nowhere.
        sha256: of the file at `url` in hexadecimal, or its first 8 or more digits; "" if unknown.
        file: name of the download in the cache.
    """

    name: str
    bundled: str = ""
    url: str = ""
    sha256: str = ""
    file: str = ""

    @property
    def cached(self) -> Path:
        """Where the download lies, or would lie."""
        return cache_folder() / self.file


@dataclass(frozen=True)
class WeightsRow:
    """The state of one set of weights.

    Attributes:
        name: of the recipe.
        state: "bundled", "cached" or "absent".
        path: where the file is, or where a download would be put; None if there is neither a file nor a URL, or no
            folder for downloads.
        bytes: size of the file; 0 if absent.
        checksum: "unknown" where there is nothing to compare with: no published checksum, a bundled or an absent file.
        url: where to download it, "" for nowhere.
    """

    name: str
    state: Literal["bundled", "cached", "absent"]
    path: Path | None
    bytes: int
    checksum: Checksum
    url: str


def locate(source: WeightsSource) -> Path:
    """The file of the weights: the download where there is one, for it was asked for; else the bundled one.

    Raises:
        InputError: they are not on this machine, with where to get them and where to put them; or the file in the
            cache is not the published one.
    """
    row = _state(source)
    if row.state == "absent" and source.url:
        raise InputError(
            f"the weights of {source.name} are not on this machine: download {source.url} and put it at "
            f"{source.cached}, or give a file with --weights FILE"
        )
    if row.path is None:
        missing = f"{source.bundled} is not in the installed package" if source.bundled else "its recipe names none"
        raise InputError(f"no weights for {source.name}: {missing}; give a file with --weights FILE")
    if row.checksum == "bad":
        raise InputError(
            f"{row.path}: is not the published file: its sha256 is {file_digest(row.path)}, expected {source.sha256}; "
            f"replace it with {source.url}, or give a file with --weights FILE"
        )
    return row.path


def fetch(source: WeightsSource, progress: Progress | None = None) -> Downloaded:
    """Download the weights into the cache; see `download` for what can go wrong.

    Raises:
        InputError: their authors publish no URL.
    """
    if not source.url:
        raise InputError(f"the recipe of {source.name} names no URL to download its weights from")
    return download(source.url, source.sha256, source.cached, progress)


def known_weights(sources: Iterable[WeightsSource]) -> list[WeightsRow]:
    """The state of each set of weights, in the order given."""
    return [_state(source) for source in sources]


def _state(source: WeightsSource) -> WeightsRow:
    cached = _cached(source)
    if cached is not None and cached.is_file():
        checksum = compare(file_digest(cached), source.sha256) if source.sha256 else "unknown"
        return WeightsRow(source.name, "cached", cached, cached.stat().st_size, checksum, source.url)
    if source.bundled:
        bundled = Path(str(resources.files("fxptq.models.weights") / source.bundled))
        if bundled.is_file():
            return WeightsRow(source.name, "bundled", bundled, bundled.stat().st_size, "unknown", source.url)
    return WeightsRow(source.name, "absent", cached if source.url else None, 0, "unknown", source.url)


def _cached(source: WeightsSource) -> Path | None:
    """Where a download would lie; None if there can be none."""
    try:
        return source.cached if source.file else None
    except InputError:  # no home folder: whatever is bundled can still be used
        return None
