"""The libraries of kernels that a wheel carries: how they are made, and how one is taken.

They lie in `lib/`, one for each target (targets.py), each with its SHA-256. `make wheel` makes them; an installation
from source has none. Before a library is first loaded on a machine, a process of its own tries it out, and a file in
the user's cache remembers that it went well, because a trial takes two seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import torch

from fxptq.errors import InputError
from fxptq.io.cache import cache_folder
from fxptq.io.download import file_digest
from fxptq.kernels import compiler
from fxptq.kernels.compiler import UnavailableError
from fxptq.kernels.targets import TARGETS, Target, features_here, runnable_here
from fxptq.kernels.trial import digest_of, is_sound, record_of, try_out

FOLDER = Path(__file__).parent / "lib"

_GLIBC_OF_LIBSTDCXX = {24: 28, 26: 31, 28: 31, 29: 34, 30: 35, 32: 39}
"""By the last number of GLIBCXX_3.4.N: the minor version of glibc in the systems that first had it (manylinux)."""

_GLIBC_OF_TORCH = 28


def path_of(target: Target) -> Path:
    """Where the library for a target lies if this installation carries it."""
    return FOLDER / f"{target.name}.so"


def library(target: Target) -> Path:
    """The library for a target, verified.

    Raises:
        UnavailableError: it is damaged, or this machine cannot load it; the message says so.
    """
    path = path_of(target)
    if not is_sound(path):
        raise UnavailableError(f"{path} is damaged (its SHA-256 is not that of {record_of(path).name})")
    mark = _mark(path)
    if mark is None or not mark.exists():
        try_out(path)
        if mark is not None:
            with contextlib.suppress(OSError):
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.touch()
    return path


def _mark(path: Path) -> Path | None:
    """The file whose presence says that this sound library went well on this machine; None where there is no cache."""
    setting = [digest_of(path), torch.__version__, platform.machine(), *platform.libc_ver(), *sorted(features_here())]
    try:
        folder = cache_folder()
    except InputError:
        return None
    return folder / "kernels" / "tried" / hashlib.sha256(" ".join(setting).encode()).hexdigest()[:24]


def make(folder: Path) -> list[Path]:
    """Makes the libraries of all targets of this architecture, each with its record; those that run here are tried out.

    Raises:
        UnavailableError: one cannot be made, or fails its trial.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cxx, here = compiler.find(), runnable_here()
    paths = []
    for target in TARGETS:
        if platform.machine() in target.machines:
            path = folder / f"{target.name}.so"
            compiler.compile_library(path, cxx, target.flags)
            if target in here:
                try_out(path)
            record_of(path).write_text(file_digest(path), encoding="ascii")
            paths.append(path)
    return paths


def platform_tag(libraries: Sequence[Path]) -> str:
    """The platform tag of a wheel with these libraries, such as `manylinux_2_34_x86_64`.

    On Linux the tag names the oldest glibc whose systems have every symbol of glibc and libstdc++ that the libraries
    ask for, or that of torch's own wheels.
    """
    plain = re.sub(r"[-.]", "_", sysconfig.get_platform())
    if not plain.startswith("linux_") or platform.libc_ver()[0] != "glibc":
        return plain
    text = b"".join(path.read_bytes() for path in libraries)
    glibc = [int(minor) for minor in re.findall(rb"\0GLIBC_2\.(\d+)", text)]
    oldest = max([*glibc, *map(_glibc_of, map(int, re.findall(rb"\0GLIBCXX_3\.4\.(\d+)", text))), _GLIBC_OF_TORCH])
    return f"manylinux_2_{oldest}_{plain.removeprefix('linux_')}"


def _glibc_of(libstdcxx: int) -> int:
    known = [glibc for version, glibc in sorted(_GLIBC_OF_LIBSTDCXX.items()) if version >= libstdcxx]
    return known[0] if known else int(platform.libc_ver()[1].split(".")[1])
