"""What rounding for the output leaves of the weights' errors, by kind of layer.

    python -m benchmarks.remains swinir_x4
    python -m benchmarks.remains craft_x4.safetensors --calib DIR

The network is a recipe, or a weights file that spandrel recognises, with `--bits` bits. A cell is the squared error of
a layer's output with the weight rounded for other inputs of the kind, and the mean corrected, over the error with
nearest values of `--bits` bits: the median over layers, and the least and the largest in brackets.
"""

from __future__ import annotations

import argparse
from statistics import median

from benchmarks.study import inputs_of, open_study_network
from fxptq.commands.source import example_of
from fxptq.engine import install_kernels
from fxptq.graph import Bits, Plan, Program, Site
from fxptq.passes.base import Context, run_passes
from fxptq.passes.bounds import values_of
from fxptq.passes.crops import training_crops
from fxptq.passes.offsets import movable_weights
from fxptq.passes.remains import MEASURED, remains
from fxptq.passes.widths import bounds_by_width
from fxptq.progress import RichProgress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="a recipe's name, or a weights file that spandrel recognises")
    parser.add_argument("--calib", default="synthetic")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--images", type=int, default=8)
    options = parser.parse_args()
    source = open_study_network(options.network)
    program = Program(source.model, example_of(source.recipe), Plan(Bits(options.bits, options.bits)))
    images, described = inputs_of(source.recipe, options.calib, options.images, 0)
    context = Context(program, program, images, progress=RichProgress())
    run_passes([("observe", {}), ("dobi2d", {})], context)
    install_kernels()
    crops = training_crops(context, crops=8, batch=4, patch=32, fraction=0.25)
    keys = movable_weights(program)
    bounds = {key: bounds_by_width(values_of(context, key), program.quantizers[key], 25) for key in keys}
    parts = remains(context, crops, bounds)
    kinds = {operand.quantizer: kind_of(site) for site in program.sites for operand in site.operands}
    print(f"{source.name}, {options.bits} bits; calibrated on {described}\n")
    print("| layers | number | " + " | ".join(f"weights of {bits} bits" for bits in MEASURED) + " |")
    print("|---|---|" + "---|" * len(MEASURED))
    for kind in sorted({kinds[key] for key in parts}):
        own = [part for key, part in parts.items() if kinds[key] == kind]
        cells = (shown([part[bits] for part in own if bits in part]) for bits in MEASURED)
        print(f"| {kind} | {len(own)} | {' | '.join(cells)} |")


def kind_of(site: Site) -> str:
    """The kind of a layer, in words."""
    if site.geometry is None:
        return "linear"
    kernel = "x".join(map(str, site.shapes["weight"][2:]))
    grouped = " by groups" if site.geometry.groups > 1 else ""
    return f"convolution {kernel}{grouped}"


def shown(parts: list[float]) -> str:
    """The median and the ends of some numbers."""
    return f"{median(parts):.2f} ({min(parts):.2f} to {max(parts):.2f})"


if __name__ == "__main__":
    main()
