"""Compiles the integer kernels for this very machine, once, and loads them.

The library lies in the user's cache under a digest of the sources, the compiler, its view of the processor and the
version of torch, so that a change of any of them builds anew. It is written beside its place, loaded by a process on
trial and moved there with its SHA-256 beside it: a library that is cut off, damaged or not ours is never loaded here,
where it could take the process with it, but built again. Of several processes that need it one builds. Where nothing
can be built the operators run in plain torch, as exactly and more slowly; `backend()` says which it is, and why.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from fxptq.errors import InputError
from fxptq.io.cache import cache_folder
from fxptq.io.download import file_digest
from fxptq.io.locks import exclusive
from fxptq.kernels.backend import Installed
from fxptq.kernels.once import once

_log = logging.getLogger("fxptq")

_SOURCES = Path(__file__).parent / "native"
_TIMEOUT = 600  # seconds
_TRIAL = "import sys, torch; torch.ops.load_library(sys.argv[1]); print(torch.ops.fxptq_native.isa())"


@once
def backend() -> Installed:
    """Builds the kernels if need be (some twenty seconds, once a machine) and loads them into the operators."""
    operators: Any = torch.ops
    try:
        path = library()
        operators.load_library(str(path))
    except (_UnavailableError, InputError, OSError) as error:
        _log.warning("integer kernels run in plain torch, exact but slow: %s", error)
        return Installed("torch", str(error))
    return Installed(str(operators.fxptq_native.isa()))


def library(target: Sequence[str] | None = None) -> Path:
    """Path of the compiled library, compiled now if it is not in the cache.

    Args:
        target: compiler options that choose the processor; None for the options in the environment variable
            `FXPTQ_KERNEL_TARGET` (such as `-march=haswell`), or for this very processor if it is not set.

    Raises:
        InputError: there is no folder for a cache.
        OSError: the cache cannot be written.
    """
    compiler = _compiler()
    if target is None:
        target = os.environ.get("FXPTQ_KERNEL_TARGET", "-march=native").split()
    path = cache_folder() / "kernels" / _digest(compiler, target) / "fxptq_kernels.so"
    if _is_sound(path):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path):
        if not _is_sound(path):  # or another process has built it meanwhile
            _build(path, compiler, target)
    return path


def _build(path: Path, compiler: str, target: Sequence[str]) -> None:
    part, record = path.with_suffix(".part"), _record(path)
    _log.info("building the integer kernels with %s, once", compiler)
    try:
        _compile(part, compiler, target)
        _try_out(part, path)
        digest = file_digest(part)
        record.unlink(missing_ok=True)
        part.replace(path)
        part.write_text(digest, encoding="ascii")
        part.replace(record)
    finally:
        part.unlink(missing_ok=True)


def _compile(library: Path, compiler: str, target: Sequence[str]) -> None:
    """Compiles the sources, as many at a time as there are processors, and links them."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:

        def compiled(source: Path) -> str:
            compiled_file = str(Path(folder) / f"{source.stem}.o")
            _run([compiler, *_options(target), "-c", str(source), "-o", compiled_file])
            return compiled_file

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = list(pool.map(compiled, sorted(_SOURCES.rglob("*.cpp"))))
        _run([compiler, "-shared", *objects, "-o", str(library), *_link_options()])


def _record(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _is_sound(path: Path) -> bool:
    """Whether the library is the one that was built and tried out here, byte for byte."""
    try:
        return _record(path).read_bytes() == file_digest(path).encode()
    except OSError:
        return False


def _try_out(library: Path, path: Path) -> None:
    """Loads a library in a process of its own, which may die of it."""
    if not sys.executable:
        return
    try:
        _run([sys.executable, "-c", _TRIAL, str(library.absolute())])
    except _UnavailableError as error:
        raise _UnavailableError(f"{path}: what was built cannot be loaded: {error}") from error


class _UnavailableError(Exception):
    """The kernels cannot be built here."""


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise _UnavailableError("no C++ compiler found (set CXX, or install g++)")


def _options(target: Sequence[str]) -> list[str]:
    include = Path(torch.__file__).parent / "include"
    return ["-std=c++20", "-O3", *target, "-ffp-contract=fast", "-fPIC", "-fvisibility=hidden", f"-I{include}"]


def _link_options() -> list[str]:
    libraries = Path(torch.__file__).parent / "lib"
    return [f"-L{libraries}", "-ltorch_cpu"]


def _digest(compiler: str, target: Sequence[str]) -> str:
    # The predefined macros name the compiler's version and every extension of the processor it will use.
    macros = _run([compiler, *target, "-dM", "-E", "-x", "c++", os.devnull])
    digest = hashlib.sha256(macros.encode())
    digest.update(f"{torch.__version__} {platform.libc_ver()} {[*_options(target), *_link_options()]}".encode())
    for source in sorted(path for path in _SOURCES.rglob("*") if path.is_file()):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:24]


def _run(command: Sequence[str]) -> str:
    try:
        # The command is the user's own compiler on the package's own sources.
        done = subprocess.run(  # noqa: S603
            command, check=True, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT
        )
    except subprocess.TimeoutExpired as error:
        raise _UnavailableError(f"{command[0]} took longer than {_TIMEOUT} s") from error
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line.lower()] or [
            f"status {error.returncode}"
        ]
        raise _UnavailableError(
            f"{command[0]} failed: {lines[-1 if command[0] == sys.executable else 0].strip()}"
        ) from error
    return done.stdout
