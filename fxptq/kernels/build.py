"""Which kernels run on this machine: a library that the wheel carries, one compiled here, or none.

A library of the wheel is chosen by what the processor has (targets.py, shipped.py). Where there is none for it, or it
cannot be used, the kernels are compiled for this very machine, once. That library lies in the user's cache under a
digest of the sources, the compiler, its view of the processor and the version of torch, so that a change of any of them
builds anew. It is written beside its place, tried out by a process of its own (trial.py) and moved there with its
SHA-256 beside it: a library that is cut off, damaged or not ours is never loaded here, but built again. Of several
processes that need it one builds. Where nothing can be built the operators run in plain torch, as exactly and more
slowly; `backend()` says which it is, and why.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fxptq.errors import InputError
from fxptq.io.cache import cache_folder
from fxptq.io.download import file_digest
from fxptq.io.locks import exclusive
from fxptq.kernels import compiler, shipped
from fxptq.kernels.backend import Installed
from fxptq.kernels.compiler import UnavailableError
from fxptq.kernels.once import once
from fxptq.kernels.targets import TARGETS, runnable_here
from fxptq.kernels.trial import digest_of, is_sound, record_of, try_out

_log = logging.getLogger("fxptq")

CHOICE = "FXPTQ_KERNELS"
"""The environment variable that chooses the kernels: the name of a target, options of the compiler such as
`-march=haswell`, `compile` for this very processor, or `none`."""

NATIVE = ("-march=native",)


@once
def backend() -> Installed:
    """Loads the kernels into the operators, compiled now if need be (some twenty seconds, once a machine).

    Raises:
        InputError: $FXPTQ_KERNELS is none of its values, or names a target that this processor is not.
    """
    choice = os.environ.get(CHOICE, "")
    if choice == "none":
        return Installed("torch", f"{CHOICE}=none")
    reason = ""
    for find in _libraries(choice):
        if reason:
            _log.warning("the kernels are compiled here, because those of this installation cannot be used: %s", reason)
        try:
            path = find()
            return Installed(_load(path), digest=digest_of(path)[:16])
        except (UnavailableError, InputError, OSError) as error:
            reason = str(error)
    _log.warning("integer kernels run in plain torch, exact but slow: %s", reason)
    return Installed("torch", reason)


def _libraries(choice: str) -> list[Callable[[], Path]]:
    """The ways to a library, the best first."""
    if choice == "compile" or choice.startswith("-"):
        flags: Sequence[str] = NATIVE if choice == "compile" else choice.split()
        return [lambda: library(flags)]
    here = runnable_here()
    targets = [target for target in here if choice in ("", target.name)]
    if choice and not targets:
        why = "this processor cannot run these kernels" if choice in {t.name for t in TARGETS} else "unknown"
        names = ", ".join([*(target.name for target in here), "compile"])
        raise InputError(f"{CHOICE}={choice}: {why}; possible here: {names}, none, or options of the compiler")
    compiled = targets[0].flags if choice else NATIVE
    carried = [target for target in targets[:1] if shipped.path_of(target).exists()]
    return [*(lambda target=target: shipped.library(target) for target in carried), lambda: library(compiled)]


def _load(path: Path) -> str:
    operators: Any = torch.ops
    operators.load_library(str(path))
    return str(operators.fxptq_native.isa())


def library(flags: Sequence[str] = NATIVE) -> Path:
    """Path of the library compiled here, compiled now if it is not in the cache.

    Args:
        flags: compiler options that choose the processor.

    Raises:
        InputError: there is no folder for a cache.
        OSError: the cache cannot be written.
        UnavailableError: there is no compiler, or what it makes cannot be used.
    """
    cxx = compiler.find()
    path = _place(cxx, flags)
    if is_sound(path):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path):
        if not is_sound(path):  # or another process has built it meanwhile
            _build(path, cxx, flags)
    return path


def compiled(flags: Sequence[str] = NATIVE) -> Path | None:
    """Path of the library that was compiled here before; None where `library` would compile it.

    Raises:
        InputError: there is no folder for a cache.
        UnavailableError: there is no compiler.
    """
    path = _place(compiler.find(), flags)
    return path if is_sound(path) else None


def _place(cxx: str, flags: Sequence[str]) -> Path:
    return cache_folder() / "kernels" / _digest(cxx, flags) / "fxptq_kernels.so"


def _build(path: Path, cxx: str, flags: Sequence[str]) -> None:
    part, record = path.with_suffix(".part"), record_of(path)
    _log.info("building the integer kernels with %s, once", cxx)
    try:
        compiler.compile_library(part, cxx, flags)
        try_out(part, str(path))
        digest = file_digest(part)
        record.unlink(missing_ok=True)
        part.replace(path)
        part.write_text(digest, encoding="ascii")
        part.replace(record)
    finally:
        part.unlink(missing_ok=True)


def _digest(cxx: str, flags: Sequence[str]) -> str:
    digest = hashlib.sha256(compiler.macros(cxx, flags).encode())
    settings = [*compiler.options(flags), *compiler.link_options()]
    digest.update(f"{torch.__version__} {platform.libc_ver()} {settings}".encode())
    for source in sorted(path for path in compiler.SOURCES.rglob("*") if path.is_file()):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:24]
