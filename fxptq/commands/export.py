"""`fxptq export`: a checkpoint as a file for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fxptq.commands.evaluate import open_checkpoint
from fxptq.export.write import Exported, Settings, check_target


def run(checkpoint: Path, target: Path, factory: str | None, settings: Settings) -> Exported:
    """Writes a checkpoint as .onnx or .pt2; see `QuantizedModel.export`.

    Raises:
        FxptqError: as `QuantizedModel.export`, or the checkpoint cannot be read.
    """
    check_target(target, settings)
    quantized = open_checkpoint(checkpoint, factory)
    return quantized.export(target, size=settings.size, opset=settings.opset, integers=settings.integers)


def as_json(exported: Exported) -> dict[str, Any]:
    """The shape scripts rely on."""
    onnx = exported.onnx
    in_float, wider = (onnx.in_float, onnx.wider) if onnx else ({}, {})
    return {
        "file": str(exported.path),
        "bytes": exported.nbytes,
        "free": [name for axis, name in ((0, "batch"), (2, "height"), (3, "width")) if axis in exported.free],
        "opset": onnx and onnx.opset,
        "sites": onnx and onnx.sites,
        "float_in_runtimes": [{"name": name, "reason": reason} for name, reason in in_float.items()],
        "wider_codes": [{"bits": bits, "weights": count} for bits, count in wider.items()],
        "compared": [
            {"shape": list(one.shape), "psnr": one.psnr, "largest": one.largest} for one in exported.comparisons
        ],
        "unfit_sizes": [list(size) for size in exported.unfit],
    }
