"""fxptq: post-training quantization of image-restoration networks, down to integer kernels.

q = fxptq.quantize(model, example, bits=fxptq.Bits(w=4, a=4))
q.save("network.safetensors")
fast = fxptq.load("network.safetensors", model=MyNetwork()).to_integer()
"""

from typing import TYPE_CHECKING, Any

from fxptq._version import __version__
from fxptq.lazy import attribute

if TYPE_CHECKING:
    from fxptq.api import load, quantize, restore
    from fxptq.bits import Bits
    from fxptq.errors import CaptureError, CheckpointError, FxptqError, InputError
    from fxptq.quantized import QuantizedModel
    from fxptq.recipe import Recipe

__all__ = [
    "Bits",
    "CaptureError",
    "CheckpointError",
    "FxptqError",
    "InputError",
    "QuantizedModel",
    "Recipe",
    "__version__",
    "load",
    "quantize",
    "restore",
]

_HOMES = {
    **dict.fromkeys(("load", "quantize", "restore"), "api"),
    **dict.fromkeys(("CaptureError", "CheckpointError", "FxptqError", "InputError"), "errors"),
    "Bits": "bits",
    "QuantizedModel": "quantized",
    "Recipe": "recipe",
}


def __getattr__(name: str) -> Any:
    return attribute(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
