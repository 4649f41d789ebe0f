"""Runs a quantized network on integer kernels and compares it with its simulation in float.

    python examples/integers.py

`compile=True`, the default of `to_integer`, also hands what lies between the kernels to torch.compile; the first call
at each size then takes seconds longer, and each later one less.
"""

import torch
from super_resolution import RECIPE, trained

import fxptq

LEVEL = 1 / 255  # one level of an 8-bit picture

if __name__ == "__main__":
    network = trained()
    quantized = fxptq.quantize(network, torch.rand(1, 3, 48, 48), fxptq.Bits(4, 4), recipe=RECIPE, preset="quick")
    fast = quantized.to_integer(compile=False)

    lowering = fast.lowering
    print(f"the operators run as {lowering.backend.name}")
    for site, operator in lowering.kernels.items():
        print(f"   {site:8} {operator}")
    for site, reason in lowering.simulated.items():
        print(f"   {site:8} simulated in float: {reason}")

    for size in ((48, 48), (37, 90)):
        picture = torch.rand(2, 3, *size)
        with torch.no_grad():
            difference = (fast(picture) - quantized(picture)).abs()
        print(
            f"{size[0]}x{size[1]}, integers against the simulation: {float(difference.mean()) / LEVEL:.4f} levels of "
            f"255 on average, {float(difference.max()) / LEVEL:.2f} at most"
        )
