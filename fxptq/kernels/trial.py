"""Whether a library of kernels may be loaded into this process, which a bad one could take with it.

Two questions: is the file the one that was made, byte for byte (its SHA-256 lies beside it), and does a process of its
own, which may die of it, load it and compute with it?
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from fxptq.io.download import file_digest
from fxptq.kernels import ops, panels
from fxptq.kernels.compiler import UnavailableError, run

PROGRAM = ("-P", "-m", "fxptq.kernels.trial")
"""The arguments that make this interpreter try a library out."""


def record_of(library: Path) -> Path:
    """The file beside a library that has its SHA-256."""
    return library.with_suffix(".sha256")


def digest_of(library: Path) -> str:
    """The SHA-256 of a sound library, from its record."""
    return record_of(library).read_text(encoding="ascii")


def is_sound(library: Path) -> bool:
    """Whether a library is the file that its record was made for."""
    try:
        return record_of(library).read_bytes() == file_digest(library).encode()
    except OSError:
        return False


def try_out(library: Path, name: str = "") -> None:
    """Loads a library in a process of its own, which computes a layer with it.

    Args:
        library: the file.
        name: what a message calls it, if not its path.

    Raises:
        UnavailableError: the process fails or dies, or the layer is wrong.
    """
    if not sys.executable:
        return
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        run([sys.executable, *PROGRAM, str(library.absolute())], environment)
    except UnavailableError as error:
        raise UnavailableError(f"{name or library}: what was built cannot be loaded: {error}") from error


def main(library: str) -> None:
    """Loads a library and compares one of its layers with plain torch; an error or the end of the process says no."""
    operators: Any = torch.ops
    operators.load_library(library)
    torch.manual_seed(0)
    codes = torch.randint(0, 256, (5, 70), dtype=torch.uint8)
    weight = panels.pack_weight(torch.randint(-128, 128, (90, 70)).to(torch.int8))
    ones = panels.pad_columns(torch.ones(90))
    epilogue: ops.Epilogue = {
        "scale": ones,
        "row_scale": None,
        "activation": int(ops.Activation.NONE),
        "slope": 0.0,
        "residual": None,
        "levels": None,
        "out_scale": None,
        "out_offset": None,
    }
    found = operators.fxptq.linear(codes, weight, columns=90, bias=torch.zeros_like(ones), **epilogue)
    if not torch.equal(found, ops.linear(codes, weight, columns=90, bias=torch.zeros_like(ones), **epilogue)):
        raise UnavailableError("error: the kernels compute wrong sums on this processor")


if __name__ == "__main__":
    main(sys.argv[1])
