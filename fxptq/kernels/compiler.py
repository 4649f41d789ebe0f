"""The C++ compiler of this machine, and how it makes a library of the integer kernels.

The library speaks PyTorch's stable C interface (native/ops), so it knows neither the version of Python nor that of
torch. Nothing here loads what was made.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "native"
_TIMEOUT = 600  # seconds


class UnavailableError(Exception):
    """A library of kernels cannot be made, or not be used, here; the message says why."""


def find() -> str:
    """Path of the compiler: $CXX, or the first of the usual names.

    Raises:
        UnavailableError: there is none.
    """
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise UnavailableError("no C++ compiler found (set CXX, or install g++)")


def compile_library(library: Path, compiler: str, flags: Sequence[str]) -> None:
    """Compiles the sources, as many at a time as there are processors, and links them.

    Args:
        library: the file to write.
        compiler: as of `find`.
        flags: compiler options that choose the processor.

    Raises:
        UnavailableError: the compiler fails; the message has its first line about an error.
        OSError: the folder of the library cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:

        def compiled(source: Path) -> str:
            path = str(Path(folder) / f"{source.stem}.o")
            run([compiler, *options(flags), "-c", str(source), "-o", path])
            return path

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = list(pool.map(compiled, sorted(SOURCES.rglob("*.cpp"))))
        run([compiler, "-shared", *objects, "-o", str(library), *link_options()])


def options(flags: Sequence[str]) -> list[str]:
    """The options that compile a source."""
    include = Path(torch.__file__).parent / "include"
    short = [f"-fmacro-prefix-map={SOURCES}=fxptq", f"-fmacro-prefix-map={include}=."]  # paths in messages
    return ["-std=c++20", "-O3", *flags, "-ffp-contract=fast", "-fPIC", "-fvisibility=hidden", *short, f"-I{include}"]


def link_options() -> list[str]:
    """The options that link the library. The process that loads it has torch already, so no path to torch is kept."""
    return [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu"]


def macros(compiler: str, flags: Sequence[str]) -> str:
    """The predefined macros: they name the version of the compiler and every extension of the processor it will use.

    Raises:
        UnavailableError: the compiler fails, as for a processor that it does not know.
    """
    return run([compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull])


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """What a command prints.

    Raises:
        UnavailableError: it fails, or takes more than ten minutes.
    """
    try:
        # The command is the user's own compiler on the package's own sources, or this very interpreter.
        done = subprocess.run(  # noqa: S603
            command, check=True, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{command[0]} took longer than {_TIMEOUT} s") from error
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line.lower()] or [
            f"status {error.returncode}"
        ]
        raise UnavailableError(
            f"{command[0]} failed: {lines[-1 if command[0] == sys.executable else 0].strip()}"
        ) from error
    return done.stdout
