"""The error of a network's output when one operand alone is quantized, for each operand.

    python benchmarks/sensitivity.py swinir_x4 --bits 4 --calib ../shared/data/calib
    python benchmarks/sensitivity.py craft_x4.safetensors --bits 4 --calib DIR

The network is a recipe, or a weights file that spandrel recognises. The script prints the worst operands as a Markdown
table, with the mean squared error of the output in units of its range, and the signal-to-noise ratio of the operand.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from fxptq.commands.source import example_of, open_network
from fxptq.data.sources import calibration_images
from fxptq.graph import Bits, Plan, Program
from fxptq.passes.base import Context, run_passes
from fxptq.progress import RichProgress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="a recipe's name, or a weights file that spandrel recognises")
    parser.add_argument("--calib", default="synthetic")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--granularity", choices=["tensor", "channel"], default="tensor")
    parser.add_argument("--kind", help="only sites of this kind, such as conv2d")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--worst", type=int, default=20)
    options = parser.parse_args()
    path = Path(options.network)
    source = open_network(None, weights=path) if path.is_file() else open_network(options.network)
    task = source.recipe.input
    plan = Plan(Bits(options.bits, options.bits), granularity=options.granularity, edges=None, connective=None)
    program = Program(source.model, example_of(source.recipe), plan)
    images, described = calibration_images(
        options.calib,
        source.recipe.task,
        channels=task.channels,
        value_range=task.range,
        sizes=task.sizes,
        count=options.images,
    )
    context = Context(program, program, images, progress=RichProgress())
    report = run_passes([("observe", {}), ("dobi", {})], context)[-1]
    for quantizer in program.quantizers.values():
        quantizer.mode = "off"
    rows = []
    with torch.no_grad(), context.progress.task("one by one", len(program.quantizers)) as advance:
        truth = program(images[0])
        for site in program.sites:
            for operand in site.operands:
                quantizer = program.quantizers.get(operand.quantizer)
                if quantizer is None or options.kind not in (None, site.kind):
                    continue
                quantizer.mode = "on"
                error = float(((program(images[0]) - truth) ** 2).mean())
                quantizer.mode = "off"
                rows.append((error, site, operand, report.quantizers[operand.quantizer]["snr_db"]))
                advance()
    print(f"{source.name}, every operand alone at {options.bits} bits; calibrated on {described}\n")
    print("| site | operand | kind | edge | error of the output | SNR of the operand |\n|---|---|---|---|---|---|")
    for error, site, operand, snr in sorted(rows, key=lambda row: -row[0])[: options.worst]:
        relative = error / task.range**2
        print(f"| {site.name} | {operand.slot} | {site.kind} | {site.edge} | {relative:.1e} | {snr:.1f} dB |")


if __name__ == "__main__":
    main()
