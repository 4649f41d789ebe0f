"""The error of a network's output when one operand alone is quantized, for each operand.

    python -m benchmarks.sensitivity swinir_x4 --bits 4 --calib DIR
    python -m benchmarks.sensitivity craft_x4.safetensors --bits 4 --calib DIR

The network is a recipe, or a weights file that spandrel recognises. The script prints the worst operands as a Markdown
table, with the mean squared error of the output in units of its range, beside the estimate from gradients, and the
signal-to-noise ratio of the operand. Below stand the processor's seconds of both and their rank correlation.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from benchmarks.study import inputs_of, open_study_network
from fxptq.commands.source import example_of
from fxptq.engine import install_kernels
from fxptq.graph import Bits, Plan, Program, Site
from fxptq.graph.sites import Operand
from fxptq.passes.base import Context, run_passes
from fxptq.passes.sensitivity import estimate, measure
from fxptq.progress import RichProgress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="a recipe's name, or a weights file that spandrel recognises")
    parser.add_argument("--calib", default="synthetic")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--granularity", choices=["tensor", "channel"], default="tensor")
    parser.add_argument("--kind", help="only sites of this kind, such as conv2d")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--side", type=int, default=32, help="side of the crop of each of four inputs to measure on")
    parser.add_argument("--draws", type=int, default=8, help="random directions of the estimate")
    parser.add_argument("--worst", type=int, default=20)
    options = parser.parse_args()
    source = open_study_network(options.network)
    plan = Plan(Bits(options.bits, options.bits), granularity=options.granularity, edges=None, connective=None)
    program = Program(source.model, example_of(source.recipe), plan)
    images, described = inputs_of(source.recipe, options.calib, options.images, 0)
    context = Context(program, program, images, progress=RichProgress())
    report = run_passes([("observe", {}), ("dobi", {})], context)[-1]
    snr = {key: figures["snr_db"] for key, figures in report.quantizers.items()}
    batch = torch.cat([image[..., : options.side, : options.side] for image in images[:4]])
    owners: dict[str, tuple[Site, Operand]] = {}
    for site in program.sites:
        for operand in site.operands:
            if operand.quantizer and options.kind in (None, site.kind):
                owners.setdefault(operand.quantizer, (site, operand))
    install_kernels()
    started = time.process_time()
    exact = measure(context, [batch], owners)
    between = time.process_time()
    estimated = estimate(context, [batch], options.draws)
    ended = time.process_time()
    print(f"{source.name}, every operand alone at {options.bits} bits; calibrated on {described}\n")
    print("| site | operand | kind | edge | error of the output | estimate | SNR of the operand |")
    print("|---|---|---|---|---|---|---|")
    for key in sorted(exact, key=lambda key: -exact[key])[: options.worst]:
        site, operand = owners[key]
        errors = [one[key] / source.recipe.input.range**2 for one in (exact, estimated)]
        print(
            f"| {site.name} | {operand.slot} | {site.kind} | {site.edge} | {errors[0]:.1e} | {errors[1]:.1e} "
            f"| {snr[key]:.1f} dB |"
        )
    ranks = np.array([(exact[key], estimated[key]) for key in exact]).argsort(0).argsort(0)
    print(
        f"\n{len(exact)} operands: {between - started:.1f} s one at a time, {ended - between:.1f} s estimated, "
        f"rank correlation {np.corrcoef(ranks.T)[0, 1]:.3f}"
    )


if __name__ == "__main__":
    main()
