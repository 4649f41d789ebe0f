"""Gives the sites of a network different bits: first finds out which sites lose most, then spends bits on those.

python examples/mixed_bits.py
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from super_resolution import RECIPE, psnr, trained

import fxptq

LOW, HIGH = fxptq.Bits(2, 2), fxptq.Bits(6, 6)
NETWORK, EXAMPLE = trained(), torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))


def quantized(bits: fxptq.Bits, sites: Mapping[str, fxptq.Bits | str]) -> fxptq.QuantizedModel:
    """The network at `bits`, with exceptions by glob pattern of site names; the first pattern that fits wins."""
    return fxptq.quantize(NETWORK, EXAMPLE, bits, recipe=RECIPE, sites=sites, preset="quick")


def agreement(model: fxptq.QuantizedModel) -> float:
    """PSNR against the float network's output, dB."""
    with torch.no_grad():
        return psnr(model(EXAMPLE), NETWORK(EXAMPLE))


def report(name: str, model: fxptq.QuantizedModel) -> None:
    """Prints a line of figures, and the bits of the sites in the body."""
    file = Path("mixed.safetensors")
    model.save(file)
    body = " ".join("W{}A{}".format(*site.bits) for site in model.sites if site.name.startswith("body"))
    print(f"{name:22} {agreement(model):5.1f} dB  {file.stat().st_size:6,} bytes  body: {body}")


if __name__ == "__main__":
    names = [site.name for site in quantized(LOW, {}).sites if site.name.startswith("body")]
    alone = {name: agreement(quantized(HIGH, {name: LOW})) for name in names}
    print("one site at two bits, all others at six:")
    for name, decibels in alone.items():
        print(f"   {name:8} {decibels:5.1f} dB")
    worst = min(alone, key=alone.__getitem__)
    report("all at two bits", quantized(LOW, {}))
    report(f"{worst} at six", quantized(LOW, {worst: HIGH}))
    report("all at six bits", quantized(HIGH, {}))
