"""OpenVINO as a peer: a network converted for one size, in float32, bfloat16, or 8 bits by NNCF."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def run(network: nn.Module, x: Tensor, threads: int, precision: str) -> Callable[[], Any]:
    """Prepares the network in `precision` (f32 or bf16)."""
    return _compiled(_converted(network, x), x, threads, precision)


def run_int8(network: nn.Module, x: Tensor, threads: int, transformer: bool) -> Callable[[], Any]:
    """Prepares the network as NNCF's defaults quantize it; the remaining float operations use bfloat16 if they can."""
    import nncf  # noqa: PLC0415  # a peer is loaded only when it is measured

    nncf.set_log_level("ERROR")
    with contextlib.redirect_stdout(io.StringIO()):  # its progress bars would stand in the table
        quantized = nncf.quantize(
            _converted(network, x),
            nncf.Dataset([x.numpy()]),
            subset_size=1,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        )
    return _compiled(quantized, x, threads, "bf16")


def _converted(network: nn.Module, x: Tensor) -> Any:
    import openvino  # noqa: PLC0415  # likewise

    return openvino.convert_model(network, example_input=x, input=[tuple(x.shape)])


def _compiled(model: Any, x: Tensor, threads: int, precision: str) -> Callable[[], Any]:
    import openvino  # noqa: PLC0415  # likewise

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
    }
    fast, array = openvino.Core().compile_model(model, "CPU", settings), x.numpy()
    return lambda: fast([array])
