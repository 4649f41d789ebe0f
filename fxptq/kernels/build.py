"""Compiles the integer kernels for this very machine, once, and loads them.

The library lies in the user's cache under a digest of the sources, the compiler, its view of the processor and the
version of torch, so that a change of any of them builds anew. It is written beside its place and moved there: two
processes may build at once. Where nothing can be built the operators run in plain torch, as exactly and more slowly;
`backend()` says which it is, and why.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fxptq.kernels.backend import Installed

_log = logging.getLogger("fxptq")

_HERE = Path(__file__).parent
_SOURCE = _HERE / "ops.cpp"
_TIMEOUT = 600  # seconds


@cache
def backend() -> Installed:
    """Builds the kernels if need be (some twenty seconds, once a machine) and loads them into the operators."""
    operators: Any = torch.ops
    try:
        path = library()
        operators.load_library(str(path))
    except (_UnavailableError, OSError) as error:
        _log.warning("integer kernels run in plain torch, exact but slow: %s", error)
        return Installed("torch", str(error))
    return Installed(str(operators.fxptq_native.isa()))


def library(target: Sequence[str] = ("-march=native",)) -> Path:
    """Path of the compiled library, compiled now if it is not in the cache.

    Args:
        target: compiler options that choose the processor.

    Raises:
        OSError: the cache cannot be written.
    """
    compiler = _compiler()
    folder = _cache_folder() / _digest(compiler, target)
    path = folder / "fxptq_kernels.so"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{os.getpid()}.part"
    _log.info("building the integer kernels with %s, once", compiler)
    try:
        _run([compiler, *_options(target), str(_SOURCE), "-o", str(part), *_link_options()])
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


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
    headers = [f"-I{include}", f"-I{include / 'torch/csrc/api/include'}"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    return ["-std=c++20", "-O3", *target, "-ffp-contract=fast", "-fopenmp", "-fPIC", "-shared", abi, *headers]


def _link_options() -> list[str]:
    libraries = Path(torch.__file__).parent / "lib"
    return [f"-L{libraries}", "-ltorch_cpu", "-lc10"]


def _digest(compiler: str, target: Sequence[str]) -> str:
    # The predefined macros name the compiler's version and every extension of the processor it will use.
    macros = _run([compiler, *target, "-dM", "-E", "-x", "c++", os.devnull])
    digest = hashlib.sha256(macros.encode())
    digest.update(f"{torch.__version__} {[*_options(target), *_link_options()]}".encode())
    for source in sorted([_SOURCE, *_HERE.glob("*.h")]):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:24]


def _run(command: Sequence[str]) -> str:
    try:
        # The command is the user's own compiler on the package's own sources.
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise _UnavailableError(f"{command[0]} took longer than {_TIMEOUT} s") from error
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line] or ["no message"]
        raise _UnavailableError(f"{command[0]} failed: {lines[0].strip()}") from error
    return done.stdout


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fxptq" / "kernels"
