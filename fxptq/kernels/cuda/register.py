"""Puts the Triton kernels behind the operators on CUDA, or says why they cannot run.

Nothing is compiled here: Triton compiles each kernel when it first runs, and keeps it in its own cache. Where Triton
cannot be used the operators run in plain torch on the GPU, as exactly and more slowly.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

import torch

from fxptq.kernels.backend import Installed
from fxptq.kernels.once import once

_log = logging.getLogger("fxptq")

CAPABILITY = (8, 0)
"""The least compute capability whose matrix units Triton drives with bytes: that of the A100."""

OPERATORS = {
    "quantize": "elementwise",
    "layer_norm_codes": "elementwise",
    "rows_linear": "gemm",
    "rows_conv2d": "convolution",
    "matmul": "matmul",
    "attention": "attention",
}
"""The operators that have a kernel, and the module it is in."""


@once
def backend() -> Installed:
    """Installs the kernels, once, and says what runs the operators on CUDA."""
    reason = obstacle()
    if reason:
        _log.warning("integer kernels run in plain torch on the GPU, exact but slow: %s", reason)
        return Installed("torch", reason)
    _install()
    return Installed("triton")


def obstacle() -> str:
    """Why the kernels cannot run here; empty if they can."""
    return _device_obstacle() or _triton_obstacle()


def _device_obstacle() -> str:
    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < CAPABILITY:
        found, least = ("{}.{}".format(*pair) for pair in (capability, CAPABILITY))
        return f"{torch.cuda.get_device_name()} has compute capability {found}, and the kernels need {least}"
    return ""


def _triton_obstacle() -> str:
    try:
        for module in sorted(set(OPERATORS.values())):
            _module(module)
    except ModuleNotFoundError as error:
        if error.name == "triton":
            return "Triton is not installed (pip install 'fxptq[cuda]')"
        return _broken(error)
    except Exception as error:  # noqa: BLE001  # whatever a broken installation raises, it is the reason
        return _broken(error)
    return ""


def _broken(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"Triton cannot be imported: {lines[0]}"


def _module(name: str) -> Any:
    return import_module(f"fxptq.kernels.cuda.{name}")


@once
def _install() -> torch.library.Library:
    """Registers the kernels for as long as the library it returns lives."""
    library = torch.library.Library("fxptq", "IMPL", "CUDA")
    for operator, module in OPERATORS.items():
        library.impl(operator, getattr(_module(module), operator))
    return library
