"""Exports a quantized network: chooses the graph, makes the file, compares it with the simulation, and writes it.

A file is written only if ONNX Runtime, where it is installed, runs it at every size that the file is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fxptq.errors import FxptqError, InputError
from fxptq.export import runtime
from fxptq.export.onnx_file import OPSET, OnnxFile, check_installed, check_opset, to_onnx
from fxptq.export.pt2 import to_pt2
from fxptq.export.runtime import Comparison
from fxptq.export.subject import Inputs, Subject, subject_of
from fxptq.graph.program import Program
from fxptq.io.files import check_writable, write_bytes
from fxptq.sizes import Size, Sizes

ONNX, PT2 = ".onnx", ".pt2"

ALIKE = 40.0
"""The PSNR in dB, of a runtime's output against the simulation's, below which a file does not serve a size."""

_SHOWN = 5


@dataclass(frozen=True)
class Settings:
    """The settings of an export.

    Attributes:
        size: height and width of a file for one size; None for every size that the network's graph holds for.
        opset: the version of ONNX's operators.
        integers: whether to refuse a network with sites that a runtime computes in float.
    """

    size: Size | None = None
    opset: int = OPSET
    integers: bool = False


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: the path of the file.
        nbytes: its size.
        free: the axes of a picture whose lengths are free: 0 for the batch, 2 and 3 for height and width.
        onnx: the account of an ONNX file; None for another format.
        comparisons: ONNX Runtime beside the simulation; empty where it is not installed.
        unfit: sizes that the network takes and the file does not serve.
    """

    path: Path
    nbytes: int
    free: tuple[int, ...]
    onnx: OnnxFile | None = None
    comparisons: tuple[Comparison, ...] = ()
    unfit: tuple[Size, ...] = ()


def check_target(path: Path, settings: Settings) -> None:
    """Checks the name of the file, the options and the packages, before the work.

    Raises:
        InputError: naming what does not fit, and what to do.
    """
    if path.suffix not in (ONNX, PT2):
        raise InputError(f"--out {path}: expected a name that ends in {ONNX} or {PT2}")
    if path.suffix == ONNX:
        check_opset(settings.opset)
        check_installed()
    elif settings.integers or settings.opset != OPSET:
        raise InputError(f"--opset and --integers are for {ONNX} files; leave them out for {path}")
    check_writable(path)


def export(
    program: Program,
    example: Inputs,
    path: Path,
    settings: Settings,
    *,
    sizes: Sizes,
    white: float,
    facts: Mapping[str, str],
) -> Exported:
    """Writes a quantized network as .onnx or .pt2.

    Args:
        program: the network; its quantizers are on.
        example: inputs like those that it was captured with.
        path: where to write; the ending chooses the format.
        settings: see `Settings`.
        sizes: the sizes that the network takes.
        white: the value of white in the input.
        facts: metadata for an ONNX file.

    Raises:
        InputError: the options do not fit the network or the path, or a call of the network has no ONNX form.
        FxptqError: ONNX Runtime or torch.export fails on the network.
    """
    check_target(path, settings)
    if path.suffix == PT2:
        own: Size = (example[0].shape[-2], example[0].shape[-1])
        subject = subject_of(program, example, sizes, size=settings.size or own, white=white)
        data = to_pt2(program, subject)
        write_bytes(path, data)
        return Exported(path, len(data), ())
    subject = subject_of(program, example, sizes, size=settings.size, white=white)
    file = to_onnx(program, subject, facts, settings.opset)
    if settings.integers and file.in_float:
        shown = ", ".join(list(file.in_float)[:_SHOWN]) + (", ..." if len(file.in_float) > _SHOWN else "")
        raise InputError(
            f"--integers: runtimes compute {len(file.in_float)} of {file.sites} sites in float: {shown}. Quantize with "
            "--zero-on-grid, which gives every grid a code for 0"
        )
    comparisons, unfit = _compared(file.data, subject, white)
    write_bytes(path, file.data)
    return Exported(path, len(file.data), subject.free, file, comparisons, unfit)


def _compared(data: bytes, subject: Subject, white: float) -> tuple[tuple[Comparison, ...], tuple[Size, ...]]:
    """The file beside the simulation, and the sizes that it does not serve."""
    if not runtime.installed():
        return (), tuple(trial.size for trial in subject.elsewhere)
    comparisons, unfit = runtime.compare(data, subject.trials, white), []
    for trial in subject.elsewhere:
        # The graph may be right beyond the conditions under which it was captured; then the file serves these sizes.
        try:
            found = runtime.compare(data, [trial], white)
        except FxptqError:
            found = ()
        if found and found[0].psnr >= ALIKE:
            comparisons += found
        else:
            unfit.append(trial.size)
    return comparisons, tuple(unfit)
