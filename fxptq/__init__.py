"""fxptq: post-training quantization of image-restoration networks, down to integer kernels.

q = fxptq.quantize(model, example, bits=fxptq.Bits(w=4, a=4))
q.save("network.safetensors")
fast = fxptq.load("network.safetensors", model=MyNetwork()).to_integer()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fxptq._version import __version__

if TYPE_CHECKING:
    from fxptq.api import QuantizedModel, load, quantize, restore
    from fxptq.errors import CaptureError, CheckpointError, FxptqError, InputError
    from fxptq.graph import Bits
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
    **dict.fromkeys(("QuantizedModel", "load", "quantize", "restore"), "api"),
    **dict.fromkeys(("CaptureError", "CheckpointError", "FxptqError", "InputError"), "errors"),
    "Bits": "graph",
    "Recipe": "recipe",
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for: the command line must not wait for PyTorch to show its help, or to be interrupted."""
    if name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    try:
        return import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
