"""fxptq: post-training quantization of image-restoration networks, down to integer kernels.

q = fxptq.quantize(model, example, bits=fxptq.Bits(w=4, a=4))
q.save("network.safetensors")
fast = fxptq.load("network.safetensors", model=MyNetwork()).to_integer()
"""

from fxptq._version import __version__
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
