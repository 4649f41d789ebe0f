"""ONNX Runtime as a peer: a network exported for one size, in float32 or statically quantized to 8 bits."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def run(network: nn.Module, x: Tensor, threads: int) -> Callable[[], Any]:
    """Prepares the network in float32."""
    with tempfile.TemporaryDirectory() as folder:
        return _session(_exported(network, x, Path(folder)), x, threads)


def run_int8(network: nn.Module, x: Tensor, threads: int) -> Callable[[], Any]:
    """Prepares the network as ONNX Runtime's own tool quantizes it: 8 bits, weights per channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static  # noqa: PLC0415  # a peer
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415  # likewise

    class One(CalibrationDataReader):  # type: ignore[misc]  # the peer has no types
        def __init__(self) -> None:
            self.unread = [{"x": x.numpy()}]

        def get_next(self) -> dict[str, Any] | None:
            return self.unread.pop() if self.unread else None

    with tempfile.TemporaryDirectory() as folder:
        plain, ready, quantized = (Path(folder) / name for name in ("x.onnx", "ready.onnx", "int8.onnx"))
        _exported(network, x, Path(folder))
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        quantize_static(str(ready), str(quantized), One(), quant_format=QuantFormat.QDQ, per_channel=True)
        return _session(quantized, x, threads)


def _exported(network: nn.Module, x: Tensor, folder: Path) -> Path:
    path = folder / "x.onnx"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        torch.onnx.export(network, (x,), str(path), input_names=["x"], dynamo=True, external_data=False)
    return path


def _session(path: Path, x: Tensor, threads: int) -> Callable[[], Any]:
    import onnxruntime  # noqa: PLC0415  # a peer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x.numpy()})
